# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Compare evaluations of the same cases: `python -m scripts.compare A/scores.csv B/scores.csv`.

For each score and region it prints the mean of each run, the mean difference from the first run with a bootstrap
interval, and the p-value of a paired test.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from scripts import command
from scripts.brats import REGIONS
from scripts.pages.plots import draw_box, style_axes
from scripts.scores.paired import Evaluation, Row, compare, csv_rows, read_evaluations
from scripts.scores.table import score_of
from scripts.utils.errors import InputError, printable
from scripts.utils.files import cannot_write, keep_earlier, replacing, save_csv

# Colors of the runs (Okabe and Ito). The order of the boxes tells the runs apart, too.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#999999")
# Plots beside each other.
MOST_BESIDE = 3


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = command.parser("compare", __doc__)
    parser.add_argument("evaluations", type=Path, nargs="+", help="files scores.csv, or their folders; two or more")
    parser.add_argument("--names", nargs="+", help="names of the runs (default: names of their folders)")
    parser.add_argument(
        "--scores", nargs="+", help="scores to compare, such as dice hd95 (default: all that the runs share)"
    )
    parser.add_argument("-o", "--output", type=Path, help="CSV file to write")
    parser.add_argument("--plot", type=Path, help="PNG file to write, with the scores of all cases as boxes")
    args = parser.parse_args(argv)
    for option, path in (("--output", args.output), ("--plot", args.plot)):
        if path is not None:
            _check_place(option, path)
    if args.plot is not None and args.plot.suffix.lower() != ".png":
        raise InputError(f"--plot {args.plot}: the picture is a PNG file; give a name that ends in .png.")
    evaluations = read_evaluations(args.evaluations, args.names)
    rows = compare(evaluations, args.scores)
    names = list(dict.fromkeys(row.score for row in rows))
    print_table(rows, len(evaluations[0].scores))
    every = dict.fromkeys(name for evaluation in evaluations for name in evaluation.names)
    left_out = [name for name in every if name not in names]
    if left_out and args.scores is None:
        print(f"left out, since not all runs have it: {', '.join(left_out)}")
    if args.output is not None:
        _keep(args.output)
        table = csv_rows(rows, len(evaluations[0].scores))
        save_csv(list(table[0]), [row.values() for row in table], args.output)
        print(args.output)
    if args.plot is not None:
        _keep(args.plot)
        with replacing(args.plot) as temporary:
            draw(evaluations, names).savefig(temporary, dpi=110, format="png")
        print(args.plot)
    return 0


def _check_place(option: str, path: Path) -> None:
    """Refuse a file that cannot be written there, before anything is written. A missing folder is made later."""
    if path.is_dir():
        raise InputError(f"{path}: a folder; give {option} the name of a file.")
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise cannot_write(path, f"{above} takes no files")


def _keep(path: Path) -> None:
    if (kept := keep_earlier(path)) is not None:
        print(f"kept the earlier file as {kept.name}")


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


def draw(evaluations: Sequence[Evaluation], names: Sequence[str]) -> Figure:
    """Draw scores of all cases: for each score and region a box for each run, with a point for each case."""
    beside = min(len(names), MOST_BESIDE)
    lines = math.ceil(len(names) / beside)
    figure = Figure(figsize=(4.2 * beside, 3.2 * lines + 0.4), layout="constrained")
    axes = list(figure.subplots(lines, beside, squeeze=False).flat)
    for ax, name in zip(axes, names, strict=False):
        _boxes(ax, evaluations, name)
    for ax in axes[len(names) :]:
        ax.remove()
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(len(labels), 4), frameon=False, markerscale=2)
    return figure


def _boxes(ax: Axes, evaluations: Sequence[Evaluation], name: str) -> None:
    width = 0.8 / len(evaluations)
    for number, evaluation in enumerate(evaluations):
        color = COLORS[number % len(COLORS)]
        for place, region in enumerate(REGIONS):
            values = evaluation.values(f"{name}_{region}").tolist()
            center = place + (number - (len(evaluations) - 1) / 2) * width
            label = evaluation.name if place == 0 else None
            draw_box(ax, values, center, 0.8 * width, color, color=color, s=9, alpha=0.7, label=label)
    ax.set_xticks(range(len(REGIONS)), REGIONS)
    ax.set_xlim(-0.6, len(REGIONS) - 0.4)
    ax.set_ylabel(score_of(name).heading)
    style_axes(ax)


if __name__ == "__main__":
    command.run(main)
