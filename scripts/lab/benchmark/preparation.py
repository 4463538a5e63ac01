# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Time `panet segment --prepare` on the CPU: each step of the preparation, and the whole command."""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from scripts.inference.openvino import PRECISIONS, OpenVINONetwork
from scripts.lab.benchmark.cohort import run_process
from scripts.lab.benchmark.measure import Report, positive, spread
from scripts.lab.phantoms.cohort import AFFINE, make_patient
from scripts.lab.phantoms.raw import raw_phantom, save_raw
from scripts.patients.raw import PREPARED_FOLDER, raw_items
from scripts.preparation.folder import RECORD
from scripts.utils.errors import InputError
from scripts.utils.files import read_json
from scripts.utils.machine import computes_in

WHOLE, REST = "the whole command", "the rest: start, segmentation and its pictures"
NAMES = {"f32": "float32", "bf16": "bfloat16"}
PROGRAM = "import sys; from scripts.lab.benchmark.preparation import segment_in; segment_in(*sys.argv[1:])"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--dataset-dir", type=Path, help="scans of one case (default: a raw phantom)")
    default = ["bf16", "f32"] if computes_in("cpu", "bfloat16") else ["f32"]
    parser.add_argument(
        "--precision",
        nargs="+",
        choices=PRECISIONS[1:],
        default=default,
        help=f"of both networks (default here: {' '.join(default)})",
    )
    parser.add_argument("--runs", type=positive, default=3, help="timed runs after a warm-up (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="JSON file to write")


def run(args: argparse.Namespace) -> None:
    """Time all steps and report the results."""
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        case = args.dataset_dir.resolve() if args.dataset_dir else phantom(folder / "phantom")
        if len(items := raw_items([case])) != 1:
            raise InputError(f"{case}: {len(items)} cases; give the folder of one.")
        record = Path(items[0]["case"], PREPARED_FOLDER, RECORD)
        report = Report("From raw scans to pictures, CPU", args.output)
        rows: list[dict[str, Any]] = []
        facts = {"case": case.name}
        # The first use of a precision may convert weights, and reads files for the first time.
        for precision in args.precision:
            found: dict[str, list[float]] = {}
            memory = []
            for turn in range(-1, args.runs):
                out = folder / f"{precision}_{turn}"
                words = [sys.executable, "-c", PROGRAM, precision, str(case), "-o", str(out), "--prepare"]
                seconds, gigabytes = run_process("panet segment --prepare", words, folder)
                console.print(f"{NAMES[precision]}, run {turn + 1}: {seconds:.1f} s", highlight=False)
                if turn >= 0:
                    steps = steps_of(out / record)
                    for step, taken in {**steps, REST: seconds - sum(steps.values()), WHOLE: seconds}.items():
                        found.setdefault(step, []).append(round(taken, 2))
                    memory.append(gigabytes)
            rows += [{"name": step, "precision": NAMES[precision], **spread(values)} for step, values in found.items()]
            facts[f"memory of the largest process, {NAMES[precision]}"] = f"{max(memory):.2f} GB"
            report.save(rows, facts)
    report.show(rows, facts)


def segment_in(precision: str, *arguments: str) -> None:
    """Run ``panet segment`` with both networks in a precision, which the command has no option for."""
    from scripts.segment import main

    plain = OpenVINONetwork.compile

    def compile_in(network: OpenVINONetwork) -> Any:
        network.precision = precision
        return plain(network)

    OpenVINONetwork.compile = compile_in  # type: ignore[assignment, method-assign]
    main(arguments)


def steps_of(record: Path) -> dict[str, float]:
    """The seconds of each step that a preparation has recorded."""
    found: dict[str, float] = read_json(record).get("seconds", {})
    if not found:
        raise InputError("The scans are prepared already, so there is nothing to time; give scans as acquired.")
    return found


def phantom(folder: Path) -> Path:
    """Write a phantom in raw form and return its folder."""
    images, label = make_patient(2, 1, "demo")
    return save_raw(raw_phantom(images, label, AFFINE, np.random.default_rng(1)), folder)
