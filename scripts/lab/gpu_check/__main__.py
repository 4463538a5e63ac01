# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Check on a GPU, within a set time, first whether the results are right and then how long they take.

`python -m scripts.lab.gpu_check --output_dir <folder>` leaves one file there, ``gpu_check.zip``: the output and the
results of each step, and ``gpu_check.json``, which says what ran where. The file is replaced after each step and every
few seconds within a step, so what has been measured is kept whatever happens.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from scripts import command
from scripts.lab.benchmark.measure import device_name, machine, positive
from scripts.lab.phantoms.cohort import write_cohort
from scripts.utils.errors import InputError
from scripts.utils.files import BUNDLE_ROOT, keep_earlier, replacing, save_json
from scripts.utils.machine import processors
from scripts.utils.run_json import versions

ARCHIVE = "gpu_check.zip"
SAVED_EVERY_S = 15.0
# Lines of a step's output that are shown when it ends.
SHOWN = 30
# These are all files with tests for a GPU. The other files import packages that a machine with a GPU may lack.
GPU_TESTS = (
    "tests/test_devices.py",
    "tests/test_gpu_runs.py",
    "tests/networks/test_compared_networks.py",
    "tests/networks/test_prior_attention_net.py",
)
TINY = ["--channels", "4", "4", "8", "8", "8"]


class Step(NamedTuple):
    """A command of the check: its time limit in seconds, and what follows ``python -m``."""

    seconds: int
    arguments: list[str]


def steps(device: str, small: bool, cohort: Path, results: Path) -> dict[str, Step]:
    """Return the steps by name, in order; ``small`` takes sizes with which a CPU finishes quickly."""
    on_cpu = torch.device(device).type == "cpu"
    data, workers, tiny = ["--dataset_dir", str(cohort)], ["--num_workers", str(processors(12))], ["--small"] * small
    size, epochs, window, cases = [], workers, ["--runs", "10"], ["--cases", "1", "10", *workers]
    if small:
        size = ["--size", "32", *TINY, "--steps", "1", "--runs", "1"]
        epochs = ["--samples", "2", "--epochs", "1", "--authors_samples", "2", "--num_workers", "1", "--cases", "2"]
        window = ["--size", "32", "--runs", "1"]
        cases = ["--cases", "1", "2", *TINY, "--spacing", "4", "--window", "48"]
    # Tests for a GPU carry the marker "gpu"; on a CPU, some of the same tests run with the CPU as their device.
    chosen = ["-k", "cpu and (resiz or wait or evaluation)"] if on_cpu else ["-m", "gpu"]
    # Nothing on a CPU is compiled.
    compiled = ["--only", "float32" if on_cpu else "train_fast.yaml", "--samples", "0"]
    commands = {
        "maps": (120, "gpu_check.maps", data + tiny),
        "runs": (120, "gpu_check.runs", data + tiny),
        # Epochs of 200 full-size steps are a part of it.
        "training": (180, "benchmark training", [*data, *size, *epochs, "--no-compile"]),
        "network": (60, "benchmark network", window),
        "kernels": (60, "gpu_check.kernels", tiny),
        "compiled": (150, "benchmark training", size + compiled),
        "ranks": (60, "gpu_check.ranks", []),
        "cohort": (150, "benchmark cohort", data + cases),
    }
    made = {
        "begin": Step(60, ["scripts.lab.gpu_check.begin", "--device", device]),
        "tests": Step(200, ["pytest", "-q", "-p", "no:cacheprovider", *chosen, *GPU_TESTS]),
    }
    for name, (seconds, what, options) in commands.items():
        place = ["--device", device, "--output", str(results / f"{name}.json")]
        made[name] = Step(seconds, [*f"scripts.lab.{what}".split(), *place, *options])
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Run the steps and return 0 if each of them succeeded, else 1."""
    parser = command.parser("lab.gpu_check", __doc__)
    parser.add_argument(
        "--output-dir", type=Path, default=Path("runs/gpu_check"), help=f"folder for {ARCHIVE} (default: %(default)s)"
    )
    parser.add_argument("--device", type=device_name, default="cuda", help="device to check (default: %(default)s)")
    parser.add_argument(
        "--minutes", type=positive, default=9, help="time limit for all steps together (default: %(default)s)"
    )
    parser.add_argument("--small", action="store_true", help="use sizes that a CPU can do, to try the command itself")
    parser.add_argument("--steps", nargs="+", choices=list(steps("cpu", True, Path(), Path())), help="only these steps")
    args = parser.parse_args(argv)
    end = time.monotonic() + 60 * args.minutes
    console = Console()
    archive: Path = args.output_dir.resolve() / ARCHIVE
    if args.output_dir.exists() and not args.output_dir.is_dir():
        raise InputError(f"{args.output_dir}: not a folder; choose another --output_dir.")
    if (kept := keep_earlier(archive)) is not None:
        console.print(f"Kept the earlier results as {kept}", highlight=False, soft_wrap=True)
    record: dict[str, Any] = {"command": " ".join(["python -m scripts.lab.gpu_check", *(argv or sys.argv[1:])])}
    record |= {"machine": machine(), "versions": versions(), "cudnn": torch.backends.cudnn.version(), "steps": {}}
    with tempfile.TemporaryDirectory() as folder:
        cohort, results = Path(folder) / "phantoms", Path(folder) / "results"
        results.mkdir()

        def save() -> None:
            save_json(record, results / "gpu_check.json")
            with replacing(archive) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as file:
                for path in sorted(results.iterdir()):
                    file.write(path, path.name)

        todo = steps(args.device, args.small, cohort, results)
        for name, step in todo.items():
            if args.steps and name not in args.steps:
                continue
            if str(cohort) in step.arguments and not cohort.exists():
                for _ in write_cohort(cohort, 2 if args.small else 10, 0, "demo", workers=processors(8)):
                    pass
            left = end - time.monotonic()
            console.print(f"{name}: {left / 60:.1f} minutes left for all steps", highlight=False)
            start = time.monotonic()
            log = results / f"{name}.txt"
            outcome = run_step(step.arguments, log, min(left, step.seconds), save)
            record["steps"][name] = {"outcome": outcome, "seconds": round(time.monotonic() - start, 1)}
            save()
            if log.exists():
                lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
                console.print("\n".join(lines[-SHOWN:]), markup=False, highlight=False, soft_wrap=True)
            if name == "begin" and outcome != "done":
                console.print("Nothing else can run.", highlight=False)
                break
    table = Table("step", "outcome", "seconds", title=f"Results in {archive}")
    for name, done in record["steps"].items():
        table.add_row(name, done["outcome"], str(done["seconds"]))
    console.print(table)
    outcomes = [done["outcome"] for done in record["steps"].values()]
    return 0 if set(outcomes) == {"done"} else 1


def run_step(arguments: list[str], log: Path, seconds: float, save: Callable[[], None] = lambda: None) -> str:
    """Run a module with its ``arguments``, write its output to ``log``, and call ``save`` now and then.

    Returns:
        "done", "failed", or "no time left" after ``seconds`` seconds.
    """
    end = time.monotonic() + seconds
    if seconds <= 0:
        return "no time left"
    with open(log, "w", encoding="utf-8") as out:
        # The command gets a process group of its own, so that everything it has started ends with it.
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments], cwd=BUNDLE_ROOT, stdout=out, stderr=out, start_new_session=True
        )
        try:
            while (left := end - time.monotonic()) > 0:
                try:
                    return "failed" if process.wait(timeout=min(left, SAVED_EVERY_S)) else "done"
                except subprocess.TimeoutExpired:
                    save()
            return "no time left"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


if __name__ == "__main__":
    command.run(main)
