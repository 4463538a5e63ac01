# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Varied phantoms: valid cases by their seed alone, tumors of every kind, and artifacts that do what they say."""

import numpy as np
import pytest
from scipy import ndimage
from scripts.lab.phantoms import cohort as phantom
from scripts.lab.phantoms import variety as phantom_variety
from scripts.lab.phantoms.anatomy import BOX, shape_head, smallest
from scripts.lab.phantoms.cohort import MODALITIES
from scripts.lab.phantoms.variety import KINDS, ringing, thick_slices

pytestmark = pytest.mark.slow

SEED = 3
NUMBERS = (1, 2, 3)


@pytest.fixture(scope="module")
def patients():
    return [phantom.make_patient(SEED, number, "varied") for number in NUMBERS]


def test_images_and_labels_are_those_of_brats(patients):
    for images, labels in patients:
        assert list(images) == list(MODALITIES)
        brain = images["t1"] != 0
        assert 0.5e6 < brain.sum() < 2.2e6
        for image in images.values():
            assert image.dtype == np.int16 and image.shape == (240, 240, 155)
            np.testing.assert_array_equal(image != 0, brain)
            assert image.std() > 1
        assert set(np.unique(labels)) <= {0, 1, 2, 4}
        assert (labels > 0).sum() > 1000
        assert not labels[~brain].any()


def test_a_patient_depends_on_seed_and_number_alone(patients):
    images, labels = phantom.make_patient(SEED, 2, "varied")
    np.testing.assert_array_equal(labels, patients[1][1])
    for name, image in images.items():
        np.testing.assert_array_equal(image, patients[1][0][name])
    assert not np.array_equal(labels, patients[0][1])


def test_the_edema_is_bright_in_flair_and_an_enhancing_rim_after_contrast_agent(patients):
    """Within the wide ranges, the rules of the sequences hold: the network is to learn them."""
    for images, labels in patients:
        near = ndimage.binary_dilation(labels > 0, iterations=8) & (labels == 0) & (images["flair"] != 0)
        edema = labels == 2
        if edema.sum() > 3000:
            assert np.median(images["flair"][edema]) > np.median(images["flair"][near])
        enhancing = labels == 4
        if enhancing.sum() > 1000:
            gain = [np.median(images["t1ce"][where]) / np.median(images["t1"][where]) for where in (enhancing, near)]
            assert gain[0] > 1.1 * gain[1]


def test_the_kinds_occur_as_often_as_they_should_and_lesions_lie_in_the_cerebrum():
    rng = np.random.default_rng(0)
    head = shape_head(rng)
    plans = [phantom_variety.plan_tumor(rng, head) for _ in range(120)]
    for kind, (share, core, _) in KINDS.items():
        found = [plan for plan in plans if plan.kind == kind]
        assert abs(len(found) / 120 - share) < 0.13
        assert all(core[0] <= lesion.core <= core[1] for plan in found for lesion in plan.lesions)
    totals = np.array([sum(lesion.volume for lesion in plan.lesions) for plan in plans]) / 1000
    assert totals.min() < 10 and totals.max() > 180
    assert {len(plan.lesions) for plan in plans} == {1, 2, 3}


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_enhances_as_its_name_says(kind):
    rng = np.random.default_rng(4)
    head = shape_head(rng)
    tumor = phantom_variety.plan_tumor(rng, head)
    lesion = phantom_variety.PhantomLesion(tumor.lesions[0].center, 40e3, 0.6, 0.95 if kind == "spots" else 0.5)
    tissue = phantom_variety.grow_tissue(rng, head, [lesion])
    labels = phantom_variety.grow_tumor(rng, tissue, phantom_variety.Tumor(kind, [lesion]))
    core = np.isin(labels, (1, 4))
    share = (labels == 4).sum() / core.sum()
    if kind == "none":
        assert share == 0
    elif kind == "spots":
        assert share == pytest.approx(0.05, abs=0.01)
    elif kind == "patches":
        assert share == pytest.approx(0.5, abs=0.02)
    else:
        depth = ndimage.distance_transform_edt(core)
        assert depth[labels == 4].mean() < depth[labels == 1].mean()
    assert core.sum() == pytest.approx(0.6 * 40e3, rel=0.15)
    assert (labels > 0).sum() == pytest.approx(40e3, rel=0.35)


def test_a_share_of_voxels_below_one_is_none():
    score = np.random.default_rng(0).random((6, 6, 6)).astype(np.float32)
    everywhere = np.ones(score.shape, bool)
    for count in (-20.0, 0.0, 0.9):
        assert not smallest(score, everywhere, count).any()
    chosen = smallest(score, everywhere, 20.5)
    assert chosen.sum() == 20 and score[chosen].max() < score[~chosen].min()
    assert smallest(score, everywhere, 1e9).all()


def test_no_ring_enhances_almost_completely():
    """A thick ring of a small core may, so the core is large and round, and its ring is thin next to it."""
    axis = np.arange(-25, 26)
    far = np.sqrt(axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2)
    core, flat = far < 22, np.zeros(far.shape, np.float32)
    lesion = phantom_variety.PhantomLesion((0.0, 0.0, 0.0), 40e3, 0.6, 0.5)
    shares = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        fine = rng.random(far.shape).astype(np.float32)
        shares.append((phantom_variety._enhancing(rng, "ring", lesion, core, flat, fine) & core).sum() / core.sum())
    # The ring is 1.2 to 5.5 mm of 22 mm thick, and the nodules are at most 35 % of the core.
    assert min(shares) > 0.1 and max(shares) < 0.75


def test_thick_slices_keep_the_mean_and_are_linear_between_the_slices():
    image = np.random.default_rng(0).random((24, 3, 2)).astype(np.float32)
    thick = thick_slices(image, axis=0, thickness=4.0)
    middles = thick[1:-1:4] * 0.5 + thick[2:-1:4] * 0.5  # the centers of the slices lie between two voxels
    np.testing.assert_allclose(middles[:6], image.reshape(6, 4, 3, 2).mean(axis=1), atol=0.2)
    steps = np.diff(thick, axis=0)
    np.testing.assert_allclose(steps[2:5], np.broadcast_to(steps[2], (3, 3, 2)), atol=1e-5)
    ramp = np.broadcast_to(np.arange(24, dtype=np.float32), (2, 3, 24))
    np.testing.assert_allclose(thick_slices(ramp, axis=2, thickness=3.0)[..., 1:-1], ramp[..., 1:-1], atol=1e-4)


def test_ringing_removes_high_frequencies_only():
    x = np.arange(64)
    slow, fast = (np.cos(2 * np.pi * cycles * x / 64).astype(np.float32)[:, None, None] for cycles in (4, 24))
    np.testing.assert_allclose(ringing(slow + fast, axis=0, kept=0.5), slow, atol=1e-5)


def test_filling_sulci_keeps_the_sum_of_tissues_and_the_ventricles():
    rng = np.random.default_rng(1)
    head = shape_head(rng)
    tissue = phantom_variety.grow_tissue(rng, head, [])
    filled = phantom_variety.fill_sulci(tissue, np.float32(0.25))
    np.testing.assert_allclose(filled.csf + filled.gray + filled.white, np.ones(BOX), atol=1e-5)
    inside = tissue.ventricle > 0
    np.testing.assert_array_equal(filled.csf[inside], tissue.csf[inside])
    outside = tissue.ventricle < -3
    np.testing.assert_allclose(filled.csf[outside], tissue.csf[outside] / 4, atol=1e-6)
