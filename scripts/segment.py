# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Segment patients: label maps, numbers and pictures.

CASE is a folder of one case or of many, a four-dimensional file, or the files of one case, whose names tell the
sequences; --t1, --t1ce, --t2 and --flair name them instead. For each case OUT gets a label map, its numbers as JSON,
and a picture, and for all of them volumes.csv. The command runs configs/inference.json with the settings that the
record of the weights states.
"""

import argparse
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from scripts import command
from scripts.patients.options import add_options, given_options
from scripts.utils.errors import printable

logger = logging.getLogger("scripts.segment")

EXAMPLES = ("ann -o out", "'AX T1.nii' 'AX T1 +C.nii' 'AX T2.nii' FLAIR.nii --name ann -o out")


def _parser() -> argparse.ArgumentParser:
    parser = command.parser("segment", __doc__, EXAMPLES)
    titles = ("input", "output", "model", "device and speed")
    groups = {title: parser.add_argument_group(title) for title in titles}
    command.add_cases(groups["input"])
    output = groups["output"]
    command.add_output_dir(output)
    add_options(groups)
    output.add_argument("--report", action="store_true", help="also write report.html, as panet report does")
    command.add_verbosity(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    args = _parser().parse_args(argv)
    files = command.given_files(args)

    from scripts.pages.page import save_report
    from scripts.patients.results import closing_words
    from scripts.patients.segmentation import segment

    command.show_progress(args)
    done: list[Mapping[str, Any]] = []

    def show(result: Mapping[str, Any]) -> None:
        done.append(result)
        volumes = ", ".join(f"{region} {ml} ml" for region, ml in result["volumes_ml"].items())
        if not args.quiet:
            print(f"{printable(result['label_map'])}: {volumes}", flush=True)

    try:
        segment(args.cases, args.output_dir, files, args.name, given_options(args), show)
    finally:
        # A case that failed does not keep the others from their report.
        if args.report and done:
            logger.info("Writing the report")
            for line in save_report(args.output_dir):
                print(printable(line))
    logger.info("%s", closing_words(done))
    return 0


if __name__ == "__main__":
    command.run(main)
