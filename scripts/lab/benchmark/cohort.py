# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Time whole commands from files to label maps, over cohorts of several sizes: the authors' way against this bundle."""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from scripts.data.cases import image_files
from scripts.data.datalist import labeled_items, unlabeled_items
from scripts.data.dicom import series_files
from scripts.lab.benchmark.measure import Report, add_channels, add_device, cases_of, positive
from scripts.lab.bundle_run import workflow_arguments
from scripts.networks import PriorAttentionNet
from scripts.utils.errors import InputError
from scripts.utils.files import BUNDLE_ROOT
from scripts.utils.tensors import save_torch

AUTHORS = "the authors' way"
OURS = "this bundle"
# The authors' program computes in float32 and does one thing after another, so it is timed in this way.
AUTHORS_CONFIGS = ("inference.json", "authors.yaml")
AUTHORS_SETTINGS = {"amp": False, "num_workers": 0}
OUR_CONFIGS = {
    "cpu": ("inference.json", "openvino.yaml", "whole_brain.yaml"),
    "cuda": ("inference.json", "inference_pipelined.yaml"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    add_device(parser)
    parser.add_argument("--dataset-dir", type=Path, help="folder of cases (default: new phantoms)")
    parser.add_argument(
        "--cases", type=positive, nargs="+", default=[1, 10, 100], help="cohort sizes (default: 1 10 100)"
    )
    parser.add_argument(
        "--authors-cases", type=positive, nargs="*", default=[], help="cohort sizes for the authors' way"
    )
    add_channels(parser)
    parser.add_argument("--configs", nargs="+", help="configurations of this bundle's way (default: by device)")
    parser.add_argument("--spacing", type=float, default=1.0, help="voxel size in mm (default: %(default)s)")
    parser.add_argument("--window", type=positive, default=128, help="edge of a window (default: %(default)s)")
    parser.add_argument(
        "--num-workers", type=positive, help="loader processes of this bundle's way (default: by config)"
    )
    parser.add_argument("--output", type=Path, help="JSON file to write")


def run(args: argparse.Namespace) -> None:
    """Time all candidates and report the results."""
    console = Console(stderr=True)
    ours = args.configs or OUR_CONFIGS[torch.device(args.device).type]
    settings = {
        "device": args.device,
        "network_def#channels": args.channels,
        "spacing": [args.spacing] * 3,
        "roi_size": [args.window] * 3,
    }
    ways = {
        AUTHORS: (args.authors_cases, AUTHORS_CONFIGS, settings | AUTHORS_SETTINGS),
        OURS: (args.cases, ours, settings | ({"num_workers": args.num_workers} if args.num_workers else {})),
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.manual_seed(0)
        save_torch(PriorAttentionNet(channels=args.channels).state_dict(), folder / "model.pt")
        cohort = args.dataset_dir or cases_of(folder / "phantoms", max(*args.cases, *args.authors_cases, 1), console)
        rows: list[dict[str, Any]] = []
        report = Report(f"Whole commands from files to label maps, {args.device}", args.output)
        for way, (counts, configs, chosen) in ways.items():
            first: float | None = None
            for count in sorted(counts):
                part = folder / f"{count}_cases"
                if not part.exists():
                    subset(cohort, count, part)
                place = {"dataset_dir": part, "output_dir": folder / "maps", "model_file": folder / "model.pt"}
                place |= {"openvino_cache": folder / "openvino"} if "openvino.yaml" in configs else {}
                if first is None:
                    # The first run converts the weights and reads the files for the first time, so it is not timed.
                    run_workflow(configs, chosen | place, folder)
                seconds, gigabytes = run_workflow(configs, chosen | place, folder)
                first = seconds if first is None else first
                more = count - min(counts)
                each = (seconds - first) / more if more else None
                rows.append(
                    {"name": way, "cases": count, "seconds": seconds, "s_each_further_case": each, "peak_gb": gigabytes}
                )
                report.save(rows)
                console.print(f"{way}, {count} cases: {seconds:.1f} s, {gigabytes:.2f} GB", highlight=False)
    theirs = f"{' + '.join(AUTHORS_CONFIGS)}, float32, nothing at the same time"
    facts: dict[str, Any] = {
        AUTHORS: theirs if args.authors_cases else "not run",
        OURS: " + ".join(ours),
        "s_each_further_case": "what each case adds to the time of the smallest cohort",
        "peak_gb": "of the largest process",
    }
    further = {r["name"]: r["s_each_further_case"] for r in rows if r["s_each_further_case"]}
    if further.keys() == ways.keys():
        facts["times faster, a further case"] = round(further[AUTHORS] / further[OURS], 2)
    report.show(rows, facts)


def subset(cohort: Path, count: int, folder: Path, labels: bool = False) -> None:
    """Put the first ``count`` cases of ``cohort`` into ``folder``, as links, with their ``labels`` or without.

    Raises:
        InputError: ``cohort`` has fewer cases.
    """
    items = labeled_items(cohort) if labels else unlabeled_items(cohort)
    if len(items) < count:
        raise InputError(f"{cohort}: holds {len(items)} cases, but {count} are asked for; give fewer --cases.")
    for item in items[:count]:
        for number, image in enumerate([*image_files(item["image"]), *([item["label"]] if labels else [])]):
            files = series_files(image)
            # Files of two DICOM series may have the same names.
            place = folder / item["case"] / (str(number) if len(files) > 1 else "")
            place.mkdir(parents=True, exist_ok=True)
            for file in map(Path, files):
                (place / file.name).symlink_to(file.resolve())


def run_workflow(names: Sequence[str], settings: Mapping[str, Any], folder: Path) -> tuple[float, float]:
    """Run inference as a user does, and return what ``run_process`` does."""
    shutil.rmtree(settings["output_dir"], ignore_errors=True)
    return run_process(" + ".join(names), [sys.executable, "-m", *workflow_arguments(names, settings)], folder)


def run_process(what: str, arguments: Sequence[str], folder: Path) -> tuple[float, float]:
    """Run a program, whose output goes to ``folder``, and return its seconds and its largest process's memory, in GB.

    Raises:
        InputError: it failed; the last line of its output says why.
    """
    with open(folder / "log.txt", "w+", encoding="utf-8") as log:
        start = time.perf_counter()
        process = subprocess.Popen(arguments, cwd=BUNDLE_ROOT, stdout=log, stderr=log)
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            log.seek(0)
            raise InputError(f"{what}: failed; {log.read().strip().splitlines()[-1:]}")
    # Linux gives the memory in KiB.
    return seconds, used.ru_maxrss * 1024 / 1e9
