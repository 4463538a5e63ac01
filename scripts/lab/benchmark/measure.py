# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Time candidates side by side, and report the results with the machine and the versions, as a table and JSON."""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from scripts.lab.phantoms.cohort import write_cohort
from scripts.utils.errors import InputError
from scripts.utils.files import keep_earlier, save_json
from scripts.utils.run_json import versions
from scripts.workflow.settings import check_device


def positive(text: str) -> int:
    """Return a whole number above 0 from the command line."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be a whole number above 0")
    return int(text)


def device_name(text: str) -> str:
    """Return the name of a device from the command line, if torch can use it here."""
    try:
        check_device(text)
        torch.device(text)
    except (InputError, RuntimeError):
        raise argparse.ArgumentTypeError(
            f"{text}: torch has no such device here; give cpu, cuda or cuda:<number>"
        ) from None
    return text


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add the option ``--device``, which is the GPU by default, if there is one."""
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", type=device_name, default=default, help="torch device (default: %(default)s)")


def cases_of(folder: Path, count: int, console: Console) -> Path:
    """Write ``count`` phantoms into ``folder`` and return it."""
    for made, _ in enumerate(write_cohort(folder, count, seed=0, difficulty="demo"), 1):
        console.print(f"phantom {made} of {count}", highlight=False)
    return folder


def machine() -> dict[str, Any]:
    """Return the processor, its cores, the memory (GiB), the instructions for fast arithmetic, and the GPUs."""
    names = [line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    flags = next((line.split(":")[1].split() for line in _lines("/proc/cpuinfo") if line.startswith("flags")), [])
    memory = [int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal")]
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory[0] / 2**20, 1) if memory else None,
        "instructions": [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags],
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "torch_threads": torch.get_num_threads(),
    }


def _lines(path: str) -> list[str]:
    file = Path(path)
    return file.read_text(encoding="utf-8").splitlines() if file.is_file() else []


def time_side_by_side(
    candidates: Mapping[str, Callable[[], Any]],
    runs: int,
    warmup: int = 1,
    console: Console | None = None,
    save: Callable[[dict[str, list[float]]], None] | None = None,
) -> dict[str, list[float]]:
    """Return the seconds of each run of each candidate. ``save`` gets those so far after each turn.

    The candidates take turns, so that other work of the machine slows all of them alike. The first ``warmup`` turns do
    not count. The time of a run includes its work on a GPU.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(warmup + runs):
        for name, run in candidates.items():
            start = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            taken = time.perf_counter() - start
            if turn >= warmup:
                seconds[name].append(taken)
            if console is not None:
                console.print(f"{name}: turn {turn + 1} of {warmup + runs}, {taken:.2f} s", highlight=False)
        if save is not None and turn >= warmup:
            save(seconds)
    return seconds


def reset_peak() -> None:
    """Count ``peak_gb`` from here on."""
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()


def peak_gb() -> float | None:
    """The most memory of the current GPU that tensors have taken, in GB; None if no GPU is used."""
    return round(torch.cuda.max_memory_allocated() / 1e9, 2) if torch.cuda.is_initialized() else None


class OwnProcess:
    """A candidate in a process of its own, for settings that a process cannot take back.

    Args:
        make: function at the top of a module that returns the candidate.
        arguments: its arguments.
    """

    def __init__(self, make: Callable[..., Callable[[], Any]], *arguments: Any) -> None:
        self.pool = ProcessPoolExecutor(1, get_context("spawn"), _make, (make, arguments))

    def __call__(self) -> None:
        """Run the candidate and wait until it ends. Its errors are raised here."""
        self.pool.submit(_run).result()

    def close(self) -> None:
        """End the process."""
        self.pool.shutdown()


# The candidate of an ``OwnProcess``, in that process.
_candidate: Callable[[], Any]


def _make(make: Callable[..., Callable[[], Any]], arguments: tuple[Any, ...]) -> None:
    global _candidate
    _candidate = make(*arguments)


def _run() -> None:
    _candidate()


def summary(seconds: Mapping[str, list[float]], baseline: str) -> list[dict[str, Any]]:
    """Return each candidate's median and range, and how many times faster than ``baseline`` it is."""
    reference = statistics.median(seconds[baseline])
    return [
        {"name": name, **spread(values), "times_faster": reference / statistics.median(values)}
        for name, values in seconds.items()
    ]


def spread(seconds: Sequence[float]) -> dict[str, Any]:
    """The median and the range of the seconds of several runs."""
    return {"median_s": statistics.median(seconds), "min_s": min(seconds), "max_s": max(seconds), "runs": len(seconds)}


def add_channels(parser: argparse.ArgumentParser) -> None:
    """Add the option ``--channels``, which is the authors' full-size network by default."""
    parser.add_argument(
        "--channels",
        type=positive,
        nargs=5,
        default=[32, 64, 128, 256, 320],
        help="channels of the network (default: %(default)s)",
    )


class Report:
    """Rows of results, which are on the disk with the machine and the versions as soon as they are measured.

    Args:
        title: title of the table.
        path: JSON file. An earlier one is kept under a dated name. None writes no file.
    """

    def __init__(self, title: str, path: Path | None) -> None:
        self.title = title
        self.path = path
        self.kept = keep_earlier(path) if path is not None else None

    def save(self, rows: list[dict[str, Any]], facts: Mapping[str, Any] | None = None) -> None:
        """Write what has been measured so far."""
        if self.path is not None:
            content = {"title": self.title, "rows": rows, "facts": dict(facts or {})}
            save_json({**content, "machine": machine(), "versions": versions()}, self.path)

    def show(self, rows: list[dict[str, Any]], facts: Mapping[str, Any] | None = None) -> None:
        """Write and print everything."""
        self.save(rows, facts)
        table = Table(title=self.title)
        for column in rows[0]:
            table.add_column(column, justify="left" if column == "name" else "right")
        for row in rows:
            table.add_row(*(f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()))
        console = Console()
        console.print(table)
        for name, value in (facts or {}).items():
            console.print(f"{name}: {value}", highlight=False)
        if self.kept is not None:
            console.print(f"Kept the earlier results as {self.kept}", highlight=False, soft_wrap=True)
        if self.path is not None:
            console.print(str(self.path), highlight=False, soft_wrap=True)
