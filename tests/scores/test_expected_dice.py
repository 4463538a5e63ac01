# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
import json

import numpy as np
import pytest
from scripts.brats import REGIONS
from scripts.scores.certainty import INTENSITIES
from scripts.scores.expected_dice import Case, calibrate, expect, fitting, judge, probability_of_any_et
from scripts.utils.errors import InputError

KIND = {"flips": 8, "windows": "BrainWindowInferer", "absent": 0, "voxel_mm_smallest": 1.0, "voxel_mm_largest": 1.0}


def made_up(count, seed=0, noise=0.05):
    """Cases whose Dice follows from a hidden quality; soft Dice and disagreement show it, other signs are chance."""
    random = np.random.default_rng(seed)
    cases = []
    for number in range(count):
        signs = dict(KIND) | {name: random.normal() for name in INTENSITIES}
        dice = {}
        any_et = random.random() > 0.2
        for region in REGIONS:
            quality = random.random()
            dice[region] = float(np.clip(0.3 + 0.65 * quality + noise * random.normal(), 0, 1))
            signs |= {
                f"soft_dice_{region}": 0.5 + 0.5 * quality + 0.02 * random.normal(),
                f"volume_{region}": random.uniform(1, 80),
                f"probable_{region}": random.uniform(5, 80) if any_et else 0.001,
                f"surface_per_volume_{region}": random.uniform(0.2, 1),
                f"border_entropy_{region}": random.uniform(0.3, 0.6),
                f"flip_disagreement_{region}": 0.2 - 0.15 * quality + 0.02 * random.normal(),
            }
        cases.append(Case(f"case_{number}", signs, dice, any_et))
    return cases


def test_expected_dice_follows_the_real_one():
    cases = made_up(120)
    judged = judge([cases[start::4] for start in range(4)])
    for region in REGIONS:
        assert judged[region].rho > 0.9
        assert 0.7 <= judged[region].inside <= 0.9
        errors = [judged[region].expected[name].dice - real for name, real in judged[region].real.items()]
        assert abs(np.mean(errors)) < 0.02
        assert np.abs(errors).max() < 0.3


def test_signs_that_say_nothing_make_wide_intervals_around_the_mean():
    cases = made_up(80)
    shuffled = np.random.default_rng(1).permutation(len(cases))
    random = [
        Case(case.name, cases[other].signs, case.dice, case.any_et) for case, other in zip(cases, shuffled, strict=True)
    ]
    numbers = calibrate(random)
    for case in random:
        told = expect(numbers, case.signs)["WT"]
        assert told.low <= told.dice <= told.high
    widths = [expect(numbers, case.signs)["WT"] for case in random]
    assert np.mean([told.high - told.low for told in widths]) > 0.35


def test_more_certain_signs_never_lower_the_expected_dice():
    numbers = calibrate(made_up(60))
    signs = made_up(1, seed=9)[0].signs
    found = [expect(numbers, {**signs, "soft_dice_TC": value})["TC"] for value in np.linspace(0.2, 1, 40)]
    for name in ("dice", "low", "high"):
        assert (np.diff([getattr(told, name) for told in found]) >= 0).all()
    assert found[0].dice < found[-1].dice
    found = [expect(numbers, {**signs, "flip_disagreement_TC": value})["TC"].dice for value in np.linspace(0, 1, 40)]
    assert (np.diff(found) <= 0).all()


def test_without_flips_their_term_is_absent():
    def still(case):
        signs = {name: value for name, value in case.signs.items() if not name.startswith("flip")} | {"flips": 0}
        return Case(case.name, signs, case.dice, case.any_et)

    numbers = calibrate([still(case) for case in made_up(60)])
    assert numbers["flips"] == 0
    assert numbers["regions"]["WT"]["weights"]["flip_disagreement"] == 0
    assert numbers["regions"]["WT"]["weights"]["soft_dice"] > 0.1


def test_the_numbers_are_plain_and_give_the_same_from_json():
    cases = made_up(40)
    numbers = calibrate(cases)
    again = json.loads(json.dumps(numbers, allow_nan=False))
    texts = {name: str(value) for name, value in cases[3].signs.items()}  # as in a CSV file
    assert expect(again, texts) == expect(numbers, cases[3].signs)


def test_an_empty_et_is_right_where_there_is_likely_none():
    cases = made_up(100)
    numbers = calibrate(cases)
    signs = cases[0].signs | {"volume_ET": 0.0}
    likely, unlikely = signs | {"probable_ET": 40.0}, signs | {"probable_ET": 0.0}
    assert probability_of_any_et(numbers, likely) > 0.95
    assert probability_of_any_et(numbers, unlikely) < 0.1
    assert expect(numbers, unlikely)["ET"].dice == pytest.approx(1 - probability_of_any_et(numbers, unlikely))
    assert expect(numbers, unlikely)["ET"].low == 1
    assert expect(numbers, likely)["ET"].high == 0


@pytest.mark.parametrize(
    "change",
    [
        {"flips": 0},
        {"windows": "WholeVolumeInferer"},
        {"absent": 1},
        {"voxel_mm_largest": 5.5},
        {"voxel_mm_smallest": 0.5},
    ],
)
def test_a_calibration_holds_for_runs_of_its_kind_only(change):
    cases = made_up(40)
    numbers = calibrate(cases)
    assert fitting([numbers], cases[0].signs) is numbers
    assert fitting([numbers], {**cases[0].signs, **change}) is None
    assert fitting([], cases[0].signs) is None


def test_a_region_is_reliable_from_where_similar_results_were_good():
    cases = made_up(200, noise=0.02)
    numbers = calibrate(cases)
    bound = numbers["regions"]["WT"]["reliable_from"]
    told = np.array([expect(numbers, case.signs)["WT"].dice for case in cases])
    good = np.array([case.dice["WT"] >= 0.5 for case in cases])
    share = {value: good[np.argsort(np.abs(told - value))[:67]].mean() for value in (bound, bound - 0.05)}
    assert share[bound] == pytest.approx(0.8, abs=0.05) and share[bound - 0.05] < 0.8
    assert good[told >= bound].all()


@pytest.mark.parametrize(
    ("cases", "error"),
    [
        (made_up(19), "^19 cases: a calibration needs 20 at least"),
        (
            [*made_up(20), Case("odd", {**made_up(1)[0].signs, "flips": 0}, {}, True)],
            "^case_0 and odd were segmented in diff",
        ),
        (
            [Case(c.name, {**c.signs, "volume_ET": 0.0}, c.dice, c.any_et) for c in made_up(30)],
            "^ET was found in 0 cases",
        ),
    ],
)
def test_what_cannot_be_calibrated_is_refused(cases, error):
    with pytest.raises(InputError, match=error):
        calibrate(cases)
