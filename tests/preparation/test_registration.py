# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Registration finds how the head of a phantom moved, from random poses."""

import numpy as np
import pytest
from raw_phantoms import raw
from scripts.preparation import registration
from scripts.preparation.grids import Volume, angle, largest_distance, resample
from scripts.preparation.registration import align, coarse, mutual_information, points_of, rigid
from scripts.utils.errors import InputError


def errors(seed: int, names: tuple[str, ...]) -> list[tuple[float, float]]:
    """For each sequence, how far the registration is off in the brain, mm, and its angle, degrees."""
    phantom = raw(seed, degrees=15, mm=20)  # between two sequences up to twice as much
    fixed = coarse(phantom.scans["t1ce"])
    brain = resample(phantom.brain, fixed.affine, fixed.voxels.shape).voxels > 0.5
    points = points_of(brain, fixed.affine)
    found = []
    for name in names:
        fit, true = align(fixed, phantom.scans[name], brain), phantom.to_scan[name]
        assert fit.information > fit.of_header
        found.append((largest_distance(fit.matrix, true, points), angle(fit.matrix @ np.linalg.inv(true))))
    return found


@pytest.mark.slow
def test_two_random_poses_are_found():
    pytest.importorskip("picsl_greedy")
    assert np.max(errors(0, ("t2", "flair")), axis=0) == pytest.approx((0, 0), abs=1)


@pytest.mark.lab
def test_thirty_random_poses_are_found():
    pytest.importorskip("picsl_greedy")
    assert np.max([errors(seed, ("t1", "t2", "flair")) for seed in range(10)], axis=(0, 1)) == pytest.approx(
        (0, 0), abs=1
    )


def test_mutual_information_does_not_depend_on_the_contrast():
    rng = np.random.default_rng(0)
    values = rng.normal(size=20000)
    noise = rng.normal(size=20000)
    same, other = mutual_information(values, 5 - 3 * values), mutual_information(values, noise)
    assert same > 1.9 and other < 1.05 and other < mutual_information(values, values + noise) < same


def test_a_failure_of_greedy_is_one_line(monkeypatch):
    monkeypatch.setattr(registration, "PROGRAM", "raise RuntimeError('no license')")
    with pytest.raises(
        InputError, match=r"^greedy, which registers scans, failed \(RuntimeError: no license\); install"
    ):
        rigid(*[Volume(np.ones((4, 4, 4), np.float32), np.eye(4))] * 2, None)
