# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Train a small network as users do: with validation, resumed, in float16 and from the cache; then evaluate it."""

import csv
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigWorkflow
from scripts import command
from scripts.lab.benchmark.cohort import subset
from scripts.lab.benchmark.measure import Report, peak_gb, reset_peak
from scripts.lab.gpu_check.options import parse
from scripts.training.training_state import newest_state
from scripts.utils.errors import InputError
from scripts.utils.files import BUNDLE_ROOT, CONFIGS
from scripts.utils.literals import literal

SETTINGS = {"network_def#channels": [8, 16, 24, 32, 40], "spacing": [2.0] * 3, "patch_size": [64] * 3, "num_workers": 2}
SMALL = {"network_def#channels": [4, 4, 8, 8, 8], "spacing": [4.0] * 3, "patch_size": [32] * 3, "num_workers": 2}
SCHEDULE = {"max_epochs": 2, "val_interval": 1, "warmup_epochs": 1, "flat_epochs": 1, "validation_fraction": 0.5}


def main(argv: Sequence[str] | None = None) -> int:
    """Run everything and return 0, or raise the first error."""
    args = parse("runs", __doc__, argv, "folder of labeled cases")
    rows: list[dict[str, Any]] = []
    report = Report(f"Small trainings on {args.device}", args.output)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subset(args.dataset_dir, 2 if args.small else 4, folder / "cases", labels=True)
        common: dict[str, Any] = {"device": args.device, "publish": False, **(SMALL if args.small else SETTINGS)}
        places = {"bundle_root": BUNDLE_ROOT, "dataset_dir": folder / "cases"}
        cache = {"cache_dir": literal(str(folder / "cache"))}
        resumed = {"resume": True, "max_epochs": 3}
        # By name: files, settings, the folder of the run, and its epochs.
        ways: dict[str, tuple[tuple[str, ...], dict[str, Any], str, int]] = {
            "training with validation": (("train.json",), {}, "plain", 2),
            "resumed": (("train.json",), resumed, "plain", 3),
            "float16": (("train.json",), {"amp_dtype": "float16"}, "float16", 2),
            "float16, resumed": (("train.json",), {"amp_dtype": "float16", **resumed}, "float16", 3),
            "cached, two workers": (("train.json", "train_cached.yaml"), cache, "cached", 2),
        }
        if torch.device(args.device).type == "cpu":
            ways = {way: how for way, how in ways.items() if "float16" not in way}
        for way, (files, settings, run, epochs) in ways.items():
            row = timed(files, {**common, **SCHEDULE, **settings}, {**places, "output_dir": folder / run})
            _, state = newest_state(folder / run)
            if state["epoch"] != epochs or not 0 <= state["best_metric"] <= 1:
                raise InputError(f"{way}: {state['epoch']} epochs, not {epochs}, and Dice {state['best_metric']}.")
            if ("float16" in way) != bool(state["scaler"]):
                raise InputError(f"{way}: the state of the scaler is {state['scaler']}.")
            rows.append({"name": way, "dice": state["best_metric"], **row})
            report.save(rows)
        files = ("train.json", "evaluate.json")
        row = timed(files, common, {**places, "output_dir": folder / "plain"})
        with (folder / "plain" / "evaluation_validation" / "summary.csv").open(newline="") as file:
            mean = next(csv.DictReader(file))
        rows.append({"name": "evaluation", "dice": float(mean["dice_WT"]), **row})
        report.show(rows, {"dice": "mean of the best validation; of WT in the evaluation"})
    return 0


def timed(names: Sequence[str], settings: dict[str, Any], places: dict[str, Path]) -> dict[str, Any]:
    """Run a workflow and return its seconds and its peak memory."""
    given = {**settings, **{key: literal(str(path)) for key, path in places.items()}}
    reset_peak()
    start = time.perf_counter()
    workflow = ConfigWorkflow([str(CONFIGS / name) for name in names], logging_file=False, **given)
    workflow.initialize()
    workflow.run()
    workflow.finalize()
    return {"seconds": time.perf_counter() - start, "peak_gb": peak_gb()}


if __name__ == "__main__":
    command.run(main)
