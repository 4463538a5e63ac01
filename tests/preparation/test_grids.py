# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Volumes on other grids have the values that their places say."""

import numpy as np
import pytest
from scripts.preparation.grids import Volume, angle, isotropic_grid, largest_distance, resample
from scripts.preparation.scans import Scan, field_of_view, on_grid

OBLIQUE = np.array([[-0.9, 0.1, 0.3, 20], [0.05, 0.9, -0.5, -15], [-0.1, 0.1, 5.0, -30], [0, 0, 0, 1]])
TURN = np.array([[0.8, -0.6, 0, 3], [0.6, 0.8, 0, -2], [0, 0, 1, 1], [0, 0, 0, 1.0]])
SLOPE = np.array([0.3, -0.7, 0.2])


def ramp(affine: np.ndarray, shape: tuple[int, ...]) -> Volume:
    """A volume whose value is linear in mm."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    return Volume((index @ affine[:3, :3].T + affine[:3, 3]) @ SLOPE + 100, affine)


def test_a_linear_image_stays_linear_under_a_rigid_matrix():
    found = resample(ramp(OBLIQUE, (40, 42, 12)), np.diag([-1.0, -1, 1, 1]), (5, 6, 4), TURN)
    index = np.stack(np.meshgrid(*map(np.arange, (5, 6, 4)), indexing="ij"), -1) * (-1, -1, 1)
    there = index @ TURN[:3, :3].T + TURN[:3, 3]
    inside = found.voxels != 0
    assert inside.sum() > 100
    np.testing.assert_allclose(found.voxels[inside], (there @ SLOPE + 100)[inside], rtol=1e-4)


def test_cubes_cover_what_the_volume_covers():
    volume = Volume(np.zeros((30, 20, 6), np.float32), np.diag([0.5, 0.9, 5.0, 1.0]))
    affine, shape = isotropic_grid(volume, 1.5)
    assert shape == (10, 12, 20)
    np.testing.assert_allclose(np.abs(np.diag(affine)[:3]), 1.5)
    # Voxels begin half a voxel before their center; the axes run to the left, to the back and up.
    low, high = affine @ (9.5, 11.5, -0.5, 1), affine @ (-0.5, -0.5, 19.5, 1)
    np.testing.assert_allclose(low[:3], (-0.25, -0.45, -2.5), atol=1e-6)
    np.testing.assert_allclose(high[:3], (14.75, 17.55, 27.5), atol=1e-6)


def test_a_field_of_view_ends_with_its_outermost_voxels():
    volume = Volume(np.ones((4, 4, 2), np.float32), np.diag([1.0, 1.0, 5.0, 1.0]))
    fine = np.diag([1.0, 1.0, 1.0, 1.0])
    fine[2, 3] = -4
    seen = field_of_view(volume, fine, (4, 4, 14), np.eye(4))
    assert seen[1, 1].tolist() == [False] * 2 + [True] * 10 + [False] * 2  # from -2.5 mm to 7.5 mm
    assert on_grid(Scan(volume, "", "", False), fine, (4, 4, 14), np.eye(4))[1, 1].tolist() == seen[1, 1].tolist()


def test_no_background_mixes_into_a_stripped_brain():
    voxels = np.zeros((12, 3, 3), np.float32)
    voxels[4:] = 7
    scan = Scan(Volume(voxels, np.eye(4)), "", "", stripped=True)
    moved = np.eye(4)
    moved[0, 3] = 0.4
    assert on_grid(scan, moved, (11, 3, 3), np.eye(4))[:, 1, 1].tolist() == pytest.approx([0] * 4 + [7] * 7)


def test_angles_and_distances_of_matrices():
    assert angle(TURN) == pytest.approx(np.degrees(np.arccos(0.8)))
    moved = np.eye(4)
    moved[:3, 3] = (3, 0, 4)
    assert largest_distance(np.eye(4), moved, np.zeros((2, 3))) == 5
