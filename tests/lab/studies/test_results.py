# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The tables of a study, on scores that are known."""

import math
from pathlib import Path

import pytest
from scripts.lab.studies.execution import Job
from scripts.lab.studies.plan import Part, Run, Variant
from scripts.lab.studies.results import COLUMNS, Result, by_seed, complexity, differences, markdown
from scripts.networks import PriorAttentionNet
from workflows import CHANNELS

PART = Part("", [{"case": "a"}], [], [{"case": "d"}, {"case": "e"}])


def result(folder: Path, name: str, seed: int, *dice: float) -> Result:
    """A run in which each unseen case has the same Dice in all regions."""
    job = Job(Run(Variant(name, name, (), {}, (seed,)), seed, PART, (), {"max_epochs": 2}), folder, Path("/data"))
    scores = {
        case: {column: value if column.startswith("dice") else 10 * value for column in COLUMNS}
        for case, value in zip("de", dice, strict=True)
    }
    return Result(job, scores, ([1, 2], [0.25, 0.75]))


def test_means(tmp_path):
    one = result(tmp_path, "unet", 0, 0.5, 0.75)
    assert one.means == {"dice": 0.625, **{c: 0.625 if c.startswith("dice") else 6.25 for c in COLUMNS}}
    assert one.curve_mean == 0.5


def test_differences_are_those_of_the_same_seeds_and_cases(tmp_path):
    first = by_seed([result(tmp_path, "panet", 0, 0.5, 0.75), result(tmp_path, "panet", 1, 0.75, 0.75)])
    # The second seed of the first variant has no partner.
    assert differences(by_seed([result(tmp_path, "unet", 0, 0.25, 0.75)]), first)["dice"] == [-0.25, 0.0]
    others = [result(tmp_path, "unet", 0, 0.25, 0.75), result(tmp_path, "unet", 1, 0.75, 1.0)]
    found = differences(by_seed(others), first)
    assert found["dice"] == found["dice_ET"] == [-0.125, 0.125]
    assert found["hd95_WT"] == [-1.25, 1.25]


def test_complexity_is_that_of_the_variants_network():
    settings = {"network_def#channels": CHANNELS, "roi_size": [32, 32, 32]}
    parameters, flops = complexity([], settings)
    assert parameters == sum(p.numel() for p in PriorAttentionNet(channels=CHANNELS).parameters())
    plain, fewer = complexity([], {**settings, "network_def#prior_attention": False})
    assert plain < parameters and fewer < flops
    # Twice the window has eight times the operations, but for the borders.
    assert complexity([], {**settings, "roi_size": [64, 64, 64]})[1] == pytest.approx(8 * flops, rel=0.01)


def test_the_table_for_readers_has_the_curve_if_there_is_one(tmp_path):
    numbers = {f"{column}{end}": 0.5 for column in ("dice", *COLUMNS) for end in ("", "_difference", "_low", "_high")}
    row = {"seeds": 1, "parameters": 1500000, "flops": 2e9, "training_seconds": 7, "dice_sd": math.nan, **numbers}
    runs = [result(tmp_path, "unet", 0, 0.5, 0.75)]
    text, _, head, _, line = markdown({"unet": {**row, "curve": 0.25}}, {"unet": "U-Net"}, runs).splitlines()
    assert "over 2 unseen cases" in text and "The mean of the curve is" in text
    cells = ["U-Net", "1", *["0.500"] * 4, "+0.500 (+0.500 to +0.500)", *["0.5"] * 3]
    assert line.strip("| ").split(" | ") == [*cells, "0.250", "1.500", "2.00", "7"]
    text, _, less, _, line = markdown({"unet": {**row, "curve": math.nan}}, {"unet": "U-Net"}, runs).splitlines()
    assert "curve" not in text + less and head.replace(" mean of the curve |", "") == less
    assert line.strip("| ").split(" | ") == [*cells, "1.500", "2.00", "7"]
