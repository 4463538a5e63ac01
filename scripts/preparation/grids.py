# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Volumes in space: axes, resampling and rigid matrices. All places are in mm to the right, to the front and up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scripts.data.images import in_lps
from scripts.data.placement import image_at
from scripts.scores.volumetry import voxel_volume

Array = npt.NDArray[Any]

# What ITK, ANTs and 3D Slicer call LPS: to the left, to the back and up.
RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Volume:
    """Voxels, (x, y, z), and the affine, (4, 4), from indices to mm."""

    voxels: Array
    affine: Array

    @property
    def spacing(self) -> Array:
        """Size of a voxel along each axis, mm."""
        sizes: Array = nib.affines.voxel_sizes(self.affine)
        return sizes

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel in ml."""
        return voxel_volume(self.affine) / 1000

    def like(self, voxels: Array) -> Volume:
        """Other voxels on this grid."""
        return Volume(voxels, self.affine)

    def as_image(self) -> nib.Nifti1Image:
        """The volume as an image."""
        return image_at(self.voxels, self.affine)


def isotropic_grid(volume: Volume, spacing: float) -> tuple[Array, tuple[int, ...]]:
    """Affine and shape of a grid of cubes, of ``spacing`` mm, that covers a volume along its axes, in LPS order."""
    image = in_lps(nib.Nifti1Image(np.broadcast_to(np.uint8(0), volume.voxels.shape), volume.affine))
    sizes = nib.affines.voxel_sizes(image.affine)
    shape = tuple(int(n) for n in np.maximum(np.round(np.array(image.shape) * sizes / spacing), 1))
    scaled = np.diag([*(spacing / sizes), 1.0])
    scaled[:3, 3] = 0.5 * spacing / sizes - 0.5
    return image.affine @ scaled, shape


def resample(
    volume: Volume,
    affine: Array,
    shape: Sequence[int],
    to_volume: Array | None = None,
    order: int = 1,
    mode: str = "constant",
) -> Volume:
    """A volume on another grid, by one interpolation, float32; what lies outside the volume is 0.

    Args:
        affine: of the new grid, and its ``shape``.
        to_volume: matrix, (4, 4), from mm of the new grid to mm of the volume; None if both lie in one space.
        order: 1 interpolates linearly, 0 takes the nearest voxel.
    """
    index = np.linalg.inv(volume.affine) @ (np.eye(4) if to_volume is None else to_volume) @ affine
    voxels = volume.voxels.astype(np.float32, copy=False)
    found = ndimage.affine_transform(voxels, index[:3, :3], index[:3, 3], tuple(shape), order=order, mode=mode)
    return Volume(found, affine)


def angle(matrix: Array) -> float:
    """Angle of the rotation of a rigid matrix, degrees."""
    cosine = (np.trace(matrix[:3, :3]) - 1) / 2
    return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))


def largest_distance(first: Array, second: Array, points: Array) -> float:
    """The farthest, mm, that two matrices take one of these points, (number, 3), apart."""
    apart = np.c_[points, np.ones(len(points))] @ (first - second).T
    return float(np.linalg.norm(apart[:, :3], axis=1).max())
