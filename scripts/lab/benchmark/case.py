# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Time the network's part of one case on the CPU: the authors' testing path against the ways of this bundle."""

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
from scripts.brats import REGIONS
from scripts.data.datalist import unlabeled_items
from scripts.inference.inferers import BrainWindowInferer, WholeVolumeInferer
from scripts.inference.openvino import OpenVINONetwork
from scripts.lab.benchmark.measure import Report, add_channels, cases_of, positive, summary, time_side_by_side
from scripts.networks import PriorAttentionNet
from scripts.utils.errors import InputError
from scripts.utils.files import CONFIGS
from scripts.utils.tensors import load_torch, save_torch
from scripts.weights.loading import check_weights

WINDOW = (128, 128, 128)
# The authors pad each volume to this size, and the step between their windows gives an overlap of 0.75.
AUTHORS_VOLUME, AUTHORS_STEP = (240, 240, 160), (32, 32, 32)
BASELINE = "the authors' path"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--dataset-dir", type=Path, help="folder of one case (default: a new phantom)")
    parser.add_argument("--model-file", type=Path, help="weights (default: random weights, whose maps are noise)")
    add_channels(parser)
    parser.add_argument("--spacing", type=float, default=1.0, help="voxel size in mm (default: %(default)s)")
    parser.add_argument("--window", type=positive, default=128, help="edge of a window (default: %(default)s)")
    parser.add_argument("--runs", type=positive, default=3, help="timed runs after a warm-up (default: %(default)s)")
    parser.add_argument("--agreement", action="store_true", help="also compare label maps with torch's float32 maps")
    parser.add_argument("--output", type=Path, help="JSON file to write")


def run(args: argparse.Namespace) -> None:
    """Time all candidates and report the results."""
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
        image = preprocessed(args.dataset_dir or cases_of(folder / "cohort", 1, Console(stderr=True)), args.spacing)
        rows, facts = measure(network, str(model_file), image, folder, args)
    Report(f"The network's part of a case, brain of {tuple(image.shape[2:])} voxels", args.output).show(rows, facts)


def measure(
    network: PriorAttentionNet, model_file: str, image: torch.Tensor, folder: Path, args: argparse.Namespace
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Return the rows of the table and the facts to report with them."""
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
            # This candidate would take minutes and show only what the authors' row shows already.
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
    """Return the Dice of OpenVINO's maps with torch's float32 maps on the same windows, by region."""
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
    """Return the first case of a folder as inference.json prepares it at ``spacing`` mm, of shape (1, 4, *size)."""
    items = unlabeled_items(dataset_dir)
    if not items:
        raise InputError(f"{dataset_dir}: no case found; give the folder of one case.")
    parser = ConfigParser()
    parser.read_config(str(CONFIGS / "inference.json"))
    parser["spacing"] = [spacing] * 3
    image: torch.Tensor = parser.get_parsed_content("preprocessing")(items[0])["image"]
    return image.as_subclass(torch.Tensor)[None]
