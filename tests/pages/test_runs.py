# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""What is read of a run's folder: its kind, its cases in order, and where their images are."""

from __future__ import annotations

import json
import shutil

import pytest
from known_run import known_labels
from scripts.pages.runs import read_cases, read_curves, read_run, read_summary
from scripts.utils.errors import InputError


def change_record(folder, **changes):
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({k: v for k, v in {**record, **changes}.items() if v is not None}))


def test_cases_of_an_evaluation_are_ordered_from_worst_to_best(evaluated):
    run = read_run(evaluated)
    assert run.kind == "evaluation"
    cases = read_cases(run)
    assert [case.name for case in cases] == ["worst", "middle", "best"]
    assert [case.mean_dice for case in cases] == pytest.approx([0.2, 0.6, 0.95])
    assert [case.prediction for case in cases] == [evaluated / f"{case.name}.nii.gz" for case in cases]
    assert all(case.entry["label"].endswith(f"{case.name}_seg.nii.gz") for case in cases)
    assert run.notes == []


def test_a_case_without_a_score_comes_first(evaluated):
    scores = evaluated / "scores.csv"
    scores.write_text(scores.read_text().replace("best,0.9,0.95,1.0", "best,nan,0.95,1.0"))
    assert [case.name for case in read_cases(read_run(evaluated))] == ["best", "worst", "middle"]


def test_images_that_are_gone_are_told(evaluated):
    shutil.rmtree(evaluated.parents[1] / "data" / "middle")
    run = read_run(evaluated)
    assert [case.entry is None for case in read_cases(run)] == [False, True, False]
    assert run.notes == ["The images of 1 of 3 cases were not found."]


def test_an_older_record_finds_images_by_the_configuration(evaluated):
    data = evaluated.parents[1] / "data"
    change_record(evaluated, dataset_dir=None)
    (evaluated / "config.json").write_text(json.dumps({"dataset_dir": str(data)}))
    assert all(case.entry for case in read_cases(read_run(evaluated)))
    (evaluated / "config.json").write_text(json.dumps({"dataset_dir": "$@bundle_root + '/data'"}))
    assert not any(case.entry for case in read_cases(read_run(evaluated)))


def test_the_split_of_the_training_comes_first(evaluated):
    """A datalist may name other files than the folder's own names do."""
    data = evaluated.parents[1] / "data"
    (data / "best" / "best_seg.nii.gz").rename(data / "corrected.nii.gz")
    images = [f"best/best_{name}.nii.gz" for name in ("t1", "t2", "t1ce", "flair")]
    entry = {"image": images, "label": "corrected.nii.gz"}
    (evaluated.parent / "datalist.json").write_text(json.dumps({"training": [], "validation": [entry]}))
    labels = {case.name: case.entry["label"] for case in read_cases(read_run(evaluated))}
    assert labels["best"] == str(data / "corrected.nii.gz")
    assert labels["worst"] == str(data / "worst" / "worst_seg.nii.gz")


def test_an_inference_has_volumes_and_no_reference(evaluated):
    for name in ("scores.csv", "summary.csv", "config.json"):
        (evaluated / name).unlink()
    (evaluated / "best.nii.gz").unlink()
    (evaluated / "worst_prob_core.nii.gz").write_bytes(b"no case")
    change_record(evaluated, failed={"best": "RuntimeError: no memory"})
    run = read_run(evaluated)
    assert run.kind == "inference"
    cases = read_cases(run)
    assert [case.name for case in cases] == ["middle", "worst"]
    # The prediction has no edema, and its voxels have 1 mm^3.
    core = float((known_labels() == 1).sum() + 3)
    assert cases[0].scores == {"volume_ET": 3.0, "volume_TC": core, "volume_WT": core}
    assert all("label" not in case.entry for case in cases)


def test_an_evaluation_that_has_not_ended_says_so(evaluated):
    (evaluated / "scores.csv").unlink()
    run = read_run(evaluated)
    assert (run.kind, read_cases(run)) == ("evaluation", [])
    assert "has not ended" in run.notes[0]


def test_a_damaged_table_is_refused(evaluated):
    scores = evaluated / "scores.csv"
    scores.write_text(scores.read_text().replace("0.95", "much"))
    with pytest.raises(InputError, match="evaluate again") as caught:
        read_cases(read_run(evaluated))
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"holds no run\.json; give"):
        read_run(tmp_path)


def test_a_folder_that_is_not_there_is_named_as_such(tmp_path):
    with pytest.raises(InputError, match=r"absent: no such folder; give the output folder of"):
        read_run(tmp_path / "absent")


def test_curves_of_a_real_training(training):
    run = read_run(training)
    assert run.kind == "training"
    curves = read_curves(run)
    terms = [tag for tag in curves if tag.startswith("train/loss_")]
    assert len(terms) == 5
    steps, losses = curves["train/loss"]
    # Two cases for three epochs; the validation comes with the second and the last.
    assert steps == [1, 2, 3, 4, 5, 6]
    assert losses == pytest.approx([sum(values) for values in zip(*(curves[tag][1] for tag in terms), strict=True)])
    assert curves["val_dice_ET"][0] == curves["val_mean_dice"][0]


def test_cases_and_scores_of_a_real_evaluation(evaluation, cohort):
    run = read_run(evaluation)
    assert run.record["dataset_dir"] == str(cohort) and run.record["command"].startswith("python ")
    cases = read_cases(run)
    assert len(cases) == 3 and all(case.entry and case.prediction for case in cases)
    header, rows = read_summary(run)
    assert header[1] == "dice_ET" and rows[0][0] == "mean"
    assert float(rows[0][1]) == pytest.approx(sum(case.scores["dice_ET"] for case in cases) / 3, abs=1e-4)


def test_images_of_a_real_inference(segmentation):
    run = read_run(segmentation)
    assert run.kind == "inference"
    assert all(case.entry and case.prediction for case in read_cases(run))
