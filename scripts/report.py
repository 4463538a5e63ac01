# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Write one HTML file about a training, an evaluation or an inference.

The file shows curves, scores, cases and settings. It loads nothing, so it can be read without a network. It holds
images of the cases: slices of the first 100, and the volumes of the first 5 for the viewer.
"""

from __future__ import annotations

from collections.abc import Sequence

from scripts import command
from scripts.utils.errors import InputError, printable
from scripts.utils.files import keep_earlier, save_text

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

    from scripts.pages.page import make_report
    from scripts.pages.runs import read_run

    output = args.output or args.run_dir / "report.html"
    if output.is_dir():
        raise InputError(f"{output}: a folder; give --output the name of an HTML file.")
    run = read_run(args.run_dir)
    page = make_report(run)
    for note in run.notes:
        print(printable(note))
    if (kept := keep_earlier(output)) is not None:
        print(f"kept the earlier file as {printable(kept.name)}")
    save_text(page, output)
    print(printable(str(output)))
    return 0


if __name__ == "__main__":
    command.run(main)
