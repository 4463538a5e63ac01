# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""A full disk, a folder that takes no files, and a process that is killed leave no half-written result."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from workflows import ROOT, SIZE, TRAINING_SIZE, files, voxels

CASES = [f"BraTS20_Training_{number:03d}" for number in range(1, 4)]


def arguments(*names, **settings):
    """The arguments after ``python`` of a workflow."""
    options = {"bundle_root": str(ROOT), "config_file": str(files(*names)), **settings}
    return ["-m", "monai.bundle", "run", *(text for key, value in options.items() for text in (f"--{key}", str(value)))]


def in_file_system(options: str, script: str, folder: Path) -> subprocess.CompletedProcess:
    """Run ``script`` where ``folder`` is a small file system in memory, which nobody else sees.

    Its files stay when the script has ended: they are copied to ``<folder>.kept``.
    """
    folder.mkdir()
    kept = folder.with_suffix(".kept")
    kept.mkdir()
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine does not let its users mount file systems")
    steps = f"{script}; status=$?; cp -a {folder}/. {kept}; exit $status"
    return subprocess.run(
        ["unshare", "-rm", "sh", "-c", f"mount -t tmpfs -o {options} none {folder} && {{ {steps}; }}"],
        env={**os.environ, "PYTHONWARNINGS": "ignore", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        cwd=folder.parent,
        capture_output=True,
        text=True,
        check=False,
    )


def python(*args: str) -> str:
    return shlex.join([sys.executable, *args])


def error_of(done: subprocess.CompletedProcess) -> str:
    assert done.returncode == 1, done.stdout[-2000:] + done.stderr[-2000:]
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in done.stderr, done.stderr[-3000:]
    return lines[0]


@pytest.mark.slow
@pytest.mark.parametrize("overlays", [(), ("inference_pipelined.yaml",)])
def test_a_disk_that_fills_up_stops_an_inference_in_one_line(overlays, cohort, model_file, tmp_path):
    out = tmp_path / "out"
    place = {"dataset_dir": cohort, "model_file": model_file, "output_dir": out / "maps", "save_probabilities": True}
    run = arguments("inference.json", *overlays, **{**SIZE, **place, "num_workers": 1})
    # The first case has room for some of its maps of probabilities.
    done = in_file_system("size=600k", python(*run), out)
    error = error_of(done)
    assert "BraTS20_Training_001_prob_" in error
    assert "cannot be written (No space left on device); make room there, or choose another folder." in error
    maps = tmp_path / "out.kept" / "maps"
    assert {"config.json", "run.json", "datalist.json"} <= {path.name for path in maps.iterdir()}
    assert not [path for path in maps.iterdir() if path.name.startswith(".")]
    for path in maps.glob("*.nii.gz"):
        assert voxels(path).shape == (120, 120, 78)
    assert not [maps / f"{case}.nii.gz" for case in CASES if (maps / f"{case}.nii.gz").exists()]


@pytest.mark.slow
@pytest.mark.parametrize("size", ["16k", "260k", "1200k"])
def test_a_disk_that_fills_up_stops_a_training_in_one_line(size, small_cohort, tmp_path):
    out = tmp_path / "out"
    run = arguments("train.json", dataset_dir=small_cohort, output_dir=out / "run", **TRAINING_SIZE)
    error = error_of(in_file_system(f"size={size}", python(*run), out))
    assert "cannot be written (" in error and str(out / "run") in error
    kept = tmp_path / "out.kept" / "run"
    for path in kept.glob("*.pt"):
        torch.load(path, weights_only=True)
    assert not list(kept.glob(".*"))


@pytest.mark.slow
def test_a_folder_that_takes_no_files_stops_each_workflow_in_one_line(small_cohort, model_file, tmp_path):
    runs = {
        "inference": arguments("inference.json", dataset_dir=small_cohort, model_file=model_file, **SIZE),
        "evaluation": arguments(
            "train.json", "evaluate.json", dataset_dir=small_cohort, model_file=model_file, cases="all", **TRAINING_SIZE
        ),
        "training": arguments("train.json", dataset_dir=small_cohort, **TRAINING_SIZE),
    }
    for name, run in runs.items():
        out = tmp_path / name
        error = error_of(in_file_system("ro", python(*run, "--output_dir", str(out / "run")), out))
        assert error.startswith(f"error: {out / 'run'}")
        assert "cannot be written (Read-only file system); choose another folder." in error
        assert not list((tmp_path / f"{name}.kept").iterdir())
