# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Running the bundle's workflows at test size (tiny widths, few iterations), and reading what they leave."""

import csv
import os
import signal
import subprocess
from pathlib import Path

import monai
import nibabel as nib
import numpy as np
import torch
from forks import python
from ignite.engine import Events
from monai.bundle import ConfigWorkflow
from scripts.utils import distributed
from scripts.utils.errors import InputError

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "configs"
CHANNELS = [4, 4, 8, 8, 8]
# At 4 mm a brain is about 36 x 44 x 33 voxels: one window.
SIZE = {"network_def#channels": CHANNELS, "spacing": [4.0, 4.0, 4.0], "roi_size": [48, 48, 48], "num_workers": 0}
TRAINING_SIZE = {**SIZE, "patch_size": [32, 32, 32], "max_epochs": 3, "val_interval": 2, "warmup_epochs": 1}


def files(*names: str) -> list[str]:
    return [str(CONFIGS / name) for name in names]


def at(config: dict, path: str):
    """What stands in a configuration's content under an id such as ``train#preprocessing``."""
    for key in path.split("#"):
        config = config[key]
    return config


def listed(config: dict, path: str) -> list[dict]:
    """The components of a list as they stand there, of one that joins others by name (``$@a + @b``), too."""
    value = at(config, path)
    names = value.removeprefix("$").split("+") if isinstance(value, str) else []
    entries = [entry for name in names for entry in listed(config, name.strip().removeprefix("@"))] if names else value
    return [at(config, entry.removeprefix("@")) if isinstance(entry, str) else entry for entry in entries]


def bundle_run(*names: str, **override) -> None:
    override.setdefault("bundle_root", str(ROOT))
    monai.bundle.run(config_file=files(*names), logging_file=False, **override)


def initialized(*names: str, kind: str, **override) -> ConfigWorkflow:
    """A workflow of these configurations, initialized and not run."""
    override.setdefault("bundle_root", str(ROOT))
    made = ConfigWorkflow(files(*names), workflow_type=kind, logging_file=False, **override)
    made.initialize()
    return made


def command(module: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    environment = {
        **os.environ,
        "PYTHONWARNINGS": "ignore",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
    }
    return subprocess.run(
        [python(), "-m", module, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


def voxels(path: Path) -> np.ndarray:
    return np.asanyarray(nib.load(path).dataobj)


def write_decathlon(cohort: Path, out: Path, order=("flair", "t1", "t1ce", "t2")) -> Path:
    """The cases of a BraTS folder as the Medical Segmentation Decathlon's Task01 has them, under the same names."""
    for name in ("imagesTr", "labelsTr"):
        (out / name).mkdir(parents=True, exist_ok=True)
    for file in sorted(cohort.rglob("*_seg.nii.gz")):
        name = f"{file.parent.name}.nii.gz"
        images = [nib.load(file.parent / f"{file.parent.name}_{sequence}.nii.gz") for sequence in order]
        stacked = np.stack([np.asanyarray(image.dataobj) for image in images], axis=-1)
        image = nib.Nifti1Image(stacked, images[0].affine)
        image.header["descrip"] = images[0].header["descrip"]
        nib.save(image, out / "imagesTr" / name)
        labels = np.array([0, 2, 1, 0, 3], np.uint8)[voxels(file)]
        nib.save(nib.Nifti1Image(labels, images[0].affine), out / "labelsTr" / name)
    return out


def rows(path: Path) -> dict[str, dict[str, str]]:
    with path.open(newline="") as file:
        return {next(iter(row.values())): row for row in csv.DictReader(file)}


def models() -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (ROOT / "models").iterdir()}


class KillAt:
    """A handler that ends its process as a power cut would, in the given iteration."""

    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def attach(self, engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED(once=self.iteration), self.kill)

    def kill(self, engine) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class FailAt:
    """A handler that raises on one rank, in the given iteration."""

    def __init__(self, iteration: int, rank: int) -> None:
        self.iteration, self.rank = iteration, rank

    def attach(self, engine) -> None:
        if distributed.rank() == self.rank:
            engine.add_event_handler(Events.ITERATION_COMPLETED(once=self.iteration), self.fail)

    def fail(self, engine) -> None:
        raise InputError(f"rank {self.rank} has had enough; try again.")


class SpoilAt:
    """A handler that makes NaN, on one rank, of a batch's images, and so of the loss, or of one of the weights."""

    def __init__(self, iteration: int, what: str = "images", rank: int = 0, network=None) -> None:
        self.iteration, self.what, self.rank, self.network = iteration, what, rank, network

    def attach(self, engine) -> None:
        if distributed.rank() == self.rank:
            event = Events.ITERATION_STARTED if self.what == "images" else Events.ITERATION_COMPLETED
            engine.add_event_handler(event(once=self.iteration), self.spoil)

    def spoil(self, engine) -> None:
        if self.what == "images":
            engine.state.batch["image"] = engine.state.batch["image"] * float("nan")
        else:
            with torch.no_grad():
                next(self.network.parameters()).view(-1)[0] = float("nan")


class TellCases:
    """A handler that writes down which cases a rank has seen."""

    def __init__(self, folder: str) -> None:
        self.path = Path(folder) / f"rank_{distributed.rank()}.txt"

    def attach(self, engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.tell)

    def tell(self, engine) -> None:
        with self.path.open("a") as file:
            file.writelines(f"{item['case']}\n" for item in engine.state.batch)


class KillWhileSaving:
    """A handler that ends its process when half of the trainer's state of the given epoch is written."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def attach(self, engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED(once=self.epoch), self.prepare)

    def prepare(self, engine) -> None:
        save = torch.save

        def half(value, path):
            save(value, path)
            if Path(path).name == "trainer_state.pt":
                os.truncate(path, Path(path).stat().st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)

        torch.save = half
