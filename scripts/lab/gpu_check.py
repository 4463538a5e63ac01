# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Check on a GPU, within a set time, first whether the results are right and then how long they take.

`python -m scripts.lab.gpu_check --output_dir <folder>` writes the results and the output of each step to the folder. It
also writes ``gpu_check.json``, which says what ran where. Each step is a command of its own, so its measurements are
kept if a later step fails.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from scripts import command
from scripts.lab.benchmark.measure import device_name, machine, positive
from scripts.lab.phantoms.cohort import write_cohort
from scripts.utils.errors import InputError
from scripts.utils.files import BUNDLE_ROOT, keep_earlier, save_json
from scripts.utils.machine import processors
from scripts.utils.run_json import versions

WORKERS = ["--num_workers", str(max(1, min(12, processors() - 2)))]
# These are all files with tests for a GPU. The other files import packages that a machine with a GPU may lack.
GPU_TESTS = (
    "tests/test_devices.py",
    "tests/networks/test_compared_networks.py",
    "tests/networks/test_prior_attention_net.py",
)
# With these sizes, a CPU finishes quickly enough to try the command itself.
SMALL = {
    "network": ["--size", "32", "--runs", "1"],
    "training": [
        "--size",
        "32",
        "--channels",
        "4",
        "4",
        "8",
        "8",
        "8",
        "--steps",
        "1",
        "--runs",
        "1",
        "--samples",
        "4",
    ],
    "cohort": ["--channels", "4", "4", "8", "8", "8", "--spacing", "4", "--window", "48"],
}
SMALL["training"] += ["--authors_samples", "2", "--num_workers", "1", "--cases", "2"]


def steps(device: str, small: bool, cohort: Path, results: Path) -> dict[str, list[str]]:
    """Return the command of each step by its name, in order; steps that are sure to finish come first."""
    data = ["--device", device, "--dataset_dir", str(cohort)]
    sizes = SMALL if small else {"network": ["--runs", "10"], "training": WORKERS, "cohort": WORKERS}
    # The authors' way takes a CPU many minutes per case, so the small run leaves it out.
    counts = ["--cases", "1", "2"] if small else ["--cases", "1", "10", "--authors_cases", "1", "3"]

    def benchmark(what: str, name: str, *options: str) -> list[str]:
        return ["scripts.lab.benchmark", what, "--output", str(results / f"{name}.json"), *options, *sizes[what]]

    # Tests for a GPU carry the marker "gpu"; on a CPU, some of the same tests run with the CPU as their device.
    chosen = ["-m", "gpu"] if device != "cpu" else ["-k", "cpu and (resiz or wait or evaluation)"]
    return {
        "correctness": ["pytest", "-q", "-p", "no:cacheprovider", *chosen, *GPU_TESTS],
        "network": benchmark("network", "network", "--device", device),
        "training": benchmark("training", "training", *data, "--no-compile"),
        "cohort": benchmark("cohort", "cohort", *data, *counts),
        "training_compiled": benchmark("training", "training_compiled", *data),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run all steps and return 0 if each of them succeeded, else 1."""
    parser = command.parser("lab.gpu_check", __doc__)
    parser.add_argument(
        "--output-dir", type=Path, default=Path("runs/gpu_check"), help="folder for the results (default: %(default)s)"
    )
    parser.add_argument("--device", type=device_name, default="cuda", help="device to check (default: %(default)s)")
    parser.add_argument(
        "--minutes", type=positive, default=8, help="time limit for all steps together (default: %(default)s)"
    )
    parser.add_argument("--small", action="store_true", help="use sizes that a CPU can do, to try the command itself")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    console = Console()
    results: Path = args.output_dir.resolve()
    if results.exists() and not results.is_dir():
        raise InputError(f"{results}: not a folder; choose another --output_dir.")
    if (results / "gpu_check.json").exists():
        console.print(f"Kept the earlier results as {keep_earlier(results)}", highlight=False, soft_wrap=True)
    results.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * args.minutes
    record: dict[str, Any] = {"command": " ".join(["python -m scripts.lab.gpu_check", *(argv or sys.argv[1:])])}
    record |= {"machine": machine(), "versions": versions(), "cudnn": torch.backends.cudnn.version(), "steps": {}}
    with tempfile.TemporaryDirectory() as folder:
        cohort = Path(folder) / "phantoms"
        for _ in write_cohort(cohort, 2 if args.small else 10, 0, "demo", workers=2):
            pass
        for name, arguments in steps(args.device, args.small, cohort, results).items():
            left = end - time.monotonic()
            console.print(f"{name}: {left / 60:.1f} minutes left for all steps", highlight=False)
            start = time.monotonic()
            outcome = run_step(arguments, results / f"{name}.txt", left)
            record["steps"][name] = {"outcome": outcome, "seconds": round(time.monotonic() - start, 1)}
            # The record is saved after each step, so that a failure of the next step cannot lose it.
            save_json(record, results / "gpu_check.json")
            if name == "correctness" and outcome != "done":
                console.print("The results are not right, so nothing is timed.", highlight=False)
                break
    table = Table("step", "outcome", "seconds", title=f"Results in {results}")
    for name, step in record["steps"].items():
        table.add_row(name, step["outcome"], str(step["seconds"]))
    console.print(table)
    outcomes = [step["outcome"] for step in record["steps"].values()]
    return 0 if set(outcomes) == {"done"} else 1


def run_step(arguments: list[str], log: Path, seconds: float) -> str:
    """Run a module with its ``arguments`` and write its output to ``log``.

    Returns:
        "done", "failed", or "no time left" after ``seconds`` seconds.
    """
    if seconds <= 0:
        return "no time left"
    with open(log, "w", encoding="utf-8") as out:
        # The command gets a process group of its own, so that everything it has started ends with it.
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments], cwd=BUNDLE_ROOT, stdout=out, stderr=out, start_new_session=True
        )
        try:
            return "failed" if process.wait(timeout=seconds) else "done"
        except subprocess.TimeoutExpired:
            return "no time left"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


if __name__ == "__main__":
    command.run(main)
