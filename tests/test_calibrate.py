# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The command ``panet calibrate``, and an evaluation with calibrated weights."""

import csv
import json

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from scripts import calibrate_weights
from scripts.brats import REGIONS
from scripts.data.postprocessing import THRESHOLDS
from scripts.pictures.reliability import save_reliability
from scripts.scores.certainty import INTENSITIES
from scripts.scores.expected_dice import calibrate, expect, expected, expected_columns, read_cases
from scripts.scores.paired import read_scores
from scripts.scores.table import EXPECTED, columns_of
from scripts.utils.errors import InputError
from scripts.weights.record import calibrations_of, read_weights_record, save_weights, trained_on

KIND = {"flips": 8, "windows": "BrainWindowInferer", "absent": 0, "voxel_mm_smallest": 1.0, "voxel_mm_largest": 1.0}


@pytest.fixture
def model(tmp_path):
    settings = {
        "trained_on": trained_on(40, 0),
        "network": {"class": "Linear", "arguments": {}},
        "sequences": ["t1"],
        "spacing": [1.0] * 3,
        "exclusive": False,
        "normalization": "brain",
        "thresholds": THRESHOLDS,
    }
    save_weights({"weight": torch.zeros(1)}, tmp_path / "model.pt", settings)
    return tmp_path / "model.pt"


def evaluated(folder, names, kind=KIND):
    """An evaluation whose Dice rises with the soft Dice."""
    random = np.random.default_rng(len(names))
    signs, scores = [], []
    for name in names:
        quality = random.random(3)
        row = {"case": name}
        for region, one in zip(REGIONS, quality, strict=True):
            row |= {f"soft_dice_{region}": 0.4 + 0.6 * one, f"volume_{region}": 10.0, f"probable_{region}": 9.0}
            row |= {f"surface_per_volume_{region}": 0.5, f"border_entropy_{region}": 0.5}
            row |= {f"flip_disagreement_{region}": 0.1}
        signs.append({**row, **dict.fromkeys(INTENSITIES, 0.0), **kind})
        dice = {f"dice_{region}": float(one) for region, one in zip(REGIONS, quality, strict=True)}
        scores.append({"case": name, **dice, "reference_volume_ET": 5.0, "expected_dice_ET": ""})
    folder.mkdir()
    for file, rows in (("certainty.csv", signs), ("scores.csv", scores)):
        with (folder / file).open("w", newline="") as opened:
            writer = csv.DictWriter(opened, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return folder


def test_the_record_gets_the_numbers_and_the_weights_stay(tmp_path, model, capsys):
    folds = [evaluated(tmp_path / f"fold_{n}", [f"case_{n}_{i}" for i in range(14)]) for n in range(3)]
    before = read_weights_record(model)
    options = ["--model", str(model), "--plot", str(tmp_path / "plot.png")]
    assert calibrate_weights.main([*map(str, folds), *options]) == 0
    record = read_weights_record(model)
    (numbers,) = calibrations_of(str(model))
    assert {name: record[name] for name in before} == before
    assert numbers == calibrate([case for fold in folds for case in read_cases(fold)])
    assert numbers["cases"] == 42
    shown = capsys.readouterr().out
    assert "42 cases" in shown
    assert imread(tmp_path / "plot.png").shape[2] == 4
    # Once more: the same kind of run is replaced, another kind is added.
    assert calibrate_weights.main([*map(str, folds), "--model", str(model)]) == 0
    assert len(calibrations_of(str(model))) == 1
    still = evaluated(tmp_path / "still", [f"case_{i}" for i in range(40)], {**KIND, "flips": 0})
    assert calibrate_weights.main([str(still), "--model", str(model)]) == 0
    assert [one["flips"] for one in calibrations_of(str(model))] == [8, 0]
    assert calibrations_of([str(model), str(model)]) == []


def test_tables_have_what_is_expected_or_nothing(tmp_path):
    cases = read_cases(evaluated(tmp_path / "all", [f"case_{i}" for i in range(40)]))
    numbers = calibrate(cases)
    columns = expected_columns(expected([numbers], cases[0].signs))
    told = expect(numbers, cases[0].signs)
    assert columns["expected_dice_WT"] == f"{told['WT'].dice:.3f}"
    assert columns["expected_dice_low_TC"] == f"{told['TC'].low:.3f}"
    assert list(columns)[:3] == ["expected_dice_ET", "expected_dice_TC", "expected_dice_WT"]
    assert expected([], cases[0].signs) is expected([numbers], {**cases[0].signs, "flips": 0}) is None
    assert list(expected_columns(None)) == list(columns)


def test_an_empty_expected_score_is_none(tmp_path):
    scores = read_scores(evaluated(tmp_path / "all", ["a", "b"]) / "scores.csv")
    assert set(scores["a"]) == {"dice_ET", "dice_TC", "dice_WT", "reference_volume_ET"}


def test_a_plot_is_drawn_where_something_is_expected(tmp_path):
    folder = evaluated(tmp_path / "all", ["a", "b"])
    save_reliability(folder)
    assert not (folder / "reliability.png").exists()
    header = ["case", *columns_of(["dice", *EXPECTED])]
    (folder / "scores.csv").write_text("\n".join([",".join(header), ",".join(["a", *["0.5"] * 12])]))
    save_reliability(folder)
    assert imread(folder / "reliability.png").std() > 0.01


def refused(*arguments):
    with pytest.raises(InputError) as error:
        calibrate_weights.main(list(map(str, arguments)))
    return str(error.value)


def test_what_cannot_be_calibrated_is_refused(tmp_path, model):
    record = model.with_suffix(".json").read_bytes()
    few = evaluated(tmp_path / "few", ["a", "b"])
    assert refused(few, "--model", model) == "2 cases: a calibration needs 20 at least."
    assert refused(few, few, "--model", model) == "a: in two evaluations; each patient counts once."
    assert "give weights of a training" in refused(few, "--model", tmp_path / "none.pt")
    assert "no such file; give the scores.csv" in refused(tmp_path, "--model", model)
    assert "ends in .png" in refused(few, "--model", model, "--plot", "plot.pdf")
    (few / "certainty.csv").unlink()
    assert refused(few, "--model", model) == f"{few}/certainty.csv: no such file; evaluate again."
    assert model.with_suffix(".json").read_bytes() == record


def test_a_record_with_a_damaged_calibration_is_refused(tmp_path, model):
    record = json.loads(model.with_suffix(".json").read_text())
    model.with_suffix(".json").write_text(json.dumps({**record, "expected_dice": [{"cases": 3}]}))
    with pytest.raises(InputError, match=r"damaged record of weights \(expected_dice.0\)"):
        read_weights_record(model)
