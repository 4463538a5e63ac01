# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The command of a study, on tiny cases: run, stopped and continued, run again, and refused."""

import csv
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
import yaml
from forks import python
from PIL import Image
from scripts.brats import REGIONS
from workflows import ROOT, TRAINING_SIZE, command, rows

STUDY = {
    "cohort": {"training": 2, "validation": 1},
    "settings": {**TRAINING_SIZE, "max_epochs": 12, "val_interval": 4, "flat_epochs": 4},
    "variants": [
        {"name": "panet", "title": "PANet", "seeds": [0]},
        {
            "name": "unet",
            "title": "U-Net",
            "seeds": [0],
            "settings": {"network_def#prior_attention": False, "network_def#deep_supervision": False},
        },
    ],
}


PLANS = ROOT / "scripts" / "lab" / "plans"


def written(folder: Path, study: dict = STUDY) -> str:
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(study, sort_keys=False))
    return str(path)


@pytest.fixture(scope="module")
def whole(small_cohort, tmp_path_factory) -> Path:
    """The folder of a study that was never stopped."""
    folder = tmp_path_factory.mktemp("study")
    options = ["--dataset_dir", str(small_cohort), "--output_dir", str(folder / "out")]
    done = command("scripts.lab.studies", written(folder), *options, "--jobs", "2", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[0] == "24 samples a run: 12 epochs of 2 cases."
    assert "panet_seed0: finished (" in done.stdout and "2 of 2 runs; 0 s left." in done.stdout
    return folder / "out"


def test_a_study_writes_a_table_and_plots(whole):
    runs = rows(whole / "study.csv")
    assert list(runs) == ["panet_seed0", "unet_seed0"]
    for name, run in runs.items():
        scores = rows(whole / "runs" / name / "evaluation_unseen" / "scores.csv")
        assert sorted(scores) == [f"BraTS20_Training_{number:03d}" for number in (4, 5, 6)]
        means = [sum(float(case[f"dice_{region}"]) for case in scores.values()) / 3 for region in REGIONS]
        for region, mean in zip(REGIONS, means, strict=True):
            assert float(run[f"dice_{region}"]) == pytest.approx(mean, abs=1e-4)
        assert float(run["dice"]) == pytest.approx(sum(means) / 3, abs=1e-4)
        assert (run["samples"], run["seed"]) == ("24", "0")
        state = torch.load(whole / "runs" / name / "trainer_state.pt", weights_only=True)
        assert state["iteration"] == 24
    assert int(runs["unet_seed0"]["flops"]) < int(runs["panet_seed0"]["flops"])
    summary = rows(whole / "summary.csv")
    difference = float(runs["unet_seed0"]["dice"]) - float(runs["panet_seed0"]["dice"])
    assert float(summary["unet"]["dice_difference"]) == pytest.approx(difference, abs=2e-4)
    assert summary["panet"]["dice_difference"] == "nan"
    text = (whole / "study.md").read_text()
    assert text.startswith("Each run saw 24 samples.") and "| U-Net | 1 |" in text
    for name in ("curves.png", "dice_flops.png"):
        assert Image.open(whole / name).size[0] > 1000


def test_a_study_that_was_stopped_goes_on_to_the_same_weights(whole, small_cohort, tmp_path):
    options = [written(tmp_path), "--dataset_dir", str(small_cohort), "--output_dir", str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    running = subprocess.Popen([python(), "-m", "scripts.lab.studies", *options], env=environment, cwd=tmp_path)
    state = tmp_path / "out" / "runs" / "panet_seed0" / "trainer_state.pt"
    while not state.is_file():
        assert running.poll() is None
        time.sleep(0.05)
    running.send_signal(signal.SIGTERM)
    assert running.wait() == 128 + signal.SIGTERM
    assert torch.load(state, weights_only=True)["epoch"] < 12
    done = command("scripts.lab.studies", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "panet_seed0: training goes on" in done.stdout
    for name in ("panet_seed0", "unet_seed0"):
        weights, others = (
            torch.load(folder / "runs" / name / "model_last.pt", weights_only=True)
            for folder in (whole, tmp_path / "out")
        )
        assert all(torch.equal(weights[key], others[key]) for key in weights), name
    assert len(json.loads((tmp_path / "out" / "runs" / "panet_seed0.json").read_text())["training"]) == 2


def test_finished_runs_are_kept_and_new_ones_are_added(whole, small_cohort, tmp_path):
    weights = whole / "runs" / "panet_seed0" / "model_last.pt"
    before = weights.stat().st_mtime_ns
    options = ["--dataset_dir", str(small_cohort), "--output_dir", str(whole)]
    changed = {**STUDY, "settings": {**STUDY["settings"], "learning_rate": 0.5}}
    refused = command("scripts.lab.studies", written(tmp_path, changed), *options, cwd=tmp_path)
    assert refused.returncode == 1
    assert refused.stderr.strip().endswith(
        f"{whole}/runs/panet_seed0: this run was made with other settings than the study's file has now; choose "
        "another --output_dir, restore the file, or remove the run's folder and its .json."
    )
    done = command("scripts.lab.studies", written(tmp_path), *options, cwd=tmp_path)
    assert done.returncode == 0 and "2 of 2 runs are finished already." in done.stdout
    assert weights.stat().st_mtime_ns == before


def test_a_run_that_fails_is_named_and_the_others_are_finished(small_cohort, tmp_path):
    broken = {"name": "broken", "title": "broken", "seeds": [0], "settings": {"network_def#head": "round"}}
    study = {**STUDY, "variants": [broken, STUDY["variants"][1]]}
    study["settings"] = {**STUDY["settings"], "max_epochs": 1}
    options = ["--dataset_dir", str(small_cohort), "--output_dir", str(tmp_path / "out")]
    done = command("scripts.lab.studies", written(tmp_path, study), *options, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.strip().endswith(
        "these runs failed: broken_seed0; their .log in runs/ says why. Start again to repeat them."
    )
    with (tmp_path / "out" / "study.csv").open() as file:
        assert [row["run"] for row in csv.DictReader(file)] == ["unet_seed0"]


@pytest.mark.slow
def test_a_dry_run_prints_the_plan_alone(data, tmp_path):
    options = ["--dataset_dir", str(data), "--output_dir", str(tmp_path / "out"), "--dry_run"]
    done = command("scripts.lab.studies", written(tmp_path), *options, cwd=tmp_path)
    assert done.stdout.splitlines() == [
        "24 samples a run: 12 epochs of 2 cases.",
        "2 runs of 2 variants, scored on 2 unseen cases:",
        "  panet_seed0: PANet",
        "  unet_seed0: U-Net (network_def#prior_attention=False, network_def#deep_supervision=False)",
    ]
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("study", "options", "said"),
    [
        ("study.yaml", ["--dataset_dir", "data"], "this study makes its phantoms itself; leave out --dataset_dir."),
        ("study_patients.yaml", [], "this study needs patients; add --dataset_dir."),
        ("study.yaml", ["--jobs", "0"], "--jobs 0: give 1 or more."),
    ],
)
def test_wrong_options_are_refused(study, options, said, tmp_path):
    out = tmp_path / "out"
    done = command("scripts.lab.studies", str(PLANS / study), *options, "--output_dir", str(out), cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.strip().endswith(said)
    assert not out.exists()
