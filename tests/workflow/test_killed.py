# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""A process that is killed at any moment and started again gives what an undisturbed one gives, and leaves no more."""

import json
import shutil
from pathlib import Path

import kills
import pytest
import torch
from tiny import contents, make_cases
from workflows import ROOT, TRAINING_SIZE, files

SIZE = {
    **TRAINING_SIZE,
    "network_def#channels": [4, 4, 4, 4, 8],
    "max_epochs": 2,
    "val_interval": 1,
    "spacing": [1] * 3,
}
OF_THE_CALL = (
    "seconds_of_the_run",
    "started",
    "command",
    "resumed",
    "parameters",
    "overwrite",
    "resume",
    "recipe_changed",
)
STATES = ("trainer_state.pt", "trainer_state_previous.pt")


def results(out: Path) -> dict[str, object]:
    """What a folder holds, hidden files included, but for times and calls, curves, and dated copies."""
    found: dict[str, object] = {}
    for path, content in contents(out).items():
        name = str(path.relative_to(out))
        if name.startswith("tensorboard") or "_20" in path.name:
            continue
        found[name] = content
        if path.suffix == ".json":
            found[name] = {key: value for key, value in json.loads(content).items() if key not in OF_THE_CALL}
        elif path.suffix == ".pt":
            # The zip archive of torch holds the name of its temporary file.
            found[name] = str(torch.load(path, weights_only=True))
    return found | {str(path): "folder" for path in out.rglob(".*")}


def workflow(names: list[str], out: Path, kill: int, **settings):
    options = {"bundle_root": ROOT, "config_file": files(*names), **settings}
    arguments = ["run", *(text for key, value in options.items() for text in (f"--{key}", str(value)))]
    return kills.start("monai.bundle", arguments, out, kill)


def settings_again(out: Path) -> dict[str, bool]:
    """What a user adds to start again."""
    if any((out / name).is_file() for name in STATES):
        return {"resume": True}
    return {"overwrite": True} if (out / "run.json").is_file() else {}


@pytest.mark.slow
@pytest.mark.lab  # tests/training/test_resume.py kills a training at two moments
def test_a_training(tmp_path):
    data, out = make_cases(tmp_path / "data", 3), tmp_path / "out"

    def run(kill: int):
        place = {"dataset_dir": data, "output_dir": out, **settings_again(out)}
        return workflow(["train.json"], out, kill, **place, **SIZE)

    kills.check_kills(run, lambda: results(out), lambda: shutil.rmtree(out), 20)


@pytest.mark.slow
@pytest.mark.parametrize("moments", [2, pytest.param(20, marks=pytest.mark.lab)])
def test_an_evaluation(tmp_path, model, moments):
    data, out = make_cases(tmp_path / "data", 2), tmp_path / "out"
    folder, size = out / "evaluation_all", {key: SIZE[key] for key in SIZE if key not in ("max_epochs", "val_interval")}

    def run(kill: int):
        place = {"dataset_dir": data, "output_dir": out, "model_file": model, "cases": "all"}
        again = {"overwrite": True} if (folder / "run.json").is_file() else {}
        return workflow(["train.json", "evaluate.json"], out, kill, **place, **again, **size)

    kills.check_kills(run, lambda: results(folder), lambda: shutil.rmtree(out), moments)
