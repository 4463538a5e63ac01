# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Rigid registration by greedy (Yushkevich et al.), of the package picsl-greedy.

Its matrices take a point of the fixed image to the moving image, both in mm to the right, to the front and up.
"""

import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage
from scipy.special import entr
from scripts.preparation.grids import Array, Volume, angle, isotropic_grid, largest_distance, resample
from scripts.utils.errors import InputError
from scripts.utils.machine import processors

# Both images are brought to cubes of this size; finer ones take long and do not change the result.
STEP_MM = 2.0
FAST_MM = 4.0
# The images are compared up to this distance from the brain: it alone moves as one.
MARGIN_MM = 10.0
# Results of two starts on cubes of 4 mm differ by up to 1.6 mm where both are right.
SAME_MM = 2.0
# Steps on cubes of twice this size and of this size.
ITERATIONS = "100x50"
BINS = 48
PROGRAM = "import sys, picsl_greedy; picsl_greedy.Greedy3D().execute(sys.argv[1])"


def mutual_information(first: Array, second: Array) -> float:
    """Normalized mutual information of values of the same places: 1 if they are independent, 2 if they are the same.

    Example:
        >>> values, other = np.repeat(np.arange(8.0), 8), np.tile(np.arange(8.0), 8)
        >>> round(mutual_information(values, -values), 6), round(mutual_information(values, other), 6)
        (2.0, 1.0)
    """
    one, other = (np.clip(values, *np.percentile(values, [0.5, 99.5])) for values in (first, second))
    counts, _, _ = np.histogram2d(one, other, BINS)
    shares = counts / counts.sum()

    first_alone, second_alone, joint = (float(entr(share).sum()) for share in (shares.sum(1), shares.sum(0), shares))
    return (first_alone + second_alone) / joint if joint else 1.0


def coarse(volume: Volume, step: float = STEP_MM) -> Volume:
    """The volume on cubes for the registration."""
    return resample(volume, *isotropic_grid(volume, step))


def rigid(fixed: Volume, moving: Volume, start: Array | None, within: Array | None = None, freedom: int = 6) -> Array:
    """The matrix, (4, 4), from points of ``fixed`` to points of ``moving``, both on ``coarse`` grids.

    Args:
        start: a matrix; None lays the centers of both images over each other.
        within: mask of the voxels of ``fixed`` in which the images are compared.
        freedom: 6 for a rigid matrix, 12 for an affine one.

    Raises:
        InputError: greedy ends without a matrix.
    """
    with tempfile.TemporaryDirectory() as folder:
        nib.save(fixed.as_image(), Path(folder, "fixed.nii"))
        nib.save(moving.as_image(), Path(folder, "moving.nii"))
        words = f"-i fixed.nii moving.nii -o found.mat -a -dof {freedom} -m NMI -n {ITERATIONS} -V 0"
        words += f" -threads {processors()}"
        if within is not None:
            nib.save(fixed.like(within.astype(np.float32)).as_image(), Path(folder, "within.nii"))
            words += " -gm within.nii"
        if start is None:
            words += " -ia-image-centers"
        else:
            np.savetxt(Path(folder, "start.mat"), start)
            words += " -ia start.mat"
        # In a process of its own, whose end is not this one's, and whose output ("LINE SEARCH FAILED" where all is
        # well) need not be shown.
        done = subprocess.run([sys.executable, "-c", PROGRAM, words], cwd=folder, capture_output=True, text=True)
        found = Path(folder, "found.mat")
        if done.returncode or not found.is_file():
            told = (done.stderr.strip() or "no reason given").splitlines()[-1]
            raise InputError(
                f"greedy, which registers scans, failed ({told}); install it again by make install-prepare."
            )
        return np.loadtxt(found)


@dataclass(frozen=True)
class Fit:
    """A registration: the matrix, how well it fits, how well the header's places fit, and how far two starts differ.

    ``apart_mm`` is the farthest that the matrices of both starts take a point of the brain apart, and ``gain`` by how
    much the mutual information of the better one is above that of the other, in shares of its distance to 1.
    """

    matrix: Array
    information: float
    of_header: float
    apart_mm: float
    gain: float

    def described(self) -> dict[str, float]:
        """The numbers, for a record."""
        return {
            "degrees": round(angle(self.matrix), 2),
            "information": round(self.information, 4),
            "information_of_the_header": round(self.of_header, 4),
            "apart_mm": round(self.apart_mm, 2),
        }


def align(fixed: Volume, moving: Volume, brain: Array) -> Fit:
    """Register a sequence to another one of the same head.

    The header's places and the centers of the images are the starts, and the better result on cubes of 4 mm is refined
    near the brain. If the two differ much, both are refined.

    Args:
        fixed: the reference, on a ``coarse`` grid, and ``brain`` the mask of its brain.
        moving: the sequence on its own grid.
    """
    fast, fast_moving, fine = coarse(fixed, FAST_MM), coarse(moving, FAST_MM), coarse(moving)
    near = ndimage.binary_dilation(brain, iterations=round(MARGIN_MM / STEP_MM))
    points = points_of(brain, fixed.affine)

    def information(matrix: Array) -> float:
        there = resample(fine, fixed.affine, fixed.voxels.shape, matrix)
        return mutual_information(fixed.voxels[near], there.voxels[near])

    starts = [rigid(fast, fast_moving, start) for start in (np.eye(4), None)]
    if (apart := largest_distance(starts[0], starts[1], points)) > SAME_MM:
        starts = [rigid(fixed, fine, start, near) for start in starts]
        apart = largest_distance(starts[0], starts[1], points)
    else:
        starts = [rigid(fixed, fine, max(starts, key=information), near)]
    values = sorted(map(information, starts), reverse=True)
    return Fit(
        matrix=max(starts, key=information),
        information=values[0],
        of_header=information(np.eye(4)),
        apart_mm=apart,
        gain=(values[0] - values[-1]) / max(values[0] - 1, 1e-6),
    )


def points_of(mask: Array, affine: Array) -> Array:
    """Some points of a mask, (number, 3), mm."""
    index = np.argwhere(mask)[:: max(int(mask.sum()) // 500, 1)]
    points: Array = index @ affine[:3, :3].T + affine[:3, 3]
    return points
