# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""What is read of a run's folder: its kind, its cases in order, and where their images are."""

import json

import pytest
from known_run import known_labels
from scripts.pages.runs import cases_of, read_curves, read_run, read_summary
from scripts.utils.errors import InputError


def change_record(folder, **changes):
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({k: v for k, v in {**record, **changes}.items() if v is not None}))


def test_cases_of_an_evaluation_are_ordered_from_worst_to_best(evaluated):
    run = read_run(evaluated)
    assert run.kind == "evaluation"
    cases = cases_of(run)
    assert [case.name for case in cases] == ["worst", "middle", "best"]
    assert [case.mean_dice for case in cases] == pytest.approx([0.2, 0.6, 0.95])
    assert [case.prediction for case in cases] == [evaluated / f"{case.name}.nii.gz" for case in cases]
    assert all(case.entry["label"].endswith(f"{case.name}_seg.nii.gz") for case in cases)
    assert run.notes == []


def test_the_entries_are_those_of_the_list_of_the_run(evaluated):
    """A datalist may name other files than the folder's own names do."""
    data = evaluated.parents[1] / "data"
    (data / "best" / "best_seg.nii.gz").rename(data / "corrected.nii.gz")
    listed = evaluated / "datalist.json"
    listed.write_text(listed.read_text().replace("best/best_seg.nii.gz", "corrected.nii.gz"))
    labels = {case.name: case.entry["label"] for case in cases_of(read_run(evaluated))}
    assert labels["best"] == str(data / "corrected.nii.gz")
    assert labels["worst"] == str(data / "worst" / "worst_seg.nii.gz")


def test_without_the_list_nothing_says_where_the_images_are(evaluated):
    (evaluated / "datalist.json").unlink()
    run = read_run(evaluated)
    assert [(case.name, case.entry) for case in cases_of(run)] == [("worst", None), ("middle", None), ("best", None)]
    assert run.notes == [f"The file {evaluated / 'datalist.json'} is not there, so nothing says where the images are."]


def test_label_maps_may_lie_in_another_folder(evaluated, tmp_path):
    (tmp_path / "maps").mkdir()
    (evaluated / "best.nii.gz").rename(tmp_path / "maps" / "best.nii.gz")
    found = {}
    for setting in ("@evaluation_dir", str(tmp_path / "maps")):
        (evaluated / "config.json").write_text(json.dumps({"label_map_dir": setting}))
        found[setting] = [case.prediction for case in cases_of(read_run(evaluated))]
    assert found["@evaluation_dir"] == [evaluated / "worst.nii.gz", evaluated / "middle.nii.gz", None]
    assert found[str(tmp_path / "maps")] == [None, None, tmp_path / "maps" / "best.nii.gz"]


def test_an_inference_has_volumes_and_no_reference(evaluated):
    for name in ("scores.csv", "summary.csv", "config.json"):
        (evaluated / name).unlink()
    (evaluated / "best.nii.gz").unlink()
    listed = evaluated / "datalist.json"
    listed.write_text(listed.read_text().replace("validation", "testing"))
    change_record(evaluated, failed={"best": "RuntimeError: no memory"})
    run = read_run(evaluated)
    assert run.kind == "inference"
    cases = cases_of(run)
    assert [case.name for case in cases] == ["middle", "worst"]
    # The prediction has no edema, and its voxels have 1 mm^3.
    core = float((known_labels() == 1).sum() + 3)
    assert cases[0].scores == pytest.approx({"volume_ET": 3.0, "volume_TC": core, "volume_WT": core})
    assert [lesion["volume_ml"]["TC"] for lesion in cases[0].record["lesions"]] == pytest.approx([core / 1000])
    assert all("label" not in case.entry for case in cases)


def test_segmented_cases_are_ordered_by_what_is_expected(evaluated):
    """Those without an expectation come last, and of them those with warnings first."""
    for name in ("scores.csv", "summary.csv", "config.json"):
        (evaluated / name).unlink()
    listed = evaluated / "datalist.json"
    listed.write_text(listed.read_text().replace("validation", "testing"))
    change_record(evaluated, warnings={"worst": [{"kind": "odd name", "text": "rename it."}]})
    assert [case.name for case in cases_of(read_run(evaluated))] == ["worst", "best", "middle"]
    for name, dice in (("best", 0.9), ("middle", 0.4)):
        expected = {region: {"dice": dice} for region in ("ET", "TC", "WT")}
        (evaluated / f"{name}.json").write_text(json.dumps({"expected_dice": expected}))
    assert [case.name for case in cases_of(read_run(evaluated))] == ["middle", "best", "worst"]


def test_an_evaluation_that_has_not_ended_says_so(evaluated):
    (evaluated / "scores.csv").unlink()
    run = read_run(evaluated)
    assert (run.kind, cases_of(run)) == ("evaluation", [])
    assert "has not ended" in run.notes[0]


def test_a_damaged_table_is_refused(evaluated):
    scores = evaluated / "scores.csv"
    scores.write_text(scores.read_text().replace("0.95", "much"))
    with pytest.raises(InputError, match="evaluate again") as caught:
        cases_of(read_run(evaluated))
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
    cases = cases_of(run)
    assert len(cases) == 3 and all(case.entry and case.prediction for case in cases)
    header, rows = read_summary(run)
    assert header[1] == "dice_ET" and rows[0][0] == "mean"
    assert float(rows[0][1]) == pytest.approx(sum(case.scores["dice_ET"] for case in cases) / 3, abs=1e-4)


def test_images_of_a_real_inference(segmentation):
    run = read_run(segmentation)
    assert run.kind == "inference"
    assert all(case.entry and case.prediction for case in cases_of(run))
