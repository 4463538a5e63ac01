# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The preparation of one patient's scans: brain, registration, pose, resampling, and what is written of it."""

import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import ndimage
from scripts.brats import REFERENCE
from scripts.preparation import packages, pose
from scripts.preparation.brain import BrainFinder
from scripts.preparation.grids import Array, Volume, resample
from scripts.preparation.judging import Judge
from scripts.preparation.registration import FAST_MM, align, coarse
from scripts.preparation.scans import PREPARED, WITH_SKULL, Scan, field_of_view, kind_of, on_grid
from scripts.utils.errors import InputError


@dataclass
class Preparation:
    """The scans of a case and where their brain lies.

    Attributes:
        scans: by sequence.
        kind: how far they were prepared (``scans.kind_of``).
        brain: mask on the grid of T1ce, uint8.
        to_scan: matrix, (4, 4), from mm of T1ce to mm of each sequence.
        pose: matrix from mm of the prepared grid to mm of T1ce.
        affine: of the prepared grid, and its ``shape``.
    """

    case: str
    scans: dict[str, Scan]
    kind: str
    brain: Volume
    to_scan: dict[str, Array]
    pose: Array
    affine: Array
    shape: tuple[int, ...]
    judge: Judge
    seconds: dict[str, float] = field(default_factory=dict)
    measured: dict[str, Any] = field(default_factory=dict)

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Add the time of a block to the seconds of a step."""
        start = time.perf_counter()
        yield
        self.seconds[step] = round(self.seconds.get(step, 0) + time.perf_counter() - start, 2)

    def image(self, sequence: str) -> Volume:
        """A prepared sequence, float32: by one interpolation, 0 outside the brain."""
        return Volume(self.at(sequence, self.pose, self.affine, self.shape), self.affine)

    def at(self, sequence: str, to_reference: Array, affine: Array, shape: tuple[int, ...]) -> Array:
        """A sequence inside the brain, on a grid whose mm ``to_reference`` takes to those of T1ce."""
        found = on_grid(self.scans[sequence], affine, shape, self.to_scan[sequence] @ to_reference)
        return np.where(self.brain_on(affine, shape, to_reference), found, 0)

    def brain_on(self, affine: Array, shape: tuple[int, ...], to_reference: Array) -> Array:
        """The mask of the brain on such a grid. There is none outside the field of view of T1ce."""
        found = resample(self.brain, affine, shape, to_reference, mode="nearest").voxels >= 0.5
        return found & field_of_view(self.brain, affine, shape, to_reference)


def prepare_scans(
    case: str, scans: dict[str, Scan], accept: Collection[str] = (), find_brain: Any = None
) -> Preparation:
    """Prepare the scans of a case (``scans.read_scans``).

    Args:
        case: its name.
        scans: by sequence.
        accept: kinds of doubts that do not stop the preparation.
        find_brain: gives the probability of brain in a head, by default HD-BET's network.

    Raises:
        InputError: the scans are prepared already, a package is missing, or a doubt was not accepted.
    """
    packages.refuse_missing()
    reference = scans[REFERENCE]
    grid = reference.volume
    files = {name: scan.file for name, scan in scans.items()}
    same = {name: np.eye(4) for name in scans}
    kind = kind_of(scans)
    if kind == PREPARED:
        raise InputError(f"{reference.file}: prepared already (one grid of 1 mm, no skull); segment it as it is.")
    # What follows fills in the brain, the matrices and the pose.
    judge = Judge(case, accept)
    prepared = Preparation(case, scans, kind, reference.brain, same, np.eye(4), grid.affine, grid.voxels.shape, judge)
    measured = prepared.measured
    for scan in scans.values():
        for doubt in scan.doubts:
            judge.warn(*doubt)
    judge.head(grid, reference.file)
    judge.slices({name: scan.volume for name, scan in scans.items()}, files)
    if not reference.stripped:
        with prepared.timed("brain"):
            find_brain = find_brain or BrainFinder()
            prepared.brain = on_reference(find_brain(grid), grid)
    judge.brain(prepared.brain, reference.file)
    with prepared.timed("pose"):
        small = coarse(grid, FAST_MM)
        inside = resample(prepared.brain, small.affine, small.voxels.shape).voxels >= 0.5
        to_template, measured["shape_dice"] = pose.to_template(small.like(np.where(inside, small.voxels, 0)), inside)
        from_brats = np.linalg.inv(to_template) @ pose.BRATS_TO_TEMPLATE
        judge.pose(measured["shape_dice"], from_brats, reference.file)
    if prepared.kind != WITH_SKULL:
        with prepared.timed("registration"):
            prepared.to_scan = {**same, **register(scans, prepared.brain, judge, measured)}
    prepared.brain = whole_brain(prepared)
    inside, shape = prepared.brain.voxels > 0, grid.voxels.shape
    for name, scan in scans.items():
        seen = field_of_view(scan.volume, grid.affine, shape, prepared.to_scan[name])
        judge.field(float((inside & ~seen).sum() / inside.sum()), scan.file)
    second = next((name for name in ("flair", "t2", "t1") if name in scans and not scans[name].stripped), None)
    if find_brain is not None and second is not None:
        with prepared.timed("brain in a second sequence"):
            measured["dice_of_masks"] = dice_of_masks(prepared, second, find_brain(scans[second].volume))
            judge.masks(measured["dice_of_masks"], scans[second].file)
    if prepared.kind != WITH_SKULL:
        prepared.pose, prepared.affine, prepared.shape = from_brats, pose.AFFINE, pose.SHAPE
    return prepared


def whole_brain(prepared: Preparation) -> Volume:
    """The mask of the brain without holes, uint8. A stripped brain is what is not 0 in any sequence."""
    brain = prepared.brain.voxels > 0
    if prepared.scans[REFERENCE].stripped:
        for name, scan in prepared.scans.items():
            if scan.stripped:
                brain |= resample(scan.brain, prepared.brain.affine, brain.shape, prepared.to_scan[name]).voxels >= 0.5
    return prepared.brain.like(ndimage.binary_fill_holes(brain).astype(np.uint8))


def dice_of_masks(prepared: Preparation, sequence: str, probability: Volume) -> float:
    """Dice of the brain with the one that was found in another sequence, in the field of view of both."""
    grid, matrix = prepared.brain, prepared.to_scan[sequence]
    found = resample(probability, grid.affine, grid.voxels.shape, matrix).voxels >= 0.5
    own = (grid.voxels > 0) & field_of_view(prepared.scans[sequence].volume, grid.affine, grid.voxels.shape, matrix)
    return round(float(2 * (found & own).sum() / max(found.sum() + own.sum(), 1)), 4)


def on_reference(probability: Volume, reference: Volume) -> Volume:
    """The mask of the brain on the grid of a sequence, uint8."""
    found = resample(probability, reference.affine, reference.voxels.shape, mode="nearest").voxels >= 0.5
    return reference.like(found.astype(np.uint8))


def register(scans: Mapping[str, Scan], brain: Volume, judge: Judge, measured: dict[str, Any]) -> dict[str, Array]:
    """The matrices from mm of T1ce to mm of the other sequences."""
    fixed = coarse(scans[REFERENCE].volume)
    mask = resample(brain, fixed.affine, fixed.voxels.shape).voxels >= 0.5
    found = {}
    for name, scan in scans.items():
        if name != REFERENCE:
            fit = align(fixed, scan.volume, mask)
            judge.registration(fit, scan.file)
            found[name] = fit.matrix
            measured[f"registration_{name}"] = fit.described()
    return found
