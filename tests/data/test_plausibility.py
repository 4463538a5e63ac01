# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""What images and headers say about each other, in closed form; test_inspection.py has the findings of whole cases."""

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage
from scripts.data.plausibility import LARGEST_SHELL_ML, background_of, shell_ml, shift_back


def test_the_lowest_fifth_of_a_brain_is_compared_with_the_whole():
    brain = np.zeros((30, 40, 30), bool)
    brain[5:25, 5:35, 10:25] = True
    # Of 15 slices, 3 are the lowest fifth. The next two lie in front, and count for the whole alone.
    brain[:, 15:, 10:13] = brain[:, :25, 13:15] = False
    center = (3 * 10 * 9.5 + 2 * 10 * 29.5 + 10 * 30 * 19.5) / (3 * 10 + 2 * 10 + 10 * 30)
    shift = (center - 9.5) / 30
    assert shift_back(brain, np.eye(4)) == pytest.approx(shift)
    # Turned round about the vertical axis, the same part is in front.
    assert shift_back(brain, np.diag([-1, -1, 1, 1])) == pytest.approx(-shift)
    assert shift_back(brain[:6, :, 20:], np.eye(4)) is None


# Heads round a phantom: how much of the surface is left, width of the gap, value in it (of the brain's median; 0 is
# exactly 0, as where a threshold was set), thickness of the shell and its value.
HEADS = [
    ("full", 6, 0, 6, 1.2),
    ("full", 6, 0.15, 6, 1.2),
    ("full", 6, 0, 3, 1.2),
    ("full", 4, 0.2, 3, 1.2),
    ("full", 6, 0, 10, 2.0),
    ("full", 6, 0.1, 6, 0.6),
    ("full", 6, 0, 6, 0.6),
    ("full", 4, 0, 6, 1.2),
    ("full", 4, 0, 4, 0.8),
    ("full", 10, 0.2, 6, 1.2),
    ("full", 8, 0.2, 15, 1.2),
    ("full", 5, 0.1, 5, 1.5),
    ("top", 6, 0, 6, 1.2),
    ("top", 6, 0.2, 4, 1.2),
    ("bottom", 6, 0, 6, 1.2),
    ("bottom", 8, 0.1, 6, 0.8),
    ("right", 6, 0.1, 6, 1.2),
    ("front", 6, 0, 6, 1.2),
    ("crown", 6, 0, 6, 1.2),
    ("crown", 6, 0.2, 4, 1.2),
]


@pytest.fixture(scope="module")
def brain(cohort):
    """T1 of a phantom at 2 mm, with room for a head."""
    image = nib.load(next(cohort.rglob("*_001_t1.nii.gz")))
    return np.pad(np.asanyarray(image.dataobj).astype(np.float32), 14), image.affine


def test_a_stripped_brain_has_no_shell(brain):
    voxels, affine = brain
    assert shell_ml(voxels, voxels != 0, affine) < LARGEST_SHELL_ML / 2
    # An offset and a scale change nothing.
    moved = np.where(voxels != 0, 1000 + 3 * voxels, 0)
    assert shell_ml(moved, voxels != 0, affine) == shell_ml(voxels, voxels != 0, affine)


@pytest.mark.parametrize(("covered", "gap", "dark", "thick", "bright"), HEADS)
def test_every_head_is_found_by_its_shell(brain, covered, gap, dark, thick, bright):
    voxels, affine = brain
    inside = voxels != 0
    level = float(np.median(voxels[inside]))
    distance = ndimage.distance_transform_edt(~inside, sampling=2.0)
    place = nib.affines.apply_affine(affine, np.moveaxis(np.indices(voxels.shape), 0, -1))
    right, front, up = np.moveaxis(place - place[inside].mean(0), -1, 0)
    there = {
        "full": up == up,
        "top": up > 0,
        "bottom": up < 0,
        "right": right > 0,
        "front": front > 20,
        "crown": up > up[inside].max() - 25,
    }[covered]
    noise = np.random.default_rng(0).normal(1, 0.15, voxels.shape)
    head = voxels.copy()
    bone, scalp = (distance > 0) & (distance <= gap) & there, (distance > gap) & (distance <= gap + thick) & there
    head[bone], head[scalp] = dark * level * noise[bone], bright * level * noise[scalp]
    assert shell_ml(head, head != 0, affine) > LARGEST_SHELL_ML


def test_a_background_is_the_value_of_the_corners_and_of_a_fifth():
    voxels = np.full((10, 10, 10), -1000.0)
    voxels[2:8, 2:8, 2:8] = 5
    assert background_of(voxels) == -1000
    assert background_of(voxels + 1000) == 0
    voxels[0, 0, 0] = 1
    assert background_of(voxels) == 0
    noise = np.random.default_rng(0).normal(size=(10, 10, 10))
    noise[np.ix_((0, -1), (0, -1), (0, -1))] = 3
    assert background_of(noise) == 0
