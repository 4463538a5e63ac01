# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The post-processing of regions by volume and probability: its thresholds, and a function for each step.

Neighbors share a face (6-connectivity), as in the authors' testing. Regions are non-zero inside and have the shape
(4, *size); their background channel is neither read nor changed. Each step returns a copy.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from scipy import ndimage
from scripts.brats import ET_CHANNEL, TC_CHANNEL, WT_CHANNEL
from scripts.data.regions import lesion_box, region_probabilities
from scripts.utils.errors import InputError

# The authors' values: volumes in mm^3, a mean probability, and whether each component of ET counts for itself.
# docs/reference.md explains them.
THRESHOLDS: dict[str, Any] = {
    "min_component_mm3": 10,
    "min_tumor_probability": 0,
    "min_et_mm3": 300,
    "et_per_component": False,
}


def checked_thresholds(thresholds: Any) -> dict[str, Any]:
    """The thresholds, if they are a value for each name in ``THRESHOLDS``; else an InputError."""
    if not isinstance(thresholds, Mapping):
        raise InputError(f"--thresholds {thresholds}: set single ones, such as --thresholds#min_et_mm3 100.")
    for name, value in {**dict.fromkeys(THRESHOLDS), **thresholds}.items():
        given = f"--thresholds#{name} {value}"
        if name not in THRESHOLDS:
            raise InputError(f"{given}: no such threshold; choose one of {', '.join(THRESHOLDS)}.")
        if name == "et_per_component":
            if not isinstance(value, bool):
                raise InputError(f"{given}: write True or False.")
            continue
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if name == "min_tumor_probability" and not (number and 0 <= value <= 1):
            raise InputError(f"{given}: write a probability from 0 to 1.")
        if not (number and 0 <= value < math.inf):
            raise InputError(f"{given}: write a volume in mm^3, 0 or more.")
    return dict(thresholds)


def voxel_mm3(volume: torch.Tensor) -> float:
    """Volume of a voxel of ``volume`` in mm^3, by its affine; 1 if it has none."""
    if not isinstance(volume, MetaTensor):
        return 1.0
    return abs(float(torch.linalg.det(torch.as_tensor(volume.affine)[:3, :3].double())))


def _small_components(mask: np.ndarray, min_voxels: float) -> np.ndarray:
    """The voxels of ``mask`` in components of fewer than ``min_voxels`` voxels."""
    components, _ = ndimage.label(mask)
    return mask & (np.bincount(components.ravel())[components] < min_voxels)


def without_small_components(regions: torch.Tensor, min_voxels: float) -> torch.Tensor:
    """Regions without components of fewer than ``min_voxels`` voxels, in each region on its own.

    MONAI's ``RemoveSmallObjects`` labels all channels together, so a speck of ET inside TC would count as part of TC.
    """
    regions = regions.clone()
    for inside in regions[(slice(ET_CHANNEL, None), *lesion_box(regions[ET_CHANNEL:]))]:
        mask = np.asarray(inside.cpu()) > 0
        if mask.any():
            inside[torch.as_tensor(_small_components(mask, min_voxels), device=inside.device)] = 0
    return regions


def without_doubtful_tumors(
    regions: torch.Tensor, probabilities: torch.Tensor, min_mean: float, exclusive: bool = False
) -> tuple[torch.Tensor, int]:
    """Regions without doubtful tumors, and the number of voxels that these had.

    A tumor beside a larger one is doubtful if its mean probability is below ``min_mean``. A tumor is a connected
    component of all regions together, and its probability in a voxel is the highest of ET, TC and WT, from
    ``probabilities`` as in ``probabilities_to_regions``. The largest tumor always stays. A network that has
    seen few patients often takes bright spots far from the tumor for edema, large ones too, but is not sure of them
    (docs/benchmarks/starter.md).
    """
    regions, removed = regions.clone(), 0
    if min_mean > 0:
        box = lesion_box(regions[ET_CHANNEL:])
        inside = regions[(slice(ET_CHANNEL, None), *box)]
        tumors, number = ndimage.label(np.asarray(inside.cpu()).any(0))
        if number > 1:
            highest = region_probabilities(probabilities[(slice(None), *box)], exclusive).amax(0).float().cpu()
            doubtful = ndimage.mean(np.asarray(highest), tumors, range(number + 1)) < min_mean
            largest = 1 + np.bincount(tumors.ravel())[1:].argmax()
            doubtful[[0, largest]] = False
            there = doubtful[tumors]
            inside[:, torch.as_tensor(there, device=inside.device)] = 0
            removed = int(there.sum())
    return regions, removed


def without_small_et(regions: torch.Tensor, min_voxels: float, per_component: bool = False) -> torch.Tensor:
    """Regions in which an enhancing tumor of fewer than ``min_voxels`` voxels is core: its voxels are set in TC and WT.

    If a patient has no ET, a single voxel of predicted ET gives a Dice of 0 (BraTS 2020 rules). This is why the authors
    use a threshold. With ``per_component``, the size of each component counts instead of the size of the whole ET.

    Example:
        >>> regions = torch.tensor([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 1], [0, 1, 1, 1]])
        >>> without_small_et(regions, min_voxels=2).tolist()
        [[1, 0, 0, 0], [0, 0, 0, 0], [0, 1, 1, 1], [0, 1, 1, 1]]
    """
    regions = regions.clone()
    inside = regions[(slice(None), *lesion_box([regions[ET_CHANNEL]]))]
    et = np.asarray(inside[ET_CHANNEL].cpu()) > 0
    small = _small_components(et, min_voxels) if per_component else et & (et.sum() < min_voxels)
    cleared = torch.as_tensor(small, device=regions.device)
    inside[ET_CHANNEL][cleared] = 0
    inside[TC_CHANNEL][cleared] = 1
    inside[WT_CHANNEL][cleared] = 1
    return regions
