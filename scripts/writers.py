# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""How label maps reach the disk: named after their case, in the input's grid, and never half written."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from monai.config import KeysCollection, PathLike
from monai.data import NibabelWriter
from monai.transforms import MapTransform, SaveImage
from scripts.files import replacing


class LabelMapWriter(NibabelWriter):
    """MONAI's NIfTI writer for maps that are in the input's grid already, through a temporary file."""

    def set_metadata(self, meta_dict: Mapping | None, resample: bool = True, **options: Any) -> None:
        """Take the affine as it is; MONAI's resampling cannot do so where the input's axes are permuted."""
        _, self.affine, _ = self.get_meta_info(meta_dict)

    def write(self, filename: PathLike, verbose: bool = False, **obj_kwargs: Any) -> None:
        """Write ``filename``."""
        with replacing(Path(filename)) as temporary:
            super().write(temporary, verbose=verbose, **obj_kwargs)


class SaveLabelMapd(MapTransform):
    """Save label maps, (1, *size), as ``<case>.nii.gz``, uint8, the name that the BraTS portal takes.

    Args:
        keys: keys of label maps in the input's grid.
        output_dir: folder to write to.
        case_key: key of the case's name.
    """

    def __init__(
        self, keys: KeysCollection, output_dir: PathLike, case_key: str = "case", allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.output_dir = Path(output_dir)
        self.case_key = case_key
        self.saver = SaveImage(output_dtype=np.uint8, writer=LabelMapWriter, print_log=False)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Save the label maps of one case."""
        item = dict(data)
        for key in self.key_iterator(item):
            self.saver(item[key], filename=self.output_dir / item[self.case_key])
        return item
