# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The network's part of one case on the CPU: the authors' testing path against this bundle's ways, side by side."""

from __future__ import annotations

import argparse
import statistics
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.data.utils import dense_patch_slices
from monai.inferers import Inferer
from rich.console import Console
from scripts.benchmark.measure import positive, report, summary, time_side_by_side
from scripts.brats import REGIONS
from scripts.data.datalist import unlabeled_items
from scripts.data.phantom import write_cohort
from scripts.errors import InputError
from scripts.files import CONFIGS, load_torch, save_torch
from scripts.inference.inferers import BrainWindowInferer, WholeVolumeInferer
from scripts.inference.openvino import OpenVINONetwork
from scripts.networks import PriorAttentionNet
from scripts.weights.loading import check_weights

WINDOW = (128, 128, 128)
# The authors' padded volume and their overlap of 0.75.
AUTHORS_VOLUME, AUTHORS_STEP = (240, 240, 160), (32, 32, 32)
BASELINE = "the authors' path"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument("--dataset_dir", type=Path, help="folder of one case (default: a phantom made for this)")
    parser.add_argument("--model_file", type=Path, help="weights (default: random ones, whose maps are noise)")
    parser.add_argument(
        "--channels", type=positive, nargs=5, default=[32, 64, 128, 256, 320], help="default: %(default)s"
    )
    parser.add_argument("--spacing", type=float, default=1.0, help="mm that the weights know (default: %(default)s)")
    parser.add_argument("--window", type=positive, default=128, help="edge of a window (default: %(default)s)")
    parser.add_argument("--runs", type=positive, default=3, help="of each, after one to warm up (default: %(default)s)")
    parser.add_argument("--agreement", action="store_true", help="also compare label maps with those of torch float32")
    parser.add_argument("--output", type=Path, help="JSON file for the results")


def run(args: argparse.Namespace) -> None:
    """Time and report."""
    torch.manual_seed(0)
    network = PriorAttentionNet(channels=args.channels).eval()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model_file = args.model_file
        if model_file is None:
            model_file = folder / "model.pt"
            save_torch(network.state_dict(), model_file)
        check_weights(network, str(model_file))
        network.load_state_dict(load_torch(model_file))
        image = preprocessed(args.dataset_dir or phantom(folder), args.spacing)
        rows, facts = measure(network, str(model_file), image, folder, args)
    report(f"The network's part of a case, brain of {tuple(image.shape[2:])} voxels", rows, args.output, facts)


def measure(
    network: PriorAttentionNet, model_file: str, image: torch.Tensor, folder: Path, args: argparse.Namespace
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Rows of the table, and what is to be said beside it."""
    windows: Inferer = BrainWindowInferer(roi_size=[args.window] * 3, sw_batch_size=1, overlap=0.5, mode="gaussian")
    whole: Inferer = WholeVolumeInferer(network.size_multiple)
    fast = {name: OpenVINONetwork(network, model_file, str(folder), name) for name in ("f32", "bf16")}
    window = torch.randn(1, network.in_channels, *WINDOW)
    with torch.inference_mode():
        candidates = {
            BASELINE: partial(network, window),
            "windows, torch float32": partial(windows, image, network),
            **{f"windows, OpenVINO {p}": partial(windows, image, f) for p, f in fast.items()},
            **{f"whole brain, OpenVINO {p}": partial(whole, image, f) for p, f in fast.items()},
        }
        if not args.agreement:
            # Minutes for what the authors' row shows already.
            del candidates["windows, torch float32"]
        seconds = time_side_by_side(candidates, args.runs, console=Console(stderr=True))
        facts = agreement(windows, whole, network, fast, image) if args.agreement else {}
    count = len(dense_patch_slices(AUTHORS_VOLUME, WINDOW, AUTHORS_STEP))
    one = statistics.median(seconds[BASELINE])
    seconds[BASELINE] = [count * value for value in seconds[BASELINE]]
    facts["the authors' path"] = f"{count} windows of one, which took {one:.2f} s in torch float32 (median)"
    return summary(seconds, BASELINE), facts


def agreement(
    windows: Inferer, whole: Inferer, network: PriorAttentionNet, fast: dict[str, OpenVINONetwork], image: torch.Tensor
) -> dict[str, str]:
    """Dice by region of OpenVINO's maps with those of torch in float32, on the same windows."""
    facts = {}
    for what, inferer in (("windows", windows), ("whole brain", whole)):
        wanted = inferer(image, network)[0, 1:] >= 0
        for name, candidate in fast.items():
            found = inferer(image, candidate)[0, 1:] >= 0
            both, total = (wanted & found).sum((1, 2, 3)), wanted.sum((1, 2, 3)) + found.sum((1, 2, 3))
            dice = [float(2 * b / t) if t else 1.0 for b, t in zip(both, total, strict=True)]
            values = ", ".join(f"{region} {value:.5f}" for region, value in zip(REGIONS, dice, strict=True))
            facts[f"Dice with torch float32, {what}, {name}"] = values
    return facts


def preprocessed(dataset_dir: Path, spacing: float) -> torch.Tensor:
    """The first case of a folder as inference.json prepares it, (1, 4, *size), at ``spacing`` mm."""
    items = unlabeled_items(dataset_dir)
    if not items:
        raise InputError(f"{dataset_dir}: no case found; give the folder of one.")
    parser = ConfigParser()
    parser.read_config(str(CONFIGS / "inference.json"))
    parser["spacing"] = [spacing] * 3
    image: torch.Tensor = parser.get_parsed_content("preprocessing")(items[0])["image"]
    return image.as_subclass(torch.Tensor)[None]


def phantom(folder: Path) -> Path:
    """A synthetic patient."""
    out = folder / "cohort"
    for _ in write_cohort(out, 1, 0, "demo"):
        pass
    return out
