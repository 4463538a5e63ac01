# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Segment patients: label maps, numbers and pictures.

CASE is a folder of one case or of many, or a four-dimensional file; --t1, --t1ce, --t2 and --flair name files of any
name instead. For each case OUT gets a label map, its numbers as JSON, and pictures. The command runs
configs/inference.json with the settings that the record of the weights states.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from scripts import command
from scripts.patients.options import add_options, given_options
from scripts.utils.errors import printable

EXAMPLES = ("ann -o out", "--t1 a.nii.gz --t1ce b.nii.gz --t2 c.nii.gz --flair d.nii.gz --name ann -o out")


def _parser() -> argparse.ArgumentParser:
    parser = command.parser("segment", __doc__, EXAMPLES)
    titles = ("input", "output", "model", "device and speed")
    groups = {title: parser.add_argument_group(title) for title in titles}
    command.add_cases(groups["input"])
    groups["output"].add_argument("-o", "--output-dir", type=command.path, required=True, help="folder to write to")
    add_options(groups)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    args = _parser().parse_args(argv)
    files = command.given_files(args)

    from scripts.patients.segmentation import segment

    command.show_progress()
    for result in segment(args.cases, args.output_dir, files=files, name=args.name, options=given_options(args)):
        volumes = ", ".join(f"{region} {ml:.1f} ml" for region, ml in result["volumes_ml"].items())
        print(f"{printable(result['label_map'])}: {volumes}")
    return 0


if __name__ == "__main__":
    command.run(main)
