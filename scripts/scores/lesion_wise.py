# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The lesion-wise Dice and HD95 of the glioma challenge of BraTS 2023 (BraTS-GLI).

The scores of a whole region hardly change if a small lesion beside a large one is missed. Here each lesion of the
reference gets scores of its own, and so does each lesion that was invented.

The rules are those of the challenge's own program (https://github.com/rachitsaluja/BraTS-2023-Metrics):

- Components of a mask share a face, an edge or a corner (26-connectivity).
- The reference is dilated three times with the 18-neighborhood. Components that then touch are one lesion.
- A predicted component that touches a dilated lesion belongs to the lesion. It may belong to several lesions, and each
  of them is then compared with the whole component.
- A lesion of 50 mm^3 or less is left out. Its volume is that of the original voxels. A predicted component that touches
  it is not invented. If the component also touches a lesion that counts, it belongs to that one as any other.
- A missed or invented lesion has a Dice of 0 and an HD95 of 374 mm.
- The score of a case is the mean over the lesions that count and the invented ones. If there are none, the Dice is 1
  and the HD95 is 0.
- The HD95 of a lesion counts surfaces by their area (``scripts.scores.metrics.surface_hausdorff95``).
"""

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import numpy as np
import torch
from scipy import ndimage
from scripts.data.regions import lesion_box
from scripts.scores.metrics import Grid, RegionMetric, surface_hausdorff95

# BraTS 2023 gives this distance to a missed or invented lesion.
WORST_LESION_HD95_MM = 374.0
# A lesion of the reference up to this volume is left out.
IGNORED_MM3 = 50.0
DILATIONS = 3
# A spacing that was computed from an affine is off by rounding, which must not decide whether a lesion counts.
ROUNDED_DIGITS = 3


class LesionScore(NamedTuple):
    """The Dice and the HD95 (mm) of a lesion that counts: one of the reference, or an invented one."""

    dice: float
    hd95: float


# A missed lesion, and also an invented one.
WORST = LesionScore(0.0, WORST_LESION_HD95_MM)


def lesion_scores(
    pred: np.ndarray, reference: np.ndarray, spacing: Sequence[float] = (1.0, 1.0, 1.0)
) -> list[LesionScore]:
    """The scores of the lesions of a region that count, first those of the reference and then the invented ones.

    Args:
        pred: mask, bool of shape (x, y, z).
        reference: mask of the same shape.
        spacing: size of a voxel along each axis in mm.

    Example:
        A cube of 64 mm^3 is found and one voxel too thick, and another one far away is invented:

        >>> pred, reference = np.zeros((2, 30, 9, 9), bool)
        >>> reference[2:6, 2:6, 2:6] = pred[2:6, 2:6, 2:7] = pred[20:24, 2:6, 2:6] = True
        >>> [(round(lesion.dice, 3), lesion.hd95) for lesion in lesion_scores(pred, reference)]
        [(0.889, 1.0), (0.0, 374.0)]
    """
    # All steps but the last stay within the box of both masks. Outside it, a dilated lesion would touch neither a
    # predicted component nor another lesion that it does not touch inside.
    box = lesion_box(torch.as_tensor(mask) for mask in (pred, reference))
    pred, reference = pred[box], reference[box]
    everything = ndimage.generate_binary_structure(3, 3)
    near = ndimage.binary_dilation(reference, ndimage.generate_binary_structure(3, 2), DILATIONS)
    dilated, _ = ndimage.label(near, everything)
    components, count = ndimage.label(pred, everything)
    component_boxes = ndimage.find_objects(components)
    invented = set(range(1, count + 1))
    found = []
    for number, box in enumerate(ndimage.find_objects(dilated), 1):
        own = np.unique(components[box][(dilated[box] == number) & pred[box]]).tolist()
        invented.difference_update(own)
        volume = int((reference[box] & (dilated[box] == number)).sum()) * prod(spacing)
        if round(volume, ROUNDED_DIGITS) <= IGNORED_MM3:
            continue
        if not own:
            found.append(WORST)
            continue
        boxes = zip(box, *(component_boxes[component - 1] for component in own), strict=True)
        whole = tuple(slice(min(s.start for s in along), max(s.stop for s in along)) for along in boxes)
        lesion, predicted = reference[whole] & (dilated[whole] == number), np.isin(components[whole], own)
        dice = 2 * int((lesion & predicted).sum()) / (int(lesion.sum()) + int(predicted.sum()))
        hd95 = surface_hausdorff95(torch.as_tensor(predicted), torch.as_tensor(lesion), spacing)
        found.append(LesionScore(dice, hd95))
    return found + [WORST] * len(invented)


class LesionWiseScores(RegionMetric):
    """The lesion-wise Dice and HD95 (mm) of BraTS-GLI 2023, in this order.

    Example:
        Each region of the reference has two lesions of 64 mm^3. ET is found, of TC one lesion is missed, and of WT both
        are missed and one is invented:

        >>> label, pred = torch.zeros(1, 4, 30, 30, 9), torch.zeros(1, 4, 30, 30, 9)
        >>> label[0, 1:, 2:6, 2:6, 2:6] = label[0, 1:, 20:24, 2:6, 2:6] = 1
        >>> pred[0, 1] = label[0, 1]
        >>> pred[0, 2, 2:6, 2:6, 2:6] = pred[0, 3, 2:6, 20:24, 2:6] = 1
        >>> LesionWiseScores()(pred, label).tolist()
        [[1.0, 0.5, 0.0, 0.0, 187.0, 374.0]]
    """

    scores = ("lesion_dice", "lesion_hd95")

    def score(self, pred: torch.Tensor, reference: torch.Tensor, grid: Grid) -> tuple[float, float]:
        """Lesion-wise Dice and HD95 of one region."""
        found = lesion_scores(pred.cpu().numpy(), reference.cpu().numpy(), grid.spacing)
        if not found:
            return 1.0, 0.0
        return sum(lesion.dice for lesion in found) / len(found), sum(lesion.hd95 for lesion in found) / len(found)
