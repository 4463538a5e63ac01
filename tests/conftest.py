# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""What several test modules share."""

from __future__ import annotations

import os
import shutil
from itertools import product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scripts.lab.phantoms import __main__ as make_phantoms
from scripts.networks import PriorAttentionNet
from tiny import make_cases, small_network
from workflows import CHANNELS, SIZE, TRAINING_SIZE, bundle_run, models

if "PYTEST_XDIST_WORKER" in os.environ:
    # Each worker has a core to itself, and so have the processes that it starts: threads that wait for a core spin.
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"

# They run in the model zoo, or as there (test_model_zoo.py).
collect_ignore_glob = ["model_zoo/*"]


# Data and results that take long to make; a test that asks for one is slow.
SLOW_FIXTURES = {"cohort", "small_cohort", "real_cases", "shifted_case", "training", "evaluation", "segmentation"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is slow; tests that load OpenVINO into this process come last.

    A process that has run OpenVINO may crash when it forks.
    """
    for item in items:
        if SLOW_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker("slow")
    items.sort(key=lambda item: item.path.name == "test_openvino.py")


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three phantoms (seed 2; the third has no ET): the second is added by a second call, the third by two workers."""
    out = tmp_path_factory.mktemp("phantoms") / "cohort"
    assert make_phantoms.main([str(out), "--cases", "1", "--seed", "2", "--workers", "1"]) == 0
    assert make_phantoms.main([str(out), "--cases", "3", "--seed", "2", "--workers", "2"]) == 0
    return out


@pytest.fixture(scope="session")
def small_cohort(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six cases of 60 x 60 x 39 voxels of 4 mm: every fourth voxel of the phantoms, and their mirror images."""
    out = tmp_path_factory.mktemp("small") / "cohort"
    folders = sorted(path for path in cohort.rglob("BraTS20_*") if path.is_dir())
    for number, (folder, mirror) in enumerate(product(folders, (1, -1)), 1):
        name = f"BraTS20_Training_{number:03d}"
        (out / name).mkdir(parents=True)
        for file in folder.glob("*.nii.gz"):
            image = nib.load(file)
            affine = image.affine @ np.diag([4, 4, 4, 1])
            small = nib.Nifti1Image(np.asanyarray(image.dataobj)[::4, ::4, ::4][::mirror], affine)
            small.header["descrip"] = image.header["descrip"]
            nib.save(small, out / name / file.name.replace(folder.name, name))
    return out


def shared_data() -> Path:
    """The folder of real cases, found by the environment variable BRATS_PANET_SHARED."""
    shared = os.environ.get("BRATS_PANET_SHARED")
    if not shared or not (Path(shared) / "data").is_dir():
        pytest.skip("the real cases are not here: BRATS_PANET_SHARED names no folder with data/")
    return Path(shared) / "data"


@pytest.fixture(scope="session")
def real_cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of links to the two real cases with silver labels."""
    folder = tmp_path_factory.mktemp("real")
    for case in shared_data().glob("TCGA-*"):
        (folder / case.name).symlink_to(case)
    return folder


@pytest.fixture(scope="session")
def shifted_case() -> Path:
    """The real case whose label map has another origin than its images, as BraTS 2017 shipped it."""
    case = shared_data() / "tcga" / "Brats17_TCIA_105_1"
    if not case.is_dir():
        pytest.skip(f"{case} is not here")
    return case


NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch can use")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU])])
def device(request, monkeypatch) -> torch.device:
    """The CPU, then a GPU, computing in float32 as exactly as it can."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    return torch.device(request.param)


@pytest.fixture(scope="session")
def models_before() -> dict[str, int]:
    """What lies in models/ before any workflow has run; a user's own weights may."""
    return models()


@pytest.fixture(scope="session")
def training(models_before, cohort, tmp_path_factory) -> Path:
    """Output folder of a tiny training on two phantoms, with one to validate on."""
    output = tmp_path_factory.mktemp("training") / "run"
    bundle_run("train.json", dataset_dir=str(cohort), output_dir=str(output), **TRAINING_SIZE)
    return output


@pytest.fixture(scope="session")
def model_file(tmp_path_factory) -> str:
    """Weights of a tiny network that was never trained, without a record."""
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("weights") / "model.pt"
    torch.save(PriorAttentionNet(channels=CHANNELS).state_dict(), path)
    return str(path)


@pytest.fixture(scope="session")
def evaluation(cohort, training, tmp_path_factory) -> Path:
    """Folder of the evaluation of all three phantoms with the tiny training's weights, in a copy of its folder."""
    output = tmp_path_factory.mktemp("evaluation") / "run"
    shutil.copytree(training, output)
    names = ("train.json", "evaluate.json")
    size = {key: value for key, value in TRAINING_SIZE.items() if key != "max_epochs"}
    bundle_run(*names, dataset_dir=str(cohort), output_dir=str(output), cases="all", **size)
    return output / "evaluation_all"


@pytest.fixture(scope="session")
def segmentation(cohort, training, tmp_path_factory) -> Path:
    """Folder of label maps that inference wrote for the three phantoms."""
    output = tmp_path_factory.mktemp("inference") / "maps"
    model = str(training / "model.pt")
    bundle_run("inference.json", dataset_dir=str(cohort), output_dir=str(output), model_file=model, **SIZE)
    return output


@pytest.fixture
def data(tmp_path) -> Path:
    """Five tiny cases."""
    return make_cases(tmp_path / "data")


@pytest.fixture
def model(tmp_path) -> Path:
    """Tiny weights without a record."""
    path = tmp_path / "models" / "model.pt"
    path.parent.mkdir()
    torch.save(small_network().state_dict(), path)
    return path
