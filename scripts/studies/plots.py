# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The pictures of a study: validation Dice over samples, and Dice over operations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scripts.files import replacing
from scripts.reports.runs import Curve

# Ten colors that can be told apart, and as many markers for those who cannot tell them.
COLORS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9", "#8C564B", "#7F7F7F", "#9467BD",
)  # fmt: skip
MARKERS = "os^Dv<>Pph"


@dataclass(frozen=True)
class Line:
    """A variant's curves: samples seen and mean Dice, one curve for each run."""

    title: str
    curves: list[Curve]


@dataclass(frozen=True)
class Point:
    """A variant's GFLOP for one window, and the mean Dice of each of its runs."""

    title: str
    gflops: float
    dice: list[float]


def curves_figure(lines: Sequence[Line]) -> Figure:
    """The mean validation Dice of each variant over the samples seen, with the range of its runs.

    Args:
        lines: the variants. The runs of each have the same samples.
    """
    figure, axes = _figure()
    for number, line in enumerate(lines):
        style = _style(number)
        samples = [curve[0] for curve in line.curves]
        shortest = min(samples, key=len)
        values = np.array([curve[1][: len(shortest)] for curve in line.curves])
        axes.plot(shortest, values.mean(axis=0), markersize=4, label=_label(line.title, len(values)), **style)
        if len(values) > 1:
            axes.fill_between(
                shortest, values.min(axis=0), values.max(axis=0), color=style["color"], alpha=0.15, linewidth=0
            )
    axes.set(xlabel="samples seen", ylabel="mean Dice of the regions", title="Validation during the training")
    axes.set_ylim(0, 1)
    figure.legend(loc="outside right center", frameon=False, fontsize=8)
    return figure


def flops_figure(points: Sequence[Point]) -> Figure:
    """The mean Dice of the unseen cases over the operations for one window, with the range of the runs."""
    figure, axes = _figure()
    for number, point in enumerate(points):
        mean = float(np.mean(point.dice))
        error = [[mean - min(point.dice)], [max(point.dice) - mean]]
        axes.errorbar(
            point.gflops, mean, yerr=error, capsize=3, label=_label(point.title, len(point.dice)), **_style(number)
        )
    axes.set(xlabel="GFLOP for one window", ylabel="mean Dice of the regions", title="Unseen cases")
    axes.set_xlim(left=0)
    figure.legend(loc="outside right center", frameon=False, fontsize=8)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG file."""
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")


def _label(title: str, runs: int) -> str:
    return f"{title} ({runs} runs)" if runs > 1 else title


def _style(number: int) -> dict[str, Any]:
    return {"color": COLORS[number % len(COLORS)], "marker": MARKERS[number % len(MARKERS)]}


def _figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes
