# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Reading a case's image with its channels in the network's order, whatever form it comes in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from monai.config import PathLike
from monai.data import NibabelReader
from monai.utils import ensure_tuple
from scripts.data.datalist import CHANNEL_ORDER, SEQUENCES, image_files
from scripts.errors import InputError


class SequenceReader(NibabelReader):
    """MONAI's NIfTI reader for the four sequences, as ``LoadImaged(reader=...)``.

    It takes what an entry's ``image`` may be: four files in the network's order, which are stacked; the folder of one
    case, whose files are known by their names; or one four-dimensional file, whose channels are put into the network's
    order. Three-dimensional files, such as label maps, are read as they are.

    Args:
        channel_order: the sequences in the order in which four-dimensional files hold them.

    Raises:
        InputError: ``channel_order`` is not the four sequences in some order.
    """

    def __init__(self, channel_order: Sequence[str] = CHANNEL_ORDER) -> None:
        super().__init__()
        if sorted(channel_order) != sorted(SEQUENCES):
            raise InputError(
                f"--channel_order {list(channel_order)}: name each of {', '.join(SEQUENCES)} once, "
                "in the order in which the file holds them."
            )
        self.channel_order = list(channel_order)
        # A setting like the other, so that a cache of what was read in another order is never taken for this.
        self.sequences = list(SEQUENCES)

    @property
    def filenames(self) -> Sequence[PathLike]:
        """A name for each image, of no meaning: MONAI's reader pairs images with the names of its last call.

        That may have been another thread's, of a label map with one name; the image would then lose three channels.
        """
        return [""] * len(SEQUENCES)

    @filenames.setter
    def filenames(self, names: Sequence[PathLike]) -> None:
        pass

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> Any:
        """Open the files behind ``data``: a nibabel image, or a list of four."""
        return super().read(image_files([str(path) for path in ensure_tuple(data)]), **kwargs)

    def get_data(self, img: Any) -> tuple[np.ndarray, dict]:
        """Voxels, (channel, *size) of four files or (*size, channel) of one, in the network's order, and metadata.

        Raises:
            InputError: a single file has other than four channels.
        """
        voxels, meta = super().get_data(img)
        if not isinstance(img, list) and voxels.ndim > 3:
            if voxels.shape[3:] != (len(SEQUENCES),):
                raise InputError(f"{img.get_filename()}: of shape {voxels.shape}; give one file with four channels.")
            voxels = voxels[..., [self.channel_order.index(sequence) for sequence in self.sequences]]
        return voxels, meta
