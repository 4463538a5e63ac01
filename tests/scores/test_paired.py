# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Evaluations are compared case by case, and what cannot be compared is refused in one line."""

import csv
import math

import numpy as np
import pytest
from matplotlib.image import imread
from scipy.stats import binom, wilcoxon
from scripts import compare as command
from scripts.scores.paired import compare, csv_rows, paired, read_evaluations
from scripts.utils.errors import InputError

REGIONS = ("ET", "TC", "WT")
MEASURES = ("dice", "hd95")
CASES = [f"P{number}" for number in range(12)]


def write(folder, seed=0, cases=CASES, measures=MEASURES, shift=0.0, volumes=1.0):
    """Write the ``scores.csv`` of a run, with dice + ``shift`` and volumes of the reference."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    columns = [f"{measure}_{region}" for measure in measures for region in REGIONS]
    path = folder / "scores.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["case", *columns, *(f"reference_volume_{region}" for region in REGIONS)])
        for case in cases:
            values = [generator.uniform(0.2, 0.8) + shift for _ in columns]
            writer.writerow([case, *(f"{value:.4f}" for value in values), *[f"{volumes:.4f}"] * 3])
    return path


# Paired differences.


def test_the_test_is_that_of_signed_ranks():
    """With n differences of one sign, each rank has a sign by a fair coin: p is 2 / 2^n."""
    for count in (2, 5, 8):
        differences = np.linspace(0.1, 0.3, count)
        assert paired(differences).p == pytest.approx(2 * binom.pmf(0, count, 0.5))
    differences = np.random.default_rng(0).normal(0.05, 0.1, 40)
    assert paired(differences).p == wilcoxon(differences).pvalue


def test_rounding_breaks_no_ties():
    """0.8 - 0.7, 0.3 - 0.2 and 0.2 - 0.1 differ by rounding; equal differences share their ranks."""
    differences = [0.8 - 0.7, 0.3 - 0.2, 0.1 - 0.2, 0.6 - 0.7]
    assert len({abs(value) for value in differences}) > 1
    assert paired(differences).p == paired([1, 1, -1, -1]).p == 1.0


def test_the_interval_is_that_of_the_mean_and_always_the_same():
    differences = np.random.default_rng(0).normal(0.05, 0.1, 400)
    found = paired(differences)
    error = differences.std(ddof=1) / math.sqrt(len(differences))
    assert found.mean == pytest.approx(differences.mean())
    assert (found.low, found.high) == pytest.approx((found.mean - 1.96 * error, found.mean + 1.96 * error), abs=1e-3)
    assert paired(differences) == found
    assert paired(-differences).mean == pytest.approx(-found.mean)


@pytest.mark.parametrize(
    ("differences", "wanted"),
    [
        ([0.5], (0.5, math.nan, math.nan, math.nan)),
        ([0.0], (0.0, math.nan, math.nan, math.nan)),
        ([0.0] * 7, (0.0, 0.0, 0.0, math.nan)),
        ([0.25] * 2, (0.25, 0.25, 0.25, 0.5)),
    ],
)
def test_few_or_equal_differences_do_not_fail(differences, wanted):
    assert paired(differences)[:3] == pytest.approx(wanted[:3], nan_ok=True)
    assert math.isnan(paired(differences).p) == math.isnan(wanted[3])
    with pytest.raises(ValueError, match="at least one"):
        paired([])


# Evaluations.


def test_each_run_is_compared_with_the_first_in_each_score_and_region(tmp_path):
    first = write(tmp_path / "a")
    second = write(tmp_path / "b", shift=0.125, cases=CASES)
    third = write(tmp_path / "c", seed=3, cases=CASES[::-1])
    evaluations = read_evaluations([first, second.parent, third])
    rows = compare(evaluations)
    order = [(m, r, name) for m in MEASURES for r in REGIONS for name in "abc"]
    assert [(row.score, row.region, row.run) for row in rows] == order
    for row in rows:
        by_case = next(e.scores for e in evaluations if e.name == row.run)
        column = f"{row.score}_{row.region}"
        assert row.mean == pytest.approx(np.mean([by_case[case][column] for case in CASES]))
        if row.run == "a":
            assert row.difference is None
        else:
            # Cases are paired by their names, in whatever order they stand.
            own = [by_case[case][column] - evaluations[0].scores[case][column] for case in CASES]
            assert row.difference.mean == pytest.approx(np.mean(own))
        if row.run == "b":
            assert row.difference[:3] == pytest.approx((0.125, 0.125, 0.125), abs=1e-9)
    texts = csv_rows(rows, len(CASES))
    assert texts[0] == {**texts[0], "run": "a", "cases": "12", "difference": "", "low": "", "p": ""}
    assert texts[1]["difference"] == "0.125" and float(texts[1]["p"]) < 0.01


def test_runs_are_named_after_their_folders(tmp_path):
    files = [write(tmp_path / run / "evaluation_validation") for run in ("adam", "sgd")]
    assert [e.name for e in read_evaluations(files)] == ["adam", "sgd"]
    twice = [write(tmp_path / side / "run") for side in ("left", "right")]
    with pytest.raises(InputError, match="run: the name of 2 evaluations; give each one a name by --names"):
        read_evaluations(twice)
    assert [e.name for e in read_evaluations(twice, ["left", "right"])] == ["left", "right"]
    with pytest.raises(InputError, match="--names: 1 name for 2 evaluations"):
        read_evaluations(twice, ["left"])
    with pytest.raises(InputError, match="give two evaluations or more"):
        read_evaluations(twice[:1])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"cases": CASES[:-5]}, r"b/scores.csv: lacks P10, P11, P7 and 2 more of .*a/scores.csv; compare"),
        ({"cases": [*CASES, "Q"]}, r"a/scores.csv: lacks Q of .*b/scores.csv; compare evaluations of the same cases"),
        ({"measures": ["iou"]}, r"a/scores.csv, .*b/scores.csv: share no score; evaluate all runs with the same"),
        ({"volumes": 2.0}, r"b/scores.csv: reference_volume_ET of P0 differs from that in .*a/scores.csv; compare"),
        ({"volumes": 1.02}, r"b/scores.csv: reference_volume_ET of P0 differs from that in"),
        ({"cases": ["P1", "P1"]}, r"b/scores.csv: holds a case twice"),
        ({"cases": []}, r"b/scores.csv: holds no scores by case"),
        ({"shift": math.nan}, r"b/scores.csv: dice_ET of P0 is nan; give its metric a rule"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line(tmp_path, changes, told):
    files = [write(tmp_path / "a"), write(tmp_path / "b", **changes)]
    output = tmp_path / "out.csv"
    with pytest.raises(InputError, match=told) as caught:
        command.main([*map(str, files), "--output", str(output)])
    assert "\n" not in str(caught.value) and not output.exists()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "holds no scores by case"),
        ("case,dice_ET,dice_WT,dice_ET\nP0,0.5,0.5,0.6\n", "two columns are named dice_ET; keep one of them"),
        ("name,dice_ET\nP0,0.5\n", "holds no scores by case"),
        ("case,dice_ET\nP0,high\n", "not a table of scores"),
        ("case,dice_ET\nP0,0.5,0.5\n", "not a table of scores"),
    ],
)
def test_files_that_are_no_scores_are_refused(tmp_path, text, told):
    file = tmp_path / "scores.csv"
    file.write_text(text)
    with pytest.raises(InputError, match=told):
        read_evaluations([file, file], ["a", "b"])
    with pytest.raises(InputError, match=r"no such file; give the scores\.csv of an evaluation"):
        read_evaluations([tmp_path / "none", file], ["a", "b"])


# The command.


def test_the_command_prints_a_table_and_writes_csv_and_picture(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    files = [write(tmp_path / "a"), write(tmp_path / "b", seed=1), write(tmp_path / "c", seed=2)]
    output, plot = tmp_path / "new" / "comparison.csv", tmp_path / "new" / "comparison.png"
    output.parent.mkdir()
    output.write_text("earlier")
    arguments = [*map(str, files), "--output", str(output), "--plot", str(plot), "--names", "Adam", "SGD", "fp16"]
    assert command.main(arguments) == 0
    shown = capsys.readouterr().out
    assert "12 cases; differences from Adam" in shown and "HD95 (mm)" in shown and "No test" not in shown
    with output.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 2 * 3 and list(rows[0])[:4] == ["score", "region", "run", "cases"]
    assert imread(plot).shape[1] > imread(plot).shape[0] > 200
    (kept,) = output.parent.glob("comparison_*.csv")
    assert kept.read_text() == "earlier"


def test_one_case_or_equal_runs_are_said_to_allow_no_test(tmp_path, capsys):
    files = [write(tmp_path / name, seed=seed, cases=["P"]) for seed, name in enumerate("ab")]
    assert command.main([*map(str, files), "--plot", str(tmp_path / "one.png")]) == 0
    assert "No test is possible with one case." in capsys.readouterr().out
    same = write(tmp_path / "same")
    assert command.main([str(same), str(same), "--names", "a", "b", "--scores", "dice"]) == 0
    shown = capsys.readouterr().out
    assert "No test is possible where no case differs." in shown and "HD95" not in shown


def test_scores_that_only_some_runs_have_are_left_out_by_default_and_refused_by_name(tmp_path, capsys):
    files = [write(tmp_path / "a", measures=["dice", "iou"]), write(tmp_path / "b", measures=["hd95", "dice"])]
    files = [str(file) for file in files]
    output = tmp_path / "out.csv"
    assert command.main([*files, "--output", str(output)]) == 0
    shown = capsys.readouterr().out
    assert "left out, since not all runs have it: iou, hd95\n" in shown
    with output.open(newline="") as file:
        assert [row["score"] for row in csv.DictReader(file)] == ["dice"] * 6
    assert command.main([*files, "--scores", "dice", "dice"]) == 0
    shown = capsys.readouterr().out
    assert "left out" not in shown and shown.count("ET") == 1
    with pytest.raises(InputError, match=r"b/scores\.csv: has no column iou_ET; .* or leave iou out of --scores\."):
        command.main([*files, "--scores", "dice", "iou"])
    with pytest.raises(InputError, match=r"^--scores foo: no such score; choose among dice\.$"):
        command.main([*files, "--scores", "dice", "foo"])


@pytest.mark.parametrize(
    ("option", "name", "told"),
    [
        ("--plot", ".", "a folder; give --plot the name of a file"),
        ("--plot", "cmp.txt", r"--plot .*cmp\.txt: the picture is a PNG file; give a name that ends in \.png\."),
        ("--plot", "file/cmp.png", r"file/cmp\.png: cannot be written \(.*file takes no files\)"),
        ("--output", "file/new/cmp.csv", r"file/new/cmp\.csv: cannot be written"),
    ],
)
def test_a_wrong_place_for_a_file_is_told_before_anything_is_written(tmp_path, option, name, told, capsys):
    files = [str(write(tmp_path / run)) for run in "ab"]
    (tmp_path / "file").touch()
    other = {"--output": "--plot", "--plot": "--output"}[option]
    with pytest.raises(InputError, match=told):
        command.main([*files, option, str(tmp_path / name), other, str(tmp_path / "new" / "cmp.png")])
    assert not (tmp_path / "new").exists() and capsys.readouterr().out == ""
