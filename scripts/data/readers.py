# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Reading a case's image with its channels in the network's order, whatever form it comes in."""

from __future__ import annotations

import zlib
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from monai.config import KeysCollection, PathLike
from monai.data import ImageReader, NibabelReader
from monai.transforms import LoadImaged
from monai.utils import ensure_tuple
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from scripts.data.datalist import CHANNEL_ORDER, SEQUENCES, image_files
from scripts.errors import InputError

# What nibabel raises for a file that is no NIfTI image, or only part of one.
UNREADABLE = (ImageFileError, HeaderDataError, WrapStructError, OSError, EOFError, ValueError, zlib.error)


def one_line(error: BaseException) -> str:
    """The message of ``error``, on one line."""
    return " ".join(str(error).split())


def check_suffix(path: PathLike) -> None:
    """Refuse a file whose name is not that of a NIfTI image.

    Raises:
        InputError: it ends neither in ``.nii`` nor in ``.nii.gz``.
    """
    if not str(path).lower().endswith((".nii", ".nii.gz")):
        raise InputError(f"{path}: not a NIfTI image (.nii, .nii.gz), the only format read; convert it to NIfTI.")


class SequenceReader(NibabelReader):
    """MONAI's NIfTI reader for the four sequences, as ``LoadImageByReaderd(reader=...)``.

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
        """Open the files behind ``data``: a nibabel image, or a list of four.

        Raises:
            InputError: one is absent or no NIfTI image, or a folder does not hold one complete case.
        """
        opened = [self._open(file, **kwargs) for file in image_files([str(path) for path in ensure_tuple(data)])]
        return opened if len(opened) > 1 else opened[0]

    def _open(self, file: str, **kwargs: Any) -> Any:
        check_suffix(file)
        try:
            return super().read(file, **kwargs)
        except UNREADABLE as error:
            raise InputError(f"{file}: not a readable NIfTI image ({one_line(error)}); copy it again.") from error

    def _get_array_data(self, img: Any, filename: PathLike) -> np.ndarray:
        try:
            voxels: np.ndarray = super()._get_array_data(img, filename)
        except UNREADABLE as error:
            raise InputError(f"{img.get_filename()}: damaged ({one_line(error)}); copy it again.") from error
        return voxels

    def get_data(self, img: Any) -> tuple[np.ndarray, dict]:
        """Voxels, (channel, *size) of four files or (*size, channel) of one, in the network's order, and metadata.

        Raises:
            InputError: a file is damaged, or a single file has other than four channels.
        """
        voxels, meta = super().get_data(img)
        if not isinstance(img, list) and voxels.ndim > 3:
            if voxels.shape[3:] != (len(SEQUENCES),):
                raise InputError(f"{img.get_filename()}: of shape {voxels.shape}; give one file with four channels.")
            voxels = voxels[..., [self.channel_order.index(sequence) for sequence in self.sequences]]
        return voxels, meta


class LoadImageByReaderd(LoadImaged):
    """MONAI's ``LoadImaged`` with one reader, and no other should that one fail.

    MONAI's then tries all its own: the reader's error is lost, and of a file in another format, which any of them can
    read, the channels come in an order that no one has stated.

    A ``LoadImaged``, and named like one: MONAI Label looks for that class, MONAI Deploy leaves out steps with
    ``LoadImage`` in their name, since it loads images itself.

    Args:
        keys: keys of files.
        reader: reads them.
        options: of ``LoadImaged``.

    Raises:
        InputError: (when called) by ``SequenceReader``, for a file that is absent, damaged, or no NIfTI image.
    """

    def __init__(self, keys: KeysCollection, reader: ImageReader, **options: Any) -> None:
        super().__init__(keys, reader=reader, **options)  # type: ignore[arg-type]
        self.reader = reader

    def __call__(self, data: Mapping[Hashable, Any], reader: ImageReader | None = None) -> dict[Hashable, Any]:
        """Load the images of one case."""
        item: dict[Hashable, Any] = super().__call__(data, reader or self.reader)
        return item
