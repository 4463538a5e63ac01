# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Write one HTML file about a training, an evaluation or an inference.

The file shows curves, scores, cases and settings. It loads nothing, so it can be read without a network. It holds
images of the cases: slices of the first 100, and the volumes of the first 5 for the viewer.
"""

from collections.abc import Sequence

from scripts import command
from scripts.utils.errors import printable

EXAMPLES = ("runs/train", "runs/inference -o page.html")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = command.parser("report", __doc__, EXAMPLES)
    given = parser.add_argument_group("input")
    given.add_argument(
        "run_dir", type=command.path, metavar="RUN_DIR", help="folder of a training, an evaluation or an inference"
    )
    written = parser.add_argument_group("output")
    written.add_argument("-o", "--output", type=command.path, help="HTML file to write (default: RUN_DIR/report.html)")
    args = parser.parse_args(argv)

    from scripts.pages.page import save_report

    for line in save_report(args.run_dir, args.output):
        print(printable(line))
    return 0


if __name__ == "__main__":
    command.run(main)
