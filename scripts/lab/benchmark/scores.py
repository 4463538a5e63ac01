# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Time the metrics of an evaluation, case by case, on predictions with many false lesions."""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from monai.data import MetaTensor
from monai.metrics import CumulativeIterationMetric, DiceMetric, SurfaceDiceMetric
from rich.console import Console
from scipy import ndimage
from scripts.brats import REGIONS
from scripts.data.datalist import labeled_items
from scripts.data.images import read_image, voxels_of
from scripts.data.regions import labels_to_regions
from scripts.data.transforms import CropToLesiond
from scripts.lab.benchmark.measure import Report, cases_of, positive
from scripts.scores.lesion_wise import LesionWiseScores
from scripts.scores.metrics import BratsHausdorffDistance95, SensitivitySpecificity, SurfaceDice
from scripts.utils.errors import InputError

METRICS: dict[str, CumulativeIterationMetric] = {
    "Dice": DiceMetric(include_background=False, ignore_empty=False),
    "HD95": BratsHausdorffDistance95(),
    "sensitivity and specificity": SensitivitySpecificity(),
    "surface Dice at 0.5 and 1 mm": SurfaceDice([0.5, 1.0]),
    "MONAI's surface Dice at one voxel": SurfaceDiceMetric([1.0] * len(REGIONS), use_subvoxels=True),
    "lesion-wise Dice and HD95": LesionWiseScores(),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--dataset-dir", type=Path, help="folder of labeled cases (default: a new phantom)")
    parser.add_argument(
        "--specks", type=positive, default=60, help="false lesions of each region and case (default: %(default)s)"
    )
    parser.add_argument("--output", type=Path, help="JSON file to write")


def run(args: argparse.Namespace) -> None:
    """Time each metric on each case and report the results."""
    seconds: dict[str, list[float]] = {name: [] for name in METRICS}
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory() as folder:
        cohort = args.dataset_dir or cases_of(Path(folder) / "cohort", 1, console)
        for number, (pred, label) in enumerate(pairs(cohort, args.specks), 1):
            for name, metric in METRICS.items():
                # Processor seconds are the same while other work disturbs the machine.
                start = time.process_time()
                metric(pred, label)
                seconds[name].append(time.process_time() - start)
            console.print(f"case {number}, {tuple(label.shape[2:])} voxels in the lesion's box", highlight=False)
    rows = [
        {"name": name, "median_s": statistics.median(values), "max_s": max(values), "cases": len(values)}
        for name, values in seconds.items()
    ]
    Report("Processor seconds of each metric for a case", args.output).show(rows, {"specks": args.specks})


def pairs(dataset_dir: Path, specks: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield prediction and reference of each case, (1, 4, *size), in the box that an evaluation leaves.

    The prediction is the reference moved by two voxels along each axis, with cubes of 3 voxels all over the grid.
    """
    items = labeled_items(dataset_dir)
    if not items:
        raise InputError(f"{dataset_dir}: no labeled case found; give a folder of labeled cases.")
    for number, item in enumerate(items):
        image = read_image(item["label"])
        labels = torch.as_tensor(voxels_of(image, item["label"]).astype(np.uint8))
        label = labels_to_regions(labels, int(item["et_label"]))
        pred = torch.roll(label, (2, 2, 2), (1, 2, 3))
        generator = np.random.default_rng(number)
        for channel in range(1, 1 + len(REGIONS)):
            seeds = np.zeros(labels.shape, bool)
            seeds[tuple(generator.integers(1, n - 1, specks) for n in labels.shape)] = True
            pred[channel][torch.as_tensor(ndimage.binary_dilation(seeds, np.ones((3, 3, 3), bool)))] = 1
        cut = CropToLesiond(["pred", "label"])(
            {key: MetaTensor(regions, affine=image.affine) for key, regions in (("pred", pred), ("label", label))}
        )
        yield cut["pred"][None], cut["label"][None]
