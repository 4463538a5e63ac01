# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Runs of a tiny network on tiny cases: what comes before the engine and after it."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.inferers import SimpleInferer
from monai.transforms import Compose
from scripts.brats import CHANNEL_ORDER
from scripts.data.postprocessing import THRESHOLDS
from scripts.networks import PriorAttentionNet
from scripts.weights.settings import weights_settings
from scripts.workflow.configuration import Configuration
from scripts.workflow.preparation import prepare_evaluation, prepare_training

GOLDEN = Path(__file__).parent / "golden"
ARGUMENTS = {"spatial_dims": 3, "channels": [4, 4, 4, 4, 8]}


def golden_input():
    """The input of the authors' golden figures."""
    index = np.arange(4 * 48 * 32 * 32, dtype=np.int64)
    values = ((index * 2654435761) % 2**32) / 2**32 * 4 - 2
    return torch.from_numpy(values.astype(np.float32).reshape(1, 4, 48, 32, 32))


def small_network(**changes):
    torch.manual_seed(0)
    return PriorAttentionNet(**{**ARGUMENTS, **changes})


def make_cases(root, count=5, label=True, description=""):
    """Cases of 4^3 voxels."""
    for index in range(1, count + 1):
        name = f"BraTS20_Training_{index:03}"
        (root / name).mkdir(parents=True)
        for suffix in ("t1", "t2", "t1ce", "flair", *(["seg"] if label else [])):
            # The same image may not stand twice.
            noise = np.random.default_rng(list(f"{name}_{suffix}".encode())).integers(1, 1000, (4, 4, 4))
            image = nib.Nifti1Image(
                noise.astype(np.int16) if suffix != "seg" else np.ones((4, 4, 4), np.int16), np.eye(4)
            )
            image.header["descrip"] = description.encode()
            nib.save(image, root / name / f"{name}_{suffix}.nii.gz")
    return root


def configuration(content: dict) -> Configuration:
    """What a bundle's run would give of this content."""
    parser = ConfigParser(content)
    return Configuration(parser)


def record(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


def contents(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def settings() -> dict:
    """What stands in the record of the small network's weights, outside a running configuration."""
    return weights_settings(small_network(), {}, [1, 1, 1], False, Compose([]), THRESHOLDS)


class Given(Configuration):
    """A configuration that is not a file's: its settings and parts are given by name, and its content if it matters."""

    workflow = "inference"
    content = None

    def __init__(self, values: dict, content: dict | None = None) -> None:
        super().__init__(ConfigParser({}))
        self.values = values
        self.content = content or {}

    def get(self, name, default=None):
        return self.values.get(name, default)


COMMON = {"datalist_file": None, "channel_order": list(CHANNEL_ORDER), "saved_et_label": 4}


def prepare(datalist, dataset_dir, output_dir, **changes):
    """Prepare a training on the lists of ``datalist``."""
    network = small_network()
    values = {
        **COMMON,
        "weights_settings": settings(),
        "train#dataset#data": datalist["training"],
        "validate#dataset#data": datalist["validation"],
        "val_interval": 1,
        "dataset_dir": str(dataset_dir),
        "output_dir": str(output_dir),
        "overwrite": False,
        "network": network,
        "optimizer": torch.optim.Adam(network.parameters()),
        "train#preprocessing": Compose([]),
        "batch_size": 1,
        "resume": False,
        "pretrained_file": None,
        "reinitialize": (),
    }
    prepare_training(Given(values | changes))


def evaluate(items, dataset_dir, model, output_dir, **changes):
    """Prepare an evaluation of ``items``, or an inference of them if ``all_cases`` are given."""
    given = Given(
        {
            **COMMON,
            "weights_settings": settings(),
            "dataset#data": items,
            "validate#dataset#data": items,
            "dataset_dir": str(dataset_dir),
            "output_dir": str(output_dir),
            "evaluation_dir": str(output_dir),
            "cases": "all",
            "overwrite": False,
            "network": small_network(),
            "inferer": SimpleInferer(),
            "validate#inferer": SimpleInferer(),
            "model_file": str(model),
            "load_pretrain": True,
            **changes,
        }
    )
    given.workflow = "inference" if "all_cases" in changes else "evaluation"
    prepare_evaluation(given)


class ShiftedThresholds(torch.nn.Module):
    """A network whose answer is known: bright T2 is TC, bright T1ce is ET and bright FLAIR is WT, moved by ``SHIFT``.

    The shift is in voxels along the network's axes, so that a volume in another orientation, or at another scale, gives
    another answer. Bright is what lies above the middle between the median of the brain and its brightest voxel. The
    volume must fit into one window.
    """

    spatial_dims, in_channels, out_channels, size_multiple = 3, 4, 4, 16
    SHIFT = (3, -2, 3)

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(100.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        regions = []
        for channel in (2, 1, 3):
            volume = x[:, channel]
            halfway = (volume[volume != 0].median() + volume.max()) / 2
            regions.append(self.scale * (volume - halfway))
        logits = torch.stack([-regions[2], *regions], dim=1)
        return torch.roll(logits, self.SHIFT, dims=(2, 3, 4))
