# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Measure training samples per second and core: the authors' way, train.json, and train_cached.yaml (filled cache)."""

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.data import list_data_collate
from rich.console import Console
from scripts.data.datalist import labeled_items
from scripts.lab.benchmark.measure import Report, cases_of, positive, summary, time_side_by_side
from scripts.training.augmentation import RandFastElasticd
from scripts.training.disk_cache import DiskCacheDataset
from scripts.utils.files import BUNDLE_ROOT, CONFIGS
from scripts.utils.literals import literal

BASELINE = "the authors' way"
PLAIN = "train.json"
CACHED = "train_cached.yaml"
FAST_DEFORMATION = "scripts.training.augmentation.RandFastElasticd"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--dataset-dir", type=Path, help="folder of cases (default: new phantoms)")
    parser.add_argument("--cases", type=positive, default=3, help="number of cases (default: %(default)s)")
    parser.add_argument("--samples", type=positive, default=16, help="samples in each run (default: %(default)s)")
    parser.add_argument("--runs", type=positive, default=5, help="timed runs after a warm-up (default: %(default)s)")
    parser.add_argument("--cache-dir", type=Path, help="folder of the cache (default: a temporary folder)")
    parser.add_argument("--output", type=Path, help="JSON file to write")


def run(args: argparse.Namespace) -> None:
    """Time all candidates in one process with one thread, and report the results."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            _run(args, Path(folder))
    finally:
        torch.set_num_threads(threads)


def _run(args: argparse.Namespace, folder: Path) -> None:
    console = Console(stderr=True)
    data = args.dataset_dir or cases_of(folder / "phantoms", args.cases, console)
    items = labeled_items(data)[: args.cases]
    cache = args.cache_dir or folder / "cache"
    datasets = {
        BASELINE: dataset([PLAIN], items, **{"train#random_transforms": authors_transforms()}),
        PLAIN: dataset([PLAIN], items),
        CACHED: dataset([PLAIN, CACHED], items, cache_dir=literal(str(cache))),
        f"{CACHED}, loader's part on a GPU": dataset(
            [PLAIN, CACHED], items, cache_dir=literal(str(cache)), augment_in_loader=False
        ),
    }
    candidates = {name: samples(made, args.samples) for name, made in datasets.items()}
    start = time.perf_counter()
    entries = {datasets[CACHED].path(item) for item in items if datasets[CACHED]._cachecheck(item)}
    filling = time.perf_counter() - start
    megabytes = sum(path.stat().st_size for path in entries) / max(1, len(items)) / 1e6
    candidates[CACHED]()
    memory = {CACHED: peak_gb()}
    candidates[PLAIN]()
    memory[f"{PLAIN} too"] = peak_gb()
    seconds = time_side_by_side(candidates, args.runs, console=console)
    memory[f"{BASELINE} too"] = peak_gb()
    rows = summary(seconds, BASELINE)
    for row in rows:
        row["samples_per_s_and_core"] = args.samples / row["median_s"]
    facts: dict[str, Any] = {
        "cases": len(items),
        "samples a run": args.samples,
        "of them deformed": sum(deformed(datasets[CACHED], index) for index in range(args.samples)),
        "filling the cache, s a case": round(filling / max(1, len(items)), 2),
        "on disk, MB a case": round(megabytes, 1),
        "on disk, GB for 1,251 cases": round(megabytes * 1.251, 1),
        "largest memory of the process, GB, with": memory,
    }
    for name in (BASELINE, PLAIN, CACHED):
        facts[f"mean ms of each step, {name}"] = step_times(datasets[name], args.samples)
    Report("Training samples of one process with one thread", args.output).show(rows, facts)


def peak_gb() -> float:
    """Return the most memory that this process has used so far, in GB (Linux gives it in KiB)."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2)


def authors_transforms() -> list[dict[str, Any]]:
    """Return train.json's random transforms as configuration, with the authors' deformation (``Rand3DElasticd``)."""
    steps = ConfigParser.load_config_file(str(CONFIGS / PLAIN))["train"]["random_transforms"]
    return [{**s, "_target_": "Rand3DElasticd"} if s["_target_"] == FAST_DEFORMATION else s for s in steps]


def dataset(names: list[str], items: list[dict[str, Any]], **settings: Any) -> Any:
    """Return the training dataset over ``items`` that the configurations define."""
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / name) for name in names])
    lists = {"training": tuple(items), "validation": ()}
    parser.update({"bundle_root": literal(str(BUNDLE_ROOT)), "datalist": lists, **settings})
    # The datalist is set, so the dataset is made without a search for cases.
    return parser.get_parsed_content("train#dataset")


def samples(made: Any, number: int) -> Callable[[], None]:
    """Return a function that makes the same ``number`` samples at each call."""

    def make() -> None:
        for index in range(number):
            made.transform.epoch = index
            # A loader collates, too. Values from the cache that no transform has used are read from the disk only here.
            list_data_collate([made[index % len(made)]])

    return make


def step_times(made: Any, number: int) -> dict[str, float]:
    """Return the mean milliseconds of each step of a sample, over ``number`` samples."""
    taken: dict[str, float] = {}

    def timed(name: str, step: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = step()
        taken[name] = taken.get(name, 0.0) + (time.perf_counter() - start) * 1000 / number
        return result

    cached = isinstance(made, DiskCacheDataset)
    for index in range(number):
        made.transform.epoch = index
        item = made.data[index % len(made)]
        if cached:
            item = timed("cache", partial(made._cachecheck, item))
        # Each step's random numbers follow from the case, so the steps may be called one at a time.
        for position in range(made.first_random if cached else 0, len(made.transform)):
            name = type(made.transform.transforms[position]).__name__
            item = timed(name, partial(made.transform, item, start=position, end=position + 1))
    return {name: round(value, 1) for name, value in taken.items()}


def deformed(made: Any, index: int) -> bool:
    """Return whether sample ``index`` of a run is deformed; all candidates agree, since they draw from one seed."""
    made.transform.epoch = index
    made[index % len(made)]
    return any(bool(step._do_transform) for step in made.transform.transforms if isinstance(step, RandFastElasticd))
