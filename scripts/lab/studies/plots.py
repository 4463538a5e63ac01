# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The pictures of a study: validation Dice over samples, and Dice over operations."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scripts.pages.plots import style_axes
from scripts.pages.runs import Curve

# Ten colors that can be told apart, and as many markers for those who cannot tell them.
COLORS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9", "#8C564B", "#7F7F7F", "#9467BD",
)  # fmt: skip
MARKERS = "os^Dv<>Pph"
DPI = 130
# Least distance between two variants, as a share of the largest number of operations.
STEP = 0.015
# Least range of the Dice in a picture.
LEAST_RANGE = 0.1


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

    A variant of a single run has a thin, broken line, since nothing tells how far chance moves it.

    Args:
        lines: the variants.
    """
    figure, axes = _figure()
    for number, line in enumerate(lines):
        style = _style(number)
        # The runs of folds of unequal size have been validated after other numbers of samples.
        shortest = min((curve[0] for curve in line.curves), key=len)
        values = np.array([curve[1][: len(shortest)] for curve in line.curves])
        several = len(values) > 1
        width: dict[str, Any] = (
            {"linewidth": 1.8, "markersize": 5.0} if several else {"linewidth": 0.9, "markersize": 3.5}
        )
        label = _label(line.title, len(values))
        axes.plot(shortest, values.mean(axis=0), linestyle="-" if several else "--", label=label, **width, **style)
        if several:
            low, high = values.min(axis=0), values.max(axis=0)
            axes.fill_between(shortest, low, high, color=style["color"], alpha=0.15, linewidth=0)
    axes.set(xlabel="samples seen", ylabel="mean Dice of the regions", title="Validation during the training")
    axes.set_xlim(left=0)
    axes.set_ylim(top=1)
    figure.legend(loc="outside right center", frameon=False, fontsize=8)
    return figure


def flops_figure(points: Sequence[Point]) -> Figure:
    """The mean Dice of the unseen cases over the operations for one window.

    Small points are runs, and a large one is their mean. Variants of almost the same number of operations are beside
    each other, so that none hides another.
    """
    figure, axes = _figure()
    step = STEP * max(point.gflops for point in points)
    for number, (point, place) in enumerate(zip(points, beside([p.gflops for p in points], step), strict=True)):
        style = _style(number)
        label = _label(point.title, len(point.dice))
        axes.plot(place, float(np.mean(point.dice)), linestyle="none", markersize=7, label=label, **style)
        if len(point.dice) > 1:
            places = [place] * len(point.dice)
            axes.plot(places, point.dice, linewidth=0.8, color=style["color"], marker=style["marker"], markersize=3)
    axes.set(
        xlabel="GFLOP for one window (equal ones are drawn beside each other)",
        ylabel="mean Dice of the regions",
        title="Unseen cases",
    )
    axes.set_xlim(left=0)
    # A difference that may be chance must not fill the picture.
    low, high = axes.get_ylim()
    if (more := LEAST_RANGE - (high - low)) > 0:
        axes.set_ylim(low - more / 2, high + more / 2)
    figure.legend(loc="outside right center", frameon=False, fontsize=8)
    return figure


def beside(places: Sequence[float], step: float) -> list[float]:
    """Places that are at least ``step`` apart, in their order: each is moved up as far as it must be.

    Example:
        >>> beside([2.0, 1.0, 1.0, 1.0], step=0.25)
        [2.0, 1.0, 1.25, 1.5]
    """
    moved = list(places)
    last = float("-inf")
    for number in sorted(range(len(places)), key=lambda number: places[number]):
        moved[number] = last = max(places[number], last + step)
    return moved


def _label(title: str, runs: int) -> str:
    return f"{title} ({runs} runs)" if runs > 1 else title


def _style(number: int) -> dict[str, Any]:
    return {"color": COLORS[number % len(COLORS)], "marker": MARKERS[number % len(MARKERS)]}


def _figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots()
    style_axes(axes)
    return figure, axes
