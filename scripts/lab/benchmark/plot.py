# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Draw the results of the benchmarks: before and after, and cohorts of several sizes."""

import argparse
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scripts.lab.benchmark.cohort import OURS
from scripts.pictures.figure import save_figure
from scripts.utils.errors import InputError
from scripts.utils.files import BUNDLE_ROOT, read_json

# Labels of the compared benchmarks by the names of their files.
COMPARED = {
    "case": "Network's part of a case",
    "network": "One window",
    "pipeline": "Training samples",
    "postprocessing": "Post-processing",
    "training": "Training step",
}
BEFORE, AFTER = "#b0b0b0", "#2a6f97"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    docs = BUNDLE_ROOT / "docs"
    parser.add_argument(
        "--results", type=Path, default=docs / "benchmarks", help="folder of the benchmarks' JSON files"
    )
    parser.add_argument("--suffix", default="_cpu", help="end of the files' names before .json (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=docs / "images" / "performance.png", help="PNG file to write")


def run(args: argparse.Namespace) -> None:
    """Draw the picture and write it to a PNG file.

    Raises:
        InputError: there is nothing to draw.
    """
    files = {name: args.results / f"{name}{args.suffix}.json" for name in (*COMPARED, "cohort")}
    found: dict[str, list[dict[str, Any]]] = {name: read_json(file).get("rows", []) for name, file in files.items()}
    compared = {title: rows for name, title in COMPARED.items() if (rows := found[name])}
    if not compared or not found["cohort"]:
        raise InputError(
            f"{args.results}: results of cohort or of all others are missing (*{args.suffix}.json); run them first."
        )
    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    draw_before_and_after(left, compared)
    draw_cohorts(right, found["cohort"])
    save_figure(figure, args.output)
    print(args.output)


def draw_before_and_after(axes: Axes, compared: dict[str, list[dict[str, Any]]]) -> None:
    """Draw two bars for each benchmark: the baseline, which is the first row, and the fastest row."""
    for position, rows in enumerate(compared.values()):
        # A row of the loader's part alone does not time whole samples.
        whole = [row for row in rows if "loader's part" not in row["name"]]
        fastest = max(whole, key=lambda row: row["times_faster"])
        for row, color, shift in ((rows[0], BEFORE, -0.2), (fastest, AFTER, 0.2)):
            axes.barh(position + shift, row["median_s"], 0.38, color=color)
            text = f" {row['median_s']:.3g} s, {row['name']}"
            if row is fastest:
                text += f": {row['times_faster']:.0f} times"
            axes.text(row["median_s"], position + shift, text, va="center", fontsize=8)
    axes.set_yticks(range(len(compared)), list(compared))
    axes.invert_yaxis()
    axes.set_xscale("log")
    values = [row["median_s"] for rows in compared.values() for row in rows]
    axes.set_xlim(min(values) / 2, max(values) * 500)
    axes.set_xlabel("seconds, median")
    axes.set_title("Before (gray) and after (blue)")


def draw_cohorts(axes: Axes, rows: list[dict[str, Any]]) -> None:
    """Draw this bundle's seconds per case and its memory over the number of cases."""
    rows = [row for row in rows if row["name"] == OURS]
    counts = [row["cases"] for row in rows]
    axes.plot(counts, [row["seconds"] / row["cases"] for row in rows], "o-", color=AFTER, label="seconds a case")
    axes.plot(counts, [row["peak_gb"] for row in rows], "s--", color="#bc4749", label="memory, GB")
    axes.set_xscale("log")
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel("cases")
    axes.set_title("One command over a cohort, its start included")
    axes.legend()
