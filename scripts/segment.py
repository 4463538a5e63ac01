# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Segment patients: `python -m scripts.segment CASE -o OUT`, or `panet-segment CASE -o OUT`.

CASE is a folder of one case or of many, or a four-dimensional file; --t1, --t1ce, --t2 and --flair name files of any
name instead. For each case OUT gets a label map, its numbers as JSON, and pictures. The command runs
configs/inference.json with the settings that the record of the weights states.
"""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts import command
from scripts.brats import ET_LABELS, SEQUENCES
from scripts.patients.segmentation import Options, segment
from scripts.utils.errors import InputError, printable

PROGRAM = "panet-segment"


def _path(text: str) -> Path:
    # An empty path, as of a variable that is not set, would mean the folder in which the command was started.
    if not text:
        raise argparse.ArgumentTypeError("the path is empty; name a file or a folder, or leave the option out")
    return Path(text)


def _parser() -> argparse.ArgumentParser:
    parser = command.parser("segment", __doc__)
    if Path(sys.argv[0]).name == PROGRAM:
        parser.prog = PROGRAM
    parser.add_argument(
        "cases", nargs="*", type=_path, metavar="CASE", help="folder of cases, of one case, or 4-D file"
    )
    for name in SEQUENCES:
        parser.add_argument(f"--{name}", type=_path, help=f"image file of {name}, instead of CASE")
    parser.add_argument("--name", help="name of the case that --t1, --t1ce, --t2 and --flair are (default: case)")
    parser.add_argument("-o", "--output_dir", type=_path, required=True, help="folder to write to")
    parser.add_argument(
        "--overwrite",
        nargs="?",
        choices=("True", "False"),
        const="True",
        default="False",
        help="begin anew; what an earlier call has left in the folder is kept under a dated name",
    )
    parser.add_argument(
        "--model", type=_path, help="weights with their record (default: models/model.pt, else starter)"
    )
    parser.add_argument("--et-label", type=int, choices=ET_LABELS, default=ET_LABELS[-1], help="value of ET to write")
    parser.add_argument("--device", help="cpu, cuda or cuda:1 (default: a GPU if there is one)")
    parser.add_argument("--fast", action="store_true", help="the whole brain in one forward, and no flips")
    parser.add_argument("--tta", action="store_true", help="the mean over all eight flips")
    parser.add_argument("--probabilities", action="store_true", help="also write maps of probabilities")
    parser.add_argument("--uncertainty", action="store_true", help="also write maps of uncertainty")
    parser.add_argument("--dicom-seg", action="store_true", help="also write a DICOM Segmentation object")
    parser.add_argument("--no-pictures", action="store_true", help="write no pictures")
    return parser


def _files(args: argparse.Namespace) -> Mapping[str, Path] | None:
    given = {name: getattr(args, name) for name in SEQUENCES if getattr(args, name) is not None}
    if given and args.cases:
        raise InputError(f"--{next(iter(given))}: give a CASE or files of sequences, not both.")
    if not given and not args.cases:
        raise InputError("no CASE: give a folder of a case, or --t1, --t1ce, --t2 and --flair.")
    if args.name and not given:
        raise InputError("--name: a CASE has its own name; give --name with --t1, --t1ce, --t2 and --flair.")
    return given or None


def show_progress() -> None:
    """Log what the bundle says, and of others only what is wrong."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", force=True)
    logging.getLogger("scripts").setLevel(logging.INFO)
    logging.getLogger("monai.bundle.workflows").setLevel(logging.ERROR)
    # MONAI warns of every configuration that it runs; these are the bundle's own.
    warnings.filterwarnings("ignore")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    args = _parser().parse_args(argv)
    show_progress()
    files = _files(args)
    options = Options(
        model=args.model,
        et_label=args.et_label,
        device=args.device,
        fast=args.fast,
        tta=args.tta,
        probabilities=args.probabilities,
        uncertainty=args.uncertainty,
        pictures=not args.no_pictures,
        dicom_seg=args.dicom_seg,
        overwrite=args.overwrite == "True",
    )
    results: list[dict[str, Any]] = segment(args.cases, args.output_dir, files=files, name=args.name, options=options)
    for result in results:
        volumes = ", ".join(f"{region} {ml:.1f} ml" for region, ml in result["volumes_ml"].items())
        print(f"{printable(result['label_map'])}: {volumes}")
    return 0


def run() -> None:
    """The command ``panet-segment``."""
    command.run(main)


if __name__ == "__main__":
    run()
