# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Segment patients: label maps, numbers and pictures.

CASE is a folder of one case or of many, or a four-dimensional file; --t1, --t1ce, --t2 and --flair name files of any
name instead. For each case OUT gets a label map, its numbers as JSON, and pictures. The command runs
configs/inference.json with the settings that the record of the weights states.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from scripts import command
from scripts.brats import SEQUENCES
from scripts.patients.options import add_options, given_options
from scripts.utils.errors import InputError, printable

EXAMPLES = ("ann -o out", "--t1 a.nii.gz --t1ce b.nii.gz --t2 c.nii.gz --flair d.nii.gz --name ann -o out")


def _parser() -> argparse.ArgumentParser:
    parser = command.parser("segment", __doc__, EXAMPLES)
    titles = ("input", "output", "model", "device and speed")
    groups = {title: parser.add_argument_group(title) for title in titles}
    given = groups["input"]
    given.add_argument(
        "cases", nargs="*", type=command.path, metavar="CASE", help="folder of cases, of one case, or 4-D file"
    )
    for name in SEQUENCES:
        told = f"image file of {name} instead of CASE, or number or folder of its series in the DICOM study CASE"
        given.add_argument(f"--{name}", type=command.path, help=told)
    given.add_argument("--name", help="name of the case that --t1, --t1ce, --t2 and --flair are (default: case)")
    groups["output"].add_argument("-o", "--output-dir", type=command.path, required=True, help="folder to write to")
    add_options(groups)
    return parser


def _files(args: argparse.Namespace) -> Mapping[str, Path] | None:
    given = {name: getattr(args, name) for name in SEQUENCES if getattr(args, name) is not None}
    if given and len(args.cases) > 1:
        raise InputError(f"--{next(iter(given))}: give one CASE, a DICOM study, or none.")
    if not given and not args.cases:
        raise InputError("no CASE: give a folder of a case, or --t1, --t1ce, --t2 and --flair.")
    if args.name and (args.cases or not given):
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
    files = _files(args)

    from scripts.patients.segmentation import segment

    show_progress()
    for result in segment(args.cases, args.output_dir, files=files, name=args.name, options=given_options(args)):
        volumes = ", ".join(f"{region} {ml:.1f} ml" for region, ml in result["volumes_ml"].items())
        print(f"{printable(result['label_map'])}: {volumes}")
    return 0


if __name__ == "__main__":
    command.run(main)
