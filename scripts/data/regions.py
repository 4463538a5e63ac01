# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Label maps, regions and probabilities as tensors, by the rules of ``scripts.brats``."""

import math
from collections.abc import Iterable
from functools import reduce

import numpy as np
import torch
from scipy import ndimage
from scripts.brats import (
    CORE_LABEL,
    EDEMA_LABEL,
    ET_CHANNEL,
    NONENHANCING_LABEL,
    TC_CHANNEL,
    WT_CHANNEL,
    check_et_label,
)
from scripts.utils.errors import InputError


def lesion_box(masks: Iterable[torch.Tensor], margin: int = 0) -> tuple[slice, ...]:
    """The smallest box that holds every non-zero voxel of ``masks``, (*size), as one slice for each axis.

    A computation in the box of a lesion takes a fraction of the time. ``margin`` adds voxels on each side, inside the
    grid. There must be at least one mask.

    Example:
        >>> mask = torch.zeros(8, 8)
        >>> mask[2:4, 5] = 1
        >>> lesion_box([mask], margin=1)
        (slice(1, 5, None), slice(4, 7, None))
    """
    together = reduce(np.logical_or, (np.asarray(mask.cpu()) != 0 for mask in masks))
    # The box of nothing is the first voxel.
    (found,) = ndimage.find_objects(together.astype(np.uint8)) or [(slice(0, 1),) * together.ndim]
    return tuple(
        slice(max(side.start - margin, 0), min(side.stop + margin, size))
        for side, size in zip(found, together.shape, strict=True)
    )


def labels_to_regions(labels: torch.Tensor, et_label: int, edema_label: int = EDEMA_LABEL) -> torch.Tensor:
    """Regions, uint8 of shape (4, *size), from a label map of shape (*size).

    The enhancing tumor is 4 or 3. Edema is 2 or 1, and core has the other value of the two. Others raise an InputError.
    Beside an enhancing tumor of 4, 3 is core too, as in BraTS 2013 and 2015 (``check_label_values``).

    Example:
        >>> labels_to_regions(torch.tensor([0, 1, 2, 4]), et_label=4).tolist()  # background, ET, TC, WT
        [[1, 0, 0, 0], [0, 0, 0, 1], [0, 1, 0, 1], [0, 1, 1, 1]]
    """
    check_et_label(et_label)
    if edema_label not in (1, 2):
        raise InputError(f"edema label {edema_label!r}: edema is 2 (BraTS) or 1 (Medical Segmentation Decathlon).")
    et = labels == et_label
    tc = et | (labels == 3 - edema_label)
    if et_label != NONENHANCING_LABEL:
        tc |= labels == NONENHANCING_LABEL
    wt = tc | (labels == edema_label)
    return torch.stack([~wt, et, tc, wt]).to(torch.uint8)


def regions_to_labels(regions: torch.Tensor, et_label: int = 4, edema_last: bool = False) -> torch.Tensor:
    """Label map, uint8 of shape (1, *size), from regions of shape (4, *size) that are non-zero inside.

    With ``edema_last``, edema (in WT but not in TC) overrules ET, as in the authors' program. The two orders differ
    only where ET lies outside TC. ``et_label`` other than 3 or 4 raises an InputError.

    Example:
        The second voxel is in ET and WT but not in TC:

        >>> regions = torch.tensor([[1, 0, 0, 0], [0, 1, 0, 1], [0, 0, 1, 1], [0, 1, 1, 1]])
        >>> regions_to_labels(regions).tolist(), regions_to_labels(regions, edema_last=True).tolist()
        ([[0, 4, 1, 4]], [[0, 2, 1, 4]])
    """
    check_et_label(et_label)
    labels = torch.zeros_like(regions[:1], dtype=torch.uint8)
    box = lesion_box(regions[ET_CHANNEL:])
    et, tc, wt = (regions[c][box] > 0 for c in (ET_CHANNEL, TC_CHANNEL, WT_CHANNEL))
    inside = labels[0][box]
    inside[wt] = EDEMA_LABEL
    inside[tc] = CORE_LABEL
    inside[et & ~(wt & ~tc) if edema_last else et] = et_label
    return labels


def probabilities_to_regions(probabilities: torch.Tensor, exclusive: bool = False) -> torch.Tensor:
    """Regions, uint8 of shape (4, *size), from probabilities of the four channels, of the same shape.

    The channels are regions, and a voxel is in each one whose probability is at least 0.5. If they are ``exclusive``,
    they are classes (background, ET, the rest of TC, the rest of WT), and each voxel takes the most probable one.
    """
    if not exclusive:
        return (probabilities >= 0.5).to(torch.uint8)
    likeliest = probabilities.argmax(dim=0)
    tumor = [(likeliest > 0) & (likeliest <= region) for region in (ET_CHANNEL, TC_CHANNEL, WT_CHANNEL)]
    return torch.stack([likeliest == 0, *tumor]).to(torch.uint8)


def region_probabilities(probabilities: torch.Tensor, exclusive: bool = False) -> torch.Tensor:
    """Probabilities of ET, TC and WT, (3, *size), from those of the channels, as in ``probabilities_to_regions``."""
    tumor = probabilities[1:]
    return tumor.cumsum(dim=0).clamp(max=1.0) if exclusive else tumor


def uncertainty(probabilities: torch.Tensor) -> torch.Tensor:
    """Entropy of binary probabilities, of the same shape: 0 for the certain ones, 0 and 1, and 100 for 0.5.

    BraTS 2020 asked for this scale (QU-BraTS, Mehta et al., MELBA 2022). The entropy of a mean over flips or over an
    ensemble is high where every member is unsure, and also where the members disagree.
    """
    p = probabilities.clamp(0, 1)
    return -(torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p)) * (100 / math.log(2))
