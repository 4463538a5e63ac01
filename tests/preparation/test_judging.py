# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Each doubt stops a preparation by its kind, unless the kind is accepted, and each warning is kept."""

import numpy as np
import pytest
from scripts.data.findings import PREPARATION_DOUBTS
from scripts.preparation.grids import Volume
from scripts.preparation.judging import Judge
from scripts.preparation.registration import Fit
from scripts.utils.errors import InputError
from workflows import ROOT


def ball(radius: float, spacing: float = 4.0) -> Volume:
    x, y, z = (np.indices((64, 64, 64)) - 31.5) * spacing
    return Volume((x**2 + y**2 + z**2 < radius**2).astype(np.uint8), np.diag([spacing, spacing, spacing, 1.0]))


def turned(degrees: float) -> np.ndarray:
    matrix = np.eye(4)
    sine, cosine = np.sin(np.radians(degrees)), np.cos(np.radians(degrees))
    matrix[:2, :2] = [[cosine, -sine], [sine, cosine]]
    return matrix


def fit(degrees: float = 0, information: float = 1.06, apart: float = 0.5, gain: float = 0.0) -> Fit:
    return Fit(turned(degrees), information, 1.05, apart, gain)


DOUBTS = {
    "unlikely head size": lambda judge: judge.head(ball(180.0, 8.0), "t1ce.nii"),
    "unlikely brain size": lambda judge: judge.brain(ball(50.0), "t1ce.nii"),  # 0.5 liters
    "unlikely brain shape": lambda judge: judge.pose(0.8, np.eye(4), "t1ce.nii"),
    "ambiguous registration": lambda judge: judge.registration(fit(apart=3.0), "t2.nii"),
    "failed registration": lambda judge: judge.registration(fit(information=1.04), "t2.nii"),
}
WARNINGS = {
    "cut brain": lambda judge: judge.brain(Volume(ball(70.0).voxels[:, :, 20:], np.diag([4.0, 4, 4, 1])), "t1ce.nii"),
    "thick slices": lambda judge: judge.slices({"t2": ball(1, 6.5)}, {"t2": "t2.nii"}),
    "moved head": lambda judge: judge.registration(fit(degrees=11), "t2.nii"),
    "tilted head": lambda judge: judge.pose(0.95, turned(31), "t1ce.nii"),
    "contradicting brain masks": lambda judge: judge.masks(0.94, "flair.nii"),
}


def test_all_kinds_are_here_and_in_the_docs():
    assert tuple(DOUBTS) == PREPARATION_DOUBTS
    text = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    assert all(f"\n| {kind} | " in text for kind in (*DOUBTS, *WARNINGS))


@pytest.mark.parametrize("kind", DOUBTS)
def test_a_doubt_stops_the_case_unless_it_is_accepted(kind):
    with pytest.raises(InputError, match=rf'^t\w+\.nii: .* --accept "{kind}" goes on\.') as caught:
        DOUBTS[kind](Judge("ann"))
    assert caught.value.kind == kind and "\n" not in str(caught.value)
    accepting = Judge("ann", [kind])
    DOUBTS[kind](accepting)
    assert accepting.accepted == [kind] == [one.kind for one in accepting.found]


@pytest.mark.parametrize("kind", WARNINGS)
def test_a_warning_is_kept(kind):
    judge = Judge("ann")
    WARNINGS[kind](judge)
    assert [one.kind for one in judge.found] == [kind] and judge.accepted == []


def test_a_registration_that_fits_hardly_is_a_doubt_even_if_it_is_better_than_the_header():
    with pytest.raises(InputError, match=r"^t2\.nii: its registration to T1ce fits hardly at all; correct its header"):
        Judge("ann").registration(Fit(np.eye(4), 1.012, 1.009, 0.5, 0.0), "t2.nii")


def test_what_is_as_it_should_be_passes():
    judge = Judge("ann")
    judge.head(ball(120.0), "t1ce.nii")
    judge.brain(ball(70.0), "t1ce.nii")  # 1.4 liters
    judge.slices({"t2": ball(1, 5.5)}, {"t2": "t2.nii"})
    # Results far apart of which one fits clearly better are not ambiguous.
    judge.registration(fit(degrees=9, apart=30.0, gain=0.2), "t2.nii")
    judge.pose(0.91, turned(20), "t1ce.nii")
    judge.masks(0.97, "flair.nii")
    judge.field(0.005, "flair.nii")
    assert judge.found == []


def test_a_scan_without_a_brain_is_refused_even_if_its_size_is_accepted():
    with pytest.raises(InputError, match=r"t1ce\.nii: no brain was found"):
        Judge("ann", ["unlikely brain size"]).brain(ball(0.0), "t1ce.nii")
