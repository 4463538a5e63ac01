# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Prepare scans as the scanner made them: co-register, strip the skull, bring them to BraTS's pose.

CASE is a folder of one case or of many, a DICOM study, or the files of one case, whose names tell the sequences; --t1,
--t1ce, --t2 and --flair name them instead. For each case OUT gets a folder that every other command takes, with the
transforms and a picture to look at.
"""

import argparse
from collections.abc import Sequence

from scripts import command
from scripts.data.findings import PREPARATION_DOUBTS
from scripts.utils.errors import printable

EXAMPLES = ("ann -o prepared", "--t1 a.nii.gz --t1ce b.nii.gz --t2 c.nii.gz --flair d.nii.gz --name ann -o prepared")


def _parser() -> argparse.ArgumentParser:
    parser = command.parser("prepare", __doc__, EXAMPLES)
    given, output = parser.add_argument_group("input"), parser.add_argument_group("output")
    command.add_cases(given)
    command.add_output_dir(output)
    given.add_argument(
        "--accept",
        action="append",
        default=[],
        choices=PREPARATION_DOUBTS,
        metavar="KIND",
        help=f"go on in spite of this doubt; may be repeated: {', '.join(PREPARATION_DOUBTS)}",
    )
    output.add_argument("--overwrite", action="store_true", help="keep an earlier folder under a dated name")
    command.add_verbosity(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    args = _parser().parse_args(argv)
    files = command.given_files(args)

    from scripts.patients.raw import prepare_case, raw_items

    command.show_progress(args)
    for item in raw_items(args.cases, files, args.name):
        folder = prepare_case(item, args.output_dir / item["case"], args.accept, args.overwrite)
        print(printable(f"{folder}: prepared; look at {folder / 'prepared.png'}"))
    return 0


if __name__ == "__main__":
    command.run(main)
