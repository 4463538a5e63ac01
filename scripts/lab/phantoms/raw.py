# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Phantoms as a scanner would give them: a head around the brain, and a grid and a place for each sequence."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation
from scripts.data.images import PHANTOM_DESCRIPTION
from scripts.preparation.grids import Array, Volume, resample

# Below the brain's grid there is a neck.
NECK_MM = 60
# What is around the brain, by number, and its signal in units of the brain's median.
AIR, FLUID, BONE, MARROW, FAT, MUSCLE = range(6)
SIGNAL = {
    "t1": (0.0, 0.35, 0.1, 0.5, 1.7, 0.7),
    "t1ce": (0.0, 0.35, 0.1, 0.5, 1.7, 0.9),
    "t2": (0.0, 1.9, 0.1, 0.4, 1.2, 0.5),
    "flair": (0.0, 0.35, 0.1, 0.4, 1.2, 0.6),
}
# Voxels of each sequence, mm: a scan in three dimensions, and thick slices.
SPACING = {"t1ce": (1.0, 1.0, 1.5), "t1": (0.9, 0.9, 5.0), "t2": (0.6, 0.6, 4.0), "flair": (0.9, 0.9, 5.5)}
NOISE = 0.03


@dataclass(frozen=True)
class RawPhantom:
    """The scans of a phantom, its label map and brain on the grid of T1ce, and how its head moved.

    ``to_scan`` are the matrices, (4, 4), from mm of T1ce to mm of each sequence, and ``to_prepared`` the one from mm of
    T1ce to mm of the phantom as it was made.
    """

    scans: dict[str, Volume]
    label: Volume
    brain: Volume
    to_scan: dict[str, Array]
    to_prepared: Array


def rigid_matrix(rng: np.random.Generator, degrees: float, mm: float, center: Array) -> Array:
    """A random rigid matrix that turns by up to these degrees about a center, and moves by up to these mm."""
    axis, way = rng.normal(size=(2, 3))
    matrix = np.eye(4)
    turn = np.radians(rng.uniform(0, degrees)) * axis / np.linalg.norm(axis)
    matrix[:3, :3] = Rotation.from_rotvec(turn).as_matrix()
    matrix[:3, 3] = center - matrix[:3, :3] @ center + rng.uniform(0, mm) * way / np.linalg.norm(way)
    return matrix


def head_around(brain: Array) -> Array:
    """What is around a brain, (x, y, z) at 1 mm in LPS order: skull, scalp, eyes and neck, uint8."""
    small = brain[::2, ::2, ::2]
    far = 2 * ndimage.distance_transform_edt(~ndimage.binary_closing(small, iterations=4)).astype(np.float32)
    distance = ndimage.zoom(far, [n / s for n, s in zip(brain.shape, far.shape, strict=True)], order=1)
    where = np.argwhere(small) * 2.0
    center, low, high = where.mean(0), where.min(0), where.max(0)
    x, y, z = np.ogrid[tuple(slice(n) for n in brain.shape)]
    neck = ((x - center[0]) ** 2 + ((y - center[1] - 10) / 1.1) ** 2 < 55**2) & (z < low[2] + 35)
    head = (distance < 14) & (z > low[2] - 25)
    found = np.where(head | neck, MUSCLE, AIR).astype(np.uint8)
    found[(distance >= 8) & head] = FAT
    found[(distance >= 2) & (distance < 8)] = BONE
    found[(distance >= 4) & (distance < 6)] = MARROW
    found[distance < 2] = FLUID
    airway = (x - center[0]) ** 2 + (y - center[1] + 15) ** 2 < 9**2
    found[airway & (z < low[2] + 5) & (distance > 2)] = AIR
    for side in (-32, 32):
        eye = (x - center[0] - side) ** 2 + (y - low[1] - 4) ** 2 + (z - low[2] - 0.3 * (high[2] - low[2])) ** 2
        found[(eye < 15**2) & ~brain] = FAT
        found[(eye < 12**2) & ~brain] = FLUID
    return found


def raw_phantom(
    images: Mapping[str, Array],
    label: Array,
    affine: Array,
    rng: np.random.Generator,
    degrees: float = 15.0,
    mm: float = 15.0,
    spacing: Mapping[str, tuple[float, float, float]] = SPACING,
) -> RawPhantom:
    """A phantom in raw form.

    Args:
        images: sequences of a prepared phantom, (x, y, z) at 1 mm in LPS order, and its ``label`` map.
        degrees: the head turns by up to so much between sequences, and moves by up to so many ``mm``.
    """
    brain = ndimage.binary_fill_holes(next(iter(images.values())) != 0)
    below = ((0, 0), (0, 0), (NECK_MM, 0))
    inside = np.pad(brain, below)
    around = head_around(inside)
    moved = affine.copy()
    moved[:3, 3] -= NECK_MM * affine[:3, 2]
    index = np.argwhere(brain)[::50]
    center = (index @ affine[:3, :3].T + affine[:3, 3]).mean(0)
    to_scan = {name: rigid_matrix(rng, degrees, mm, center) for name in images}
    scans, maps = {}, []
    for name, image in images.items():
        size = np.array(spacing[name])
        # A field of view of 230 mm, and of 150 mm along the slices, which cuts the neck and may cut the vertex.
        shape = np.ceil(np.array([230, 250, 150]) / size).astype(int)
        grid = np.diag([-size[0], -size[1], size[2], 1.0])
        grid[:3, 3] = center - grid[:3, :3] @ ((shape - 1) / 2) + (0, 0, 5)
        own = np.pad(image / np.median(image[brain]), below)
        head = Volume(np.where(inside, own, np.array(SIGNAL[name])[around]).astype(np.float32), moved)
        to_head = np.linalg.inv(to_scan[name])
        # A slice is the mean over its thickness.
        steps = max(round(float(size[2]) / 1.5), 1)
        voxels = np.zeros(tuple(shape), np.float32)
        for step in range(steps):
            shift = np.eye(4)
            shift[2, 3] = (step + 0.5) / steps - 0.5
            voxels += resample(head, grid @ shift, tuple(shape), to_head).voxels / steps
        noise = rng.normal(0, NOISE, (2, *shape)).astype(np.float32)
        scale = rng.uniform(300, 600)
        scans[name] = Volume(np.rint(scale * np.hypot(voxels + noise[0], noise[1])).astype(np.int16), grid)
        if name == "t1ce":
            maps = [
                resample(Volume(one.astype(np.float32), affine), grid, tuple(shape), to_head, order=0).voxels
                for one in (label, brain)
            ]
    back = np.linalg.inv(to_scan["t1ce"])
    grid = scans["t1ce"].affine
    return RawPhantom(
        scans=scans,
        label=Volume(maps[0].astype(np.uint8), grid),
        brain=Volume(maps[1], grid),
        to_scan={name: matrix @ back for name, matrix in to_scan.items()},
        to_prepared=back,
    )


def save_raw(phantom: RawPhantom, folder: Path) -> Path:
    """Write the scans of a phantom as the files of a case to a new folder, and return it."""
    folder.mkdir(parents=True)
    for name, scan in phantom.scans.items():
        image = scan.as_image()
        image.header["descrip"] = PHANTOM_DESCRIPTION.encode()
        nib.save(image, folder / f"{folder.name}_{name}.nii.gz")
    return folder
