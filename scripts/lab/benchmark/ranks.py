# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Time training by one process and by several: Gloo with one thread each on a CPU, NCCL with one GPU each."""

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from scripts.data.datalist import labeled_items
from scripts.lab.benchmark.measure import Report, add_device, cases_of, positive
from scripts.lab.bundle_run import workflow_arguments
from scripts.utils.errors import InputError
from scripts.utils.files import BUNDLE_ROOT, save_json
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

NAMES = ("train.json", "train_cached.yaml", "multi_gpu_train.json")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    gpus = torch.cuda.device_count()
    add_device(parser)
    default = list(range(1, gpus + 1)) if gpus else [1, 2]
    parser.add_argument(
        "--ranks", type=positive, nargs="+", default=default, help="numbers of processes (default: %(default)s)"
    )
    parser.add_argument("--dataset-dir", type=Path, help="labeled cases (default: new phantoms)")
    parser.add_argument("--cases", type=positive, default=8, help="cases in an epoch (default: %(default)s)")
    parser.add_argument(
        "--epochs", type=positive, default=4, help="epochs of a run; the first is not timed (default: %(default)s)"
    )
    parser.add_argument("--size", type=positive, default=64, help="edge of the patch (default: %(default)s)")
    parser.add_argument(
        "--channels", type=positive, nargs=5, default=[8, 16, 24, 32, 40], help="of the network (default: %(default)s)"
    )
    parser.add_argument("--output", type=Path, help="JSON file to write")


def run(args: argparse.Namespace) -> None:
    """Time all candidates and report the results."""
    console = Console(stderr=True)
    if args.epochs < 2:
        raise InputError("--epochs 1: the first epoch is not timed; give 2 or more.")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cohort = args.dataset_dir or cases_of(folder / "phantoms", args.cases, console)
        items = labeled_items(cohort)[: args.cases]
        if len(items) < args.cases:
            raise InputError(f"{cohort}: only {len(items)} labeled cases for --cases {args.cases}; give fewer --cases.")
        datalist = folder / "datalist.json"
        save_json({"training": items, "validation": []}, datalist)
        rows: list[dict[str, Any]] = []
        for ranks in args.ranks:
            seconds = epoch_times(args, ranks, cohort, datalist, folder)
            rows.append(
                {
                    "name": f"{ranks} process{'es' * (ranks > 1)}",
                    "median_s": statistics.median(seconds),
                    "min_s": min(seconds),
                    "max_s": max(seconds),
                    "epochs": len(seconds),
                }
            )
            console.print(f"{ranks} processes: {rows[-1]['median_s']:.2f} s an epoch", highlight=False)
        for row in rows:
            row["times_faster"] = rows[0]["median_s"] / row["median_s"]
    backend = "nccl" if torch.device(args.device).type == "cuda" else "gloo, one thread a process"
    facts: dict[str, Any] = {"backend": backend, "samples an epoch": args.cases, "configurations": " + ".join(NAMES)}
    title = f"Seconds of an epoch of {args.cases} samples, patch of {args.size}^3"
    Report(title, args.output).show(rows, facts)


def epoch_times(args: argparse.Namespace, ranks: int, cohort: Path, datalist: Path, folder: Path) -> list[float]:
    """Return the seconds of each epoch after the first, by the times at which the curves were written.

    The first epoch is left out because it fills the cache.

    Raises:
        InputError: the training failed.
    """
    output = folder / f"ranks_{ranks}"
    settings: dict[str, Any] = {
        "dataset_dir": cohort,
        "datalist_file": datalist,
        "output_dir": output,
        "cache_dir": folder / "cache",
        "network_def#channels": args.channels,
        "patch_size": [args.size] * 3,
        "max_epochs": args.epochs,
        "val_interval": 0,
        "num_workers": 0,
    }
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks), "-m"]
    arguments = [*torchrun, *workflow_arguments(NAMES, settings)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if torch.device(args.device).type == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    done = subprocess.run(arguments, cwd=BUNDLE_ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        told = [line for line in done.stderr.splitlines() if line.startswith("error: ")] or ["it gave no reason"]
        raise InputError(f"training with {ranks} processes failed: {told[0].removeprefix('error: ')}")
    events = EventAccumulator(str(output / "tensorboard" / "training"))
    events.Reload()
    steps = -(-args.cases // ranks)
    ends = [event.wall_time for event in events.Scalars("train/loss")][steps - 1 :: steps]
    return [after - before for before, after in itertools.pairwise(ends)]
