# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Time the steps from probabilities to label map and scores: on the whole grid against the lesion's box."""

import argparse
import tempfile
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.metrics import DiceMetric
from rich.console import Console
from scipy import ndimage
from scripts.brats import ET_CHANNEL
from scripts.data.datalist import labeled_items
from scripts.data.images import read_image, voxels_of
from scripts.data.postprocessing import THRESHOLDS, voxel_mm3
from scripts.data.regions import labels_to_regions
from scripts.data.transforms import CropToLesiond, LabelsToRegionsd, ProbabilitiesToLabelMapd
from scripts.lab.benchmark.measure import Report, cases_of, positive, summary, time_side_by_side
from scripts.scores.metrics import BratsHausdorffDistance95
from scripts.utils.errors import InputError

BASELINE = "whole grid"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--dataset-dir", type=Path, help="folder of one labeled case (default: a new phantom)")
    parser.add_argument("--runs", type=positive, default=5, help="timed runs after a warm-up (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="JSON file to write")


def run(args: argparse.Namespace) -> None:
    """Time all candidates and report the results."""
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory() as folder:
        items = labeled_items(args.dataset_dir or cases_of(Path(folder) / "cohort", 1, console))
        if not items:
            raise InputError(f"{args.dataset_dir}: no labeled case found; give the folder of one labeled case.")
        image = read_image(items[0]["label"])
        labels = torch.as_tensor(voxels_of(image, items[0]["label"]).astype(np.uint8))
    reference = MetaTensor(labels_to_regions(labels, int(items[0]["et_label"])), affine=image.affine)
    # The prediction is the reference dilated by two voxels, so its whole border is wrong.
    grown = [torch.as_tensor(ndimage.binary_dilation(region, iterations=2)) for region in reference[1:].numpy()]
    predicted = MetaTensor(torch.stack([torch.zeros(labels.shape), *(0.9 * region.float() for region in grown)]))
    predicted.affine = reference.affine
    item: dict[Hashable, Any] = {"pred": predicted, "label": reference}
    results: dict[str, list[float]] = {}
    candidates = {
        BASELINE: lambda: results.update({BASELINE: whole_grid(item)}),
        "lesion's box": lambda: results.update({"lesion's box": in_the_box(item)}),
    }
    seconds = time_side_by_side(candidates, args.runs, console=console)
    facts = {
        f"Dice and HD95 of ET, TC, WT, {name}": str([round(v, 6) for v in found]) for name, found in results.items()
    }
    Report("From probabilities to label map and scores", args.output).show(summary(seconds, BASELINE), facts)


def scores(predicted: torch.Tensor, reference: torch.Tensor) -> list[float]:
    """Return Dice and HD95 (mm) of ET, TC and WT."""
    pair = (predicted[None], reference[None])
    dice = torch.as_tensor(DiceMetric(include_background=False, ignore_empty=False)(*pair))
    return [*dice[0].tolist(), *torch.as_tensor(BratsHausdorffDistance95()(*pair))[0].tolist()]


def in_the_box(item: dict[Hashable, Any]) -> list[float]:
    """Return the scores in the way of train.json's validation."""
    for step in (
        ProbabilitiesToLabelMapd("pred", THRESHOLDS),
        CropToLesiond(["pred", "label"]),
        LabelsToRegionsd("pred", et_label=4),
    ):
        item = step(item)
    return scores(item["pred"], item["label"])


def whole_grid(item: dict[Hashable, Any]) -> list[float]:
    """Return the scores by the same rules, each applied to all voxels."""
    regions = np.asarray(item["pred"]) >= 0.5
    voxel = voxel_mm3(item["pred"])
    for region in regions[ET_CHANNEL:]:
        components, _ = ndimage.label(region)
        region &= np.bincount(components.ravel())[components] * voxel >= THRESHOLDS["min_component_mm3"]
    et, tc, wt = regions[ET_CHANNEL:]
    if et.sum() * voxel < THRESHOLDS["min_et_mm3"]:
        tc |= et
        wt |= et
        et[:] = False
    labels = np.where(et, 4, np.where(tc, 1, np.where(wt, 2, 0)))
    predicted = MetaTensor(labels_to_regions(torch.as_tensor(labels), 4), affine=item["label"].affine)
    return scores(predicted, item["label"])
