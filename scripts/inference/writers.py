# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Writers of maps, which are named after their case, lie in the input's grid and are never half written."""

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.config import KeysCollection, PathLike
from monai.data import MetaTensor
from monai.transforms import MapTransform, SaveImaged
from numpy.typing import DTypeLike
from scripts.brats import case_name
from scripts.data.placement import header_as_in
from scripts.data.regions import region_probabilities, uncertainty
from scripts.utils.files import replacing

REGION_MAP_NAMES = ("enhance", "core", "whole")
REGION_MAP_KINDS = ("prob", "unc")


def map_files(
    case: str, folder: PathLike, kinds: Sequence[str] = REGION_MAP_KINDS, case_folders: bool = False
) -> list[Path]:
    """The files that the writers below make for a case: first its label map, then maps of regions of these kinds.

    With ``case_folders``, the files of each case have a folder of their own, named after the case.

    Example:
        >>> [path.name for path in map_files("case", "predictions")[:3]]
        ['case.nii.gz', 'case_prob_enhance.nii.gz', 'case_prob_core.nii.gz']
        >>> map_files("case", "out", case_folders=True)[0].as_posix()
        'out/case/case.nii.gz'
    """
    maps = [f"{case}_{kind}_{name}" for kind in kinds for name in REGION_MAP_NAMES]
    folder = Path(folder, case) if case_folders else Path(folder)
    return [folder / f"{name}.nii.gz" for name in (case, *maps)]


def record_file(label_map: Path) -> Path:
    """The record of a case beside its label map (``scripts.workflow.case_records``)."""
    return label_map.with_name(label_map.name.removesuffix(".nii.gz") + ".json")


def save_map(image: MetaTensor, path: Path, dtype: DTypeLike) -> None:
    """Write one map, (1, *size), in its own grid, with the header of the image that it was made of.

    MONAI's writers hide why a file could not be written, and change the affine if the axes are permuted.

    Raises:
        WriteError: the file cannot be written.
    """
    voxels = np.asarray(image.get_array())[0].astype(dtype)
    header = header_as_in(image.meta, voxels.shape, np.asarray(image.affine))
    header.set_data_dtype(dtype)
    with replacing(path) as temporary:
        nib.save(nib.Nifti1Image(voxels, None, header), temporary)


class SaveImageByCased(SaveImaged):
    """Save label maps, (1, *size), in uint8 as ``<case>.nii.gz``, the name that the BraTS portal takes.

    Both the base class and the name matter, since two programs save results themselves: MONAI Label leaves out steps of
    the class ``SaveImaged``, and MONAI Deploy leaves out steps with ``SaveImage`` in their name.

    ``keys`` name label maps in the input's grid; ``case_folders`` is as in ``map_files``.
    """

    def __init__(self, keys: KeysCollection, output_dir: PathLike, case_folders: bool = False) -> None:
        super().__init__(keys, output_dir=str(output_dir))
        self.output_dir = Path(output_dir)
        self.case_folders = case_folders

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Save the label maps of one case. An item without ``case`` is named after its image file."""
        item = dict(data)
        for key in self.key_iterator(item):
            case = item.get("case") or case_name(item[key].meta["filename_or_obj"])
            save_map(item[key], map_files(case, self.output_dir, case_folders=self.case_folders)[0], np.uint8)
        return item


class SaveRegionMapsd(MapTransform):
    """Save a map for each region, with the names that BraTS 2020 asked for, such as ``<case>_<kind>_whole.nii.gz``.

    Args:
        keys: keys of probabilities in the input's grid, (4, *size).
        kind: "prob" saves the probabilities (float32), "unc" saves their uncertainty (uint8, from 0 to 100).
        exclusive: the channels exclude each other (see ``probabilities_to_regions``).
        case_folders: as in ``map_files``.

    Raises:
        ValueError: ``kind`` is neither "prob" nor "unc".
    """

    def __init__(
        self,
        keys: KeysCollection,
        output_dir: PathLike,
        kind: str = "prob",
        exclusive: bool = False,
        case_folders: bool = False,
    ) -> None:
        super().__init__(keys)
        if kind not in REGION_MAP_KINDS:
            raise ValueError(f"kind must be 'prob' or 'unc', got {kind!r}.")
        self.output_dir = Path(output_dir)
        self.kind = kind
        self.exclusive = exclusive
        self.case_folders = case_folders

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Save the maps of one case."""
        item = dict(data)
        for key in self.key_iterator(item):
            maps = region_probabilities(item[key], self.exclusive)
            if self.kind == "unc":
                maps = uncertainty(maps).round()
            files = map_files(item["case"], self.output_dir, [self.kind], self.case_folders)[1:]
            for path, region in zip(files, maps, strict=True):
                save_map(region[None], path, np.float32 if self.kind == "prob" else np.uint8)
        return item
