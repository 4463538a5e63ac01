# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""How maps reach the disk: named after their case, in the input's grid, and never half written."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from monai.config import KeysCollection, PathLike
from monai.data import NibabelWriter
from monai.transforms import MapTransform, SaveImage, SaveImaged
from scripts.brats import case_name
from scripts.files import replacing
from scripts.transforms import region_probabilities, uncertainty

REGION_MAP_NAMES = ("enhance", "core", "whole")
REGION_MAP_KINDS = ("prob", "unc")


def map_files(case: str, folder: PathLike) -> list[Path]:
    """All files that the writers below may make of a case in ``folder``: its label map first, then maps of regions."""
    maps = [f"{case}_{kind}_{name}" for kind in REGION_MAP_KINDS for name in REGION_MAP_NAMES]
    return [Path(folder) / f"{name}.nii.gz" for name in (case, *maps)]


class MapWriter(NibabelWriter):
    """MONAI's NIfTI writer for maps that are in the input's grid already, through a temporary file."""

    def set_metadata(self, meta_dict: Mapping | None, resample: bool = True, **options: Any) -> None:
        """Take the affine as it is; MONAI's resampling cannot do so where the input's axes are permuted."""
        _, self.affine, _ = self.get_meta_info(meta_dict)

    def write(self, filename: PathLike, verbose: bool = False, **obj_kwargs: Any) -> None:
        """Write ``filename``."""
        with replacing(Path(filename)) as temporary:
            super().write(temporary, verbose=verbose, **obj_kwargs)


class SaveImageByCased(SaveImaged):
    """Save label maps, (1, *size), as ``<case>.nii.gz``, uint8, the name that the BraTS portal takes.

    A ``SaveImaged``, and named like one: MONAI Label leaves out the steps of that class, MONAI Deploy those with
    ``SaveImage`` in their name, since both save results themselves.

    Args:
        keys: keys of label maps in the input's grid.
        output_dir: folder to write to.
        case_key: key of the case's name; where an entry has none, it is named after its image file.
    """

    def __init__(
        self, keys: KeysCollection, output_dir: PathLike, case_key: str = "case", allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, output_dir=str(output_dir), allow_missing_keys=allow_missing_keys)
        self.output_dir = Path(output_dir)
        self.case_key = case_key
        self.saver = SaveImage(output_dtype=np.uint8, writer=MapWriter, print_log=False)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Save the label maps of one case."""
        item = dict(data)
        for key in self.key_iterator(item):
            case = item.get(self.case_key) or case_name(item[key].meta["filename_or_obj"])
            self.saver(item[key], filename=self.output_dir / case)
        return item


class SaveRegionMapsd(MapTransform):
    """Save a map for each region beside the label map, named as BraTS 2020 asked: ``<case>_<kind>_whole.nii.gz`` ...

    Of probabilities in the input's grid, (4, *size), either themselves (``prob``, float32) or their uncertainty
    (``unc``, uint8 from 0 to 100).

    Args:
        keys: keys of probabilities.
        output_dir: folder to write to.
        kind: "prob" or "unc".
        exclusive: the channels exclude each other; see ``ProbabilitiesToRegionsd``.
        case_key: key of the case's name.

    Raises:
        ValueError: another ``kind``.
    """

    def __init__(
        self,
        keys: KeysCollection,
        output_dir: PathLike,
        kind: str = "prob",
        exclusive: bool = False,
        case_key: str = "case",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if kind not in REGION_MAP_KINDS:
            raise ValueError(f"kind must be 'prob' or 'unc', got {kind!r}.")
        self.output_dir = Path(output_dir)
        self.kind = kind
        self.exclusive = exclusive
        self.case_key = case_key
        dtype = np.float32 if kind == "prob" else np.uint8
        self.saver = SaveImage(output_dtype=dtype, writer=MapWriter, print_log=False)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Save the maps of one case."""
        item = dict(data)
        for key in self.key_iterator(item):
            maps = region_probabilities(item[key], self.exclusive)
            if self.kind == "unc":
                maps = uncertainty(maps).round()
            for name, region in zip(REGION_MAP_NAMES, maps, strict=True):
                self.saver(region[None], filename=self.output_dir / f"{item[self.case_key]}_{self.kind}_{name}")
        return item
