# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Signs by which the Dice of a result can be expected before anyone has drawn a reference.

The signs of a region are

- ``soft_dice``: the Dice that the probabilities themselves expect, 2 sum(p y) / (sum(p) + sum(y)) for the region y;
- ``probable``: the sum of its probabilities, and ``volume``, both in ml;
- ``surface_per_volume``: faces of voxels between the region and the rest, in mm^2 per mm^3;
- ``border_entropy``: mean entropy of the probabilities on both sides of these faces, from 0 to 1;
- ``flip_disagreement``: variance of the probability over flips, summed and divided by ``probable``'s sum; only in runs
  that flip (``scripts.inference.inferers.FlipInferer``).

Those of a case are quantiles of its normalized intensities. ``scripts.scores.expected_dice`` computes how far they are
from those of the calibration.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scripts.brats import REGIONS, SEQUENCES
from scripts.data.regions import lesion_box, uncertainty

# The key of the signs in the item of a case, and the file of an evaluation that has them.
SIGNS = "signs"
CERTAINTY_FILE = "certainty.csv"
QUANTILES = (5, 25, 50, 75, 95)
INTENSITIES = [f"intensity_{sequence}_{quantile}" for sequence in SEQUENCES for quantile in QUANTILES]

Array = npt.NDArray[Any]
# By name, such as "soft_dice_ET".
Signs = dict[str, float]


def region_signs(probabilities: torch.Tensor, regions: torch.Tensor, voxel_mm: Sequence[float]) -> Signs:
    """The signs of each region, but for the flips.

    Args:
        probabilities: of ET, TC and WT, (3, *size).
        regions: the same regions of the label map, non-zero inside, (3, *size).
        voxel_mm: lengths of a voxel's edges.

    Example:
        >>> p = torch.tensor([0.1, 0.6, 0.9, 0.0]).reshape(1, 4, 1, 1).repeat(3, 1, 1, 1)
        >>> signs = region_signs(p, p >= 0.5, [1.0, 1.0, 2.0])
        >>> signs["soft_dice_WT"], signs["volume_WT"], signs["surface_per_volume_WT"]  # 2 x 1.5 / (1.6 + 2)
        (0.8333, 0.004, 1.0)
    """
    signs: Signs = {}
    voxel_ml = float(np.prod(voxel_mm)) / 1000
    # Probabilities below this add nothing to the sums.
    box = lesion_box([*(probabilities > 1e-3), *regions], margin=1)
    for name, p, y in zip(REGIONS, probabilities, regions, strict=True):
        inside, chances = np.asarray(y[box].cpu()) > 0, p[box].cpu().double()
        both = float(chances.sum()) + int(inside.sum())
        signs[f"soft_dice_{name}"] = round(2 * float(chances[torch.as_tensor(inside)].sum()) / both, 4) if both else 1.0
        signs[f"probable_{name}"] = round(float(chances.sum()) * voxel_ml, 4)
        signs[f"volume_{name}"] = round(int(inside.sum()) * voxel_ml, 4)
        area, border = _surface(inside, voxel_mm)
        empty = not inside.any()
        signs[f"surface_per_volume_{name}"] = (
            0.0 if empty else round(float(area / (inside.sum() * np.prod(voxel_mm))), 4)
        )
        entropy = np.asarray(uncertainty(chances))[border]
        signs[f"border_entropy_{name}"] = 0.0 if empty else round(float(entropy.mean()) / 100, 4)
    return signs


def _surface(inside: Array, voxel_mm: Sequence[float]) -> tuple[float, Array]:
    """Area of the faces between ``inside`` and the rest, in mm^2, and the voxels on both sides of them."""
    area, border = 0.0, np.zeros_like(inside)
    for axis, length in enumerate(voxel_mm):
        along = np.moveaxis(inside, axis, 0)
        faces = along[1:] != along[:-1]
        area += float(faces.sum() * np.prod(voxel_mm) / length)
        touched = np.moveaxis(border, axis, 0)
        touched[1:] |= faces
        touched[:-1] |= faces
    return area, border


def intensity_signs(image: torch.Tensor) -> Signs:
    """Quantiles of each sequence of a normalized image, (4, *size), over the brain; 0 for a missing sequence."""
    found = np.zeros((len(SEQUENCES), len(QUANTILES)))
    for row, channel in zip(found, image, strict=True):
        values = np.asarray(channel[channel != 0].cpu())
        if values.size:
            row[:] = np.percentile(values, QUANTILES)
    return dict(zip(INTENSITIES, found.round(4).ravel().tolist(), strict=True))
