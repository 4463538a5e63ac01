# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Slices, boxes and gray windows of volumes in LPS order: axes run to the left, to the back and up."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Volume = npt.NDArray[Any]


def affine_of_box(affine: npt.NDArray[np.float64], box: Sequence[slice]) -> npt.NDArray[np.float64]:
    """The affine, (4, 4), of the box that three slices cut out of a volume.

    Example:
        >>> affine_of_box(np.diag([2.0, 2.0, 2.0, 1.0]), (slice(3, 5), slice(0, 5), slice(1, 5)))[:3, 3].tolist()
        [6.0, 0.0, 2.0]
    """
    moved = affine.copy()
    moved[:3, 3] += affine[:3, :3] @ [s.start for s in box]
    return moved


def areas(mask: Volume, axis: int) -> Volume:
    """The number of voxels of a mask in each slice along an axis."""
    found: Volume = mask.sum(axis=tuple(a for a in range(3) if a != axis))
    return found


def slices_through(masks: Sequence[Volume]) -> list[int]:
    """For each axis, the index of the slice that shows most of several masks, none of which is empty.

    It shows as many of them as one slice can, and of these slices it is the one with the largest areas, each compared
    with the largest area of its mask.

    Example:
        >>> mask = np.zeros((4, 5, 6), bool)
        >>> mask[1:3, 2, 3] = mask[1, 2, 4] = True
        >>> slices_through([mask])
        [1, 2, 3]
        >>> part = np.zeros_like(mask)
        >>> part[2, 2, 3] = True
        >>> slices_through([mask, part])
        [2, 2, 3]
    """
    found = []
    for axis in range(3):
        sizes = np.array([areas(mask, axis) for mask in masks])
        shares = sizes / sizes.max(axis=1, keepdims=True)
        found.append(int(np.argmax((sizes > 0).sum(axis=0) * (len(sizes) + 1) + shares.sum(axis=0))))
    return found


def plane_of(volume: Volume, axis: int, position: int) -> Volume:
    """A slice of a volume in LPS order, in the radiological convention."""
    # The rows of an axial slice run to the back, as they should. Those of other slices run up, so they are reversed.
    plane = np.take(volume, position, axis=axis).T
    return plane if axis == 2 else plane[::-1]


def box_of(mask: Volume) -> tuple[slice, ...]:
    """The smallest box that holds a mask, bool, which is not empty."""
    box: tuple[slice, ...] = ndimage.find_objects(mask.view(np.uint8))[0]
    return box


def gray_window(image: Volume, brain: Volume) -> tuple[float, float]:
    """The values that are black and white, from the values in the whole brain."""
    low, high = np.percentile(image[brain], [1, 99.5])
    return min(float(low), 0.0), float(high)
