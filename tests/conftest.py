# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""What several test modules share."""

import ctypes
import gc
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from filelock import FileLock
from scripts.lab.phantoms import __main__ as make_phantoms
from scripts.networks import PriorAttentionNet
from scripts.utils.machine import M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
from times import Times
from tiny import make_cases, small_network
from workflows import CHANNELS, SIZE, TRAINING_SIZE, bundle_run, models

if "PYTEST_XDIST_WORKER" in os.environ:
    # Each worker has a core to itself, and so have the processes that it starts: threads that wait for a core spin.
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--times", type=Path, help="write a table of the tests' times to this CSV file")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--times"):
        config.pluginmanager.register(Times(config.getoption("--times")))


# They run in the model zoo, or as there (test_model_zoo.py).
collect_ignore_glob = ["model_zoo/*"]


# Data and results that take long to make; a test that asks for one is slow.
SLOW_FIXTURES = {
    "phantoms",
    "cohort",
    "small_cohort",
    "real_cases",
    "shifted_case",
    "training",
    "evaluation",
    "segmentation",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is slow, or slow and of the workshop, and put it first, so that two workers end together.

    Tests that load OpenVINO into this process come last, in one worker: it may crash when it forks afterwards.
    """
    for item in items:
        if SLOW_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker("slow")
        if "lab" in item.path.parts and item.path.name != "test_package.py" and item.get_closest_marker("slow"):
            item.add_marker("lab")
        if item.path.name == "test_openvino.py":
            item.add_marker(pytest.mark.xdist_group("openvino"))
    items.sort(key=lambda item: (item.path.name == "test_openvino.py", item.get_closest_marker("slow") is None))


def pytest_collection_finish() -> None:
    # The million objects that imports have made stay, and need not be looked through again and again.
    gc.freeze()


@pytest.fixture(autouse=True)
def returned_memory(request: pytest.FixtureRequest) -> Iterator[None]:
    """Return the memory of a slow test to the system.

    A workflow tells glibc to keep freed memory until the end of its process, which is here that of all tests.
    """
    yield
    if request.node.get_closest_marker("slow") and platform.libc_ver()[0] == "glibc":
        with open("/proc/self/statm") as file:
            resident = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        if resident > 1.5e9:  # a workflow is a cycle of objects, and a search for such takes 0.3 seconds
            gc.collect()
        glibc = ctypes.CDLL(None)
        # What glibc itself would have reached by tests of this size.
        glibc.mallopt(M_MMAP_THRESHOLD, 32 << 20)
        glibc.mallopt(M_TRIM_THRESHOLD, 64 << 20)
        glibc.malloc_trim(0)


Share = Callable[[str, Callable[[Path], None]], Path]


@pytest.fixture(scope="session")
def share(tmp_path_factory: pytest.TempPathFactory) -> Share:
    """``share(name, make)`` is a folder that ``make`` has filled, once for all workers. Tests only read it."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    shared.mkdir(exist_ok=True)

    def made(name: str, make: Callable[[Path], None]) -> Path:
        with FileLock(shared / f"{name}.lock"):
            if not (shared / f"{name}.done").exists():
                shutil.rmtree(shared / name, ignore_errors=True)
                make(shared / name)
                (shared / f"{name}.done").touch()
        return shared / name

    return made


@pytest.fixture(scope="session")
def phantoms(share: Share) -> Path:
    """Three phantoms (seed 2; the third has no ET): the second is added by a second call, the third by two workers."""

    def make(out: Path) -> None:
        assert make_phantoms.main([str(out), "--cases", "1", "--seed", "2", "--workers", "1"]) == 0
        assert make_phantoms.main([str(out), "--cases", "3", "--seed", "2", "--workers", "2"]) == 0

    return share("phantoms", make)


def write_smaller(image: nib.Nifti1Image, step: int, path: Path, turn: int = 1) -> None:
    """Write every ``step``-th voxel, in the other direction from side to side if ``turn`` is -1."""
    voxels = np.asanyarray(image.dataobj)[::step, ::step, ::step][::turn]
    smaller = nib.Nifti1Image(voxels, image.affine @ np.diag([step, step, step, 1]))
    smaller.header["descrip"] = image.header["descrip"]
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(smaller, path)


@pytest.fixture(scope="session")
def cohort(phantoms: Path, share: Share) -> Path:
    """The phantoms with voxels of 2 mm, 120 x 120 x 78: a workflow takes an eighth of the time."""

    def make(out: Path) -> None:
        for file in phantoms.rglob("*.nii.gz"):
            write_smaller(nib.load(file), 2, out / file.relative_to(phantoms))

    return share("cohort", make)


@pytest.fixture(scope="session")
def small_cohort(phantoms: Path, share: Share) -> Path:
    """Six cases of 60 x 60 x 39 voxels of 4 mm: the phantoms and their mirror images."""

    def make(out: Path) -> None:
        folders = sorted(path for path in phantoms.rglob("BraTS20_*") if path.is_dir())
        for number, (folder, turn) in enumerate(product(folders, (1, -1)), 1):
            name = f"BraTS20_Training_{number:03d}"
            for file in folder.glob("*.nii.gz"):
                write_smaller(nib.load(file), 4, out / name / file.name.replace(folder.name, name), turn)

    return share("small_cohort", make)


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
def training(models_before, cohort, share) -> Path:
    """Output folder of a tiny training on two phantoms, with one to validate on."""
    return share(
        "training",
        lambda output: bundle_run("train.json", dataset_dir=str(cohort), output_dir=str(output), **TRAINING_SIZE),
    )


@pytest.fixture(scope="session")
def model_file(tmp_path_factory) -> str:
    """Weights of a tiny network that was never trained, without a record."""
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("weights") / "model.pt"
    torch.save(PriorAttentionNet(channels=CHANNELS).state_dict(), path)
    return str(path)


@pytest.fixture(scope="session")
def evaluation(cohort, training, share) -> Path:
    """Folder of the evaluation of all three phantoms with the tiny training's weights, in a copy of its folder."""
    size = {key: value for key, value in TRAINING_SIZE.items() if key != "max_epochs"}

    def make(output: Path) -> None:
        shutil.copytree(training, output)
        place = {"dataset_dir": str(cohort), "output_dir": str(output), "cases": "all"}
        bundle_run("train.json", "evaluate.json", **place, **size)

    return share("evaluation", make) / "evaluation_all"


@pytest.fixture(scope="session")
def segmentation(cohort, training, share) -> Path:
    """Folder of label maps that inference wrote for the three phantoms."""
    place = {"dataset_dir": str(cohort), "model_file": str(training / "model.pt")}
    return share("segmentation", lambda output: bundle_run("inference.json", **place, output_dir=str(output), **SIZE))


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
