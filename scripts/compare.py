# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Compare evaluations of the same cases.

For each score and region it prints the mean of each run, the mean difference from the first run with a bootstrap
interval, and the p-value of a paired test.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from scripts import command
from scripts.brats import REGIONS
from scripts.scores.table import score_of
from scripts.utils.errors import printable
from scripts.utils.files import save_csv

if TYPE_CHECKING:
    from scripts.scores.paired import Row

EXAMPLES = (
    "runs/train/evaluation_validation runs/sgd/evaluation_validation",
    "first/scores.csv second/scores.csv --names first second -o comparison.csv --plot comparison.png",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = command.parser("compare", __doc__, EXAMPLES)
    given = parser.add_argument_group("input")
    given.add_argument(
        "evaluations",
        type=command.path,
        metavar="EVALUATION",
        nargs="+",
        help="files scores.csv, or their folders; two or more",
    )
    given.add_argument("--names", nargs="+", help="names of the runs (default: names of their folders)")
    given.add_argument(
        "--scores", nargs="+", help="scores to compare, such as dice hd95 (default: all that the runs share)"
    )
    output = parser.add_argument_group("output")
    output.add_argument("-o", "--output", type=command.path, help="CSV file to write")
    output.add_argument("--plot", type=command.path, help="PNG file to write, with the scores of all cases as boxes")
    args = parser.parse_args(argv)

    from scripts.pages.plots import draw_runs
    from scripts.pictures.figure import save_figure
    from scripts.scores.paired import compare, csv_rows, read_evaluations

    command.check_output("--output", args.output)
    command.check_output("--plot", args.plot, picture=True)
    evaluations = read_evaluations(args.evaluations, args.names)
    rows = compare(evaluations, args.scores)
    names = list(dict.fromkeys(row.score for row in rows))
    print_table(rows, len(evaluations[0].scores))
    every = dict.fromkeys(name for evaluation in evaluations for name in evaluation.names)
    left_out = [name for name in every if name not in names]
    if left_out and args.scores is None:
        print(f"left out, since not all runs have it: {', '.join(left_out)}")
    if args.output is not None:
        command.keep(args.output)
        table = csv_rows(rows, len(evaluations[0].scores))
        save_csv(list(table[0]), [row.values() for row in table], args.output)
        print(args.output)
    if args.plot is not None:
        command.keep(args.plot)
        save_figure(draw_runs(evaluations, names), args.plot)
        print(args.plot)
    return 0


def print_table(rows: Sequence[Row], cases: int) -> None:
    """Print the comparison of a number of cases."""
    table = Table(
        title=f"{cases} case{'s' * (cases != 1)}; differences from {rows[0].run}",
        caption="interval: bootstrap over the cases, 95 %; p: Wilcoxon's signed-rank test, paired, not corrected",
    )
    for name in ("score", "region", "run"):
        table.add_column(name)
    for name in ("mean", "difference", "interval", "p"):
        table.add_column(name, justify="right")
    runs = len({row.run for row in rows})
    for number, row in enumerate(rows):
        first = number % runs == 0
        score = score_of(row.score)
        cells = ["", "", ""]
        if row.difference is not None:
            mean, low, high, p = row.difference
            interval = "" if math.isnan(low) else f"{low:+.{score.digits}f} to {high:+.{score.digits}f}"
            cells = [f"{mean:+.{score.digits}f}", interval, "no test" if math.isnan(p) else f"{p:.3g}"]
        table.add_row(
            *((score.heading, row.region) if first else ("", "")),
            escape(printable(row.run)),
            score.text(row.mean),
            *cells,
            end_section=number % runs == runs - 1 and row.region == REGIONS[-1],
        )
    Console().print(table)
    untested = [row.difference for row in rows if row.difference is not None and math.isnan(row.difference.p)]
    if untested and cases < 2:
        print("No test is possible with one case.")
    elif untested:
        print("No test is possible where no case differs.")


if __name__ == "__main__":
    command.run(main)
