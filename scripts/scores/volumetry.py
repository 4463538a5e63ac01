# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Volumes, lesions and diameters of a label map.

A lesion is a connected component of the whole tumor. Voxels that share a face, an edge or a corner are neighbors
(26-connectivity), as in the lesion-wise scores of BraTS from 2023 on. Those scores first dilate the reference, so that
parts that nearly touch count as one lesion. Here nothing is dilated, and no lesion is too small to count.

Diameters are distances between centers of voxels, so a lesion of one voxel has a diameter of 0. As in RANO's
bidimensional measure, the axial diameters are the largest diameter on any axial slice, and the longest one on the same
slice that is perpendicular to it. Centers lie on a grid, so the ends of the perpendicular may differ by half a voxel
along the diameter, and its length is measured at an exact right angle. Neither needs to stay inside the lesion. Axial
slices are the planes of voxels that are nearest to axial.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from scipy.spatial import ConvexHull
from scipy.spatial.distance import cdist
from scripts.brats import EDEMA_LABEL, ET_CHANNEL, REGIONS, WT_CHANNEL
from scripts.data.regions import labels_to_regions, lesion_box

MEASURED_REGIONS = {"ET": ET_CHANNEL, "WT": WT_CHANNEL}  # the regions whose diameters are measured
# Distances that differ by less than this fraction are equal. Symmetric lesions have several largest diameters.
EQUAL = 1e-6

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Diameters:
    """Diameters of a region in mm."""

    largest_mm: float  # in three dimensions
    axial_mm: float  # on any axial slice
    perpendicular_mm: float  # at a right angle to the axial diameter, on its slice


@dataclass(frozen=True)
class Lesion:
    """A connected component of the whole tumor: the regions inside it by name.

    All parts of ET in one lesion are measured together. The diameters of an empty region are None.
    """

    volume_ml: dict[str, float]
    diameters: dict[str, Diameters | None]  # of ET and WT


@dataclass(frozen=True)
class Measures:
    """What a label map measures."""

    volume_ml: dict[str, float]  # by region
    lesion_count: int
    lesions: list[Lesion]  # the one with the largest whole tumor first


def rounded(measures: Any) -> Any:
    """``Measures``, or a part of them, for JSON, with numbers rounded to what they mean.

    Example:
        >>> rounded({"ET": 31.016000000000002, "TC": 0.0123, "WT": None, "count": 2})
        {'ET': 31.0, 'TC': 0.012, 'WT': None, 'count': 2}
    """
    if isinstance(measures, Measures):
        return rounded(asdict(measures))
    if isinstance(measures, dict):
        return {name: rounded(value) for name, value in measures.items()}
    if isinstance(measures, list):
        return [rounded(value) for value in measures]
    return round(measures, 1 if measures >= 1 else 3) if isinstance(measures, float) else measures


def voxel_volume(affine: Array) -> float:
    """Volume of a voxel in mm^3, by the matrix from indices to mm, (4, 4).

    Example:
        >>> voxel_volume(np.diag([2.0, -2.0, 2.5, 1.0]))
        10.0
    """
    first, second, third = affine[:3, :3].T
    # This product is the determinant. It is exact for axes along the coordinates, unlike numpy's function.
    return float(abs(first @ np.cross(second, third)))


def largest_mm(lesions: Sequence[Mapping[str, Any]], region: str) -> float | None:
    """The largest diameter of a region in any of the lesions of a case's JSON file; None if no lesion has the region.

    Example:
        >>> largest_mm([{"diameters": {"ET": None}}, {"diameters": {"ET": {"largest_mm": 12.5}}}], "ET")
        12.5
    """
    found = [lesion["diameters"][region] for lesion in lesions]
    return max((diameters["largest_mm"] for diameters in found if diameters), default=None)


def connected_lesions(mask: Array) -> Array:
    """The number of each voxel's lesion, int32 of shape (x, y, z), from 1 for the largest one; 0 outside the mask.

    Example:
        >>> mask = np.array([True, False, True, True]).reshape(1, 1, 4)
        >>> connected_lesions(mask).flatten().tolist()
        [2, 0, 1, 1]
    """
    found, _ = ndimage.label(mask, np.ones((3, 3, 3)))
    sizes = np.bincount(found.ravel())[1:]
    rank = np.zeros(len(sizes) + 1, np.int32)
    rank[1 + np.argsort(-sizes, kind="stable")] = np.arange(1, len(sizes) + 1)
    ranked: Array = rank[found]
    return ranked


def _corners(points: Array) -> Array:
    """The corners of the convex hull of points, (n, axes). Both ends of the largest distance are among them."""
    # Qhull needs points that fill their space, so flat ones are laid into fewer dimensions.
    centered = points - points.mean(axis=0)
    _, sizes, directions = np.linalg.svd(centered, full_matrices=False)
    flat = centered @ directions[sizes > 1e-9 * max(float(sizes[0]), 1.0)].T
    if flat.shape[1] < 2:
        along = flat.sum(axis=1)  # of a line, or of a single point
        return points[[along.argmin(), along.argmax()]]
    corners: Array = points[ConvexHull(flat).vertices]
    return corners


def _largest(points: Array, axes: Array) -> tuple[float, Array]:
    """The largest distance in mm between points, (n, axes), and all pairs that have it, (pairs, 2, 3), in mm."""
    corners = _corners(points) @ axes.T
    distances = cdist(corners, corners)
    largest = float(distances.max())
    first, second = np.nonzero(np.triu(distances >= largest * (1 - EQUAL)))
    return largest, np.stack([corners[first], corners[second]], axis=1)


def _perpendicular(points: Array, pair: Array, normal: Array, tolerance: float) -> float:
    """The longest distance at a right angle to the line through a pair, of points within a tolerance along the line.

    Args:
        points: the points of a slice in mm, (n, 3).
        pair: two of them, (2, 3).
        normal: unit vector at a right angle to the slice, (3,).
        tolerance: how far apart along the line the ends may be, in mm.
    """
    length = np.linalg.norm(pair[1] - pair[0])
    if length == 0:
        return 0.0
    along = (pair[1] - pair[0]) / length
    across = points @ np.cross(normal, along)
    positions = points @ along
    order = np.argsort(positions)
    across, positions = across[order], positions[order]
    # Each window begins at a point and holds all points up to the tolerance.
    ends = np.searchsorted(positions, positions + tolerance * (1 + EQUAL), side="right")
    windows = np.stack([np.arange(len(points)), ends], axis=1).ravel()
    padded = np.append(across, 0.0)  # reduceat takes no index behind the last value
    extent = np.maximum.reduceat(padded, windows)[::2] - np.minimum.reduceat(padded, windows)[::2]
    return float(extent.max())


def _diameters(mask: Array, affine: Array) -> Diameters | None:
    if not mask.any():
        return None
    axes = affine[:3, :3]
    surface = np.argwhere(mask & ~ndimage.binary_erosion(mask))
    largest, _ = _largest(surface, axes)
    # The axis of voxels that runs most nearly from foot to head.
    upward = int(np.flatnonzero(nib.orientations.io_orientation(affine)[:, 0] == 2)[0])
    in_plane = [axis for axis in range(3) if axis != upward]
    tolerance = max(float(np.linalg.norm(axes[:, axis])) for axis in in_plane) / 2
    normal = np.cross(*axes[:, in_plane].T)
    normal = normal / np.linalg.norm(normal)
    slices = [
        (*_largest(points, axes[:, in_plane]), points)
        for points in map(np.argwhere, np.moveaxis(mask, upward, 0))
        if len(points)
    ]
    axial = max(diameter for diameter, _, _ in slices)
    perpendicular = max(
        _perpendicular(points @ axes[:, in_plane].T, pair, normal, tolerance)
        for diameter, pairs, points in slices
        if diameter >= axial * (1 - EQUAL)
        for pair in pairs
    )
    return Diameters(largest, axial, perpendicular)


def _volumes(regions: Array, unit: float) -> dict[str, float]:
    return {name: int(np.count_nonzero(region)) * unit for name, region in zip(REGIONS, regions[1:], strict=True)}


def measure(labels: Array, affine: Array, et_label: int, edema_label: int = EDEMA_LABEL) -> Measures:
    """Measure a label map.

    Args:
        labels: the label map, (x, y, z).
        affine: matrix from indices to mm, (4, 4), in nibabel's convention: to the right, to the front and up.
        et_label: value of the enhancing tumor, 4 or 3.
        edema_label: value of edema, 2 or 1.

    Raises:
        InputError: ``et_label`` or ``edema_label`` has another value.

    Example:
        A core of two voxels lies beside edema, and an enhancing voxel lies elsewhere:

        >>> labels = np.zeros((9, 1, 1), np.uint8)
        >>> labels[:, 0, 0] = [2, 1, 1, 2, 0, 0, 0, 0, 4]
        >>> found = measure(labels, np.diag([10.0, 10.0, 10.0, 1.0]), et_label=4)
        >>> found.volume_ml
        {'ET': 1.0, 'TC': 3.0, 'WT': 5.0}
        >>> [lesion.diameters["WT"].largest_mm for lesion in found.lesions]
        [30.0, 0.0]
    """
    # torch takes neither reversed axes nor the byte order of every file.
    given = torch.from_numpy(np.ascontiguousarray(labels, np.float32))
    regions = labels_to_regions(given[lesion_box([given])], et_label, edema_label).numpy().astype(bool)
    affine = np.asarray(affine, float)
    voxel_ml = voxel_volume(affine) / 1000
    numbers = connected_lesions(regions[WT_CHANNEL])
    lesions = []
    for number, box in enumerate(ndimage.find_objects(numbers), 1):
        inside = regions[(slice(None), *box)] & (numbers[box] == number)
        diameters = {name: _diameters(inside[channel], affine) for name, channel in MEASURED_REGIONS.items()}
        lesions.append(Lesion(_volumes(inside, voxel_ml), diameters))
    return Measures(_volumes(regions, voxel_ml), len(lesions), lesions)
