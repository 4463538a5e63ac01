# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Plots of curves, scores and volumes as SVG, for a page."""

import io
import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scripts.brats import CORE, EDEMA, ENHANCING, REGIONS
from scripts.pages.runs import Case, Curve
from scripts.scores.paired import Evaluation
from scripts.scores.table import SCORES, VOLUMES, score_of

# Each region has the color of the part that it adds, and a marker of its own.
COLORS = dict(zip(REGIONS, (ENHANCING.color, CORE.color, EDEMA.color), strict=True))
MARKERS = dict(zip(REGIONS, "o^s", strict=True))
# Colors (Okabe and Ito) and dashes of the loss's terms.
TERM_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9")
DASHES: tuple[Any, ...] = ("--", "-.", ":", (0, (1, 3)), (0, (6, 2, 1, 2, 1, 2)))
# A curve of more points than this is drawn as the means of as many stretches.
MOST_POINTS = 400
# Colors of the runs (Okabe and Ito). The order of the boxes tells the runs apart, too.
RUN_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#999999")
# Plots beside each other.
MOST_BESIDE = 3
# Quartiles of fewer values say nothing.
LEAST_BOXED = 5


def thinned(curve: Curve) -> Curve:
    """A curve of at most ``MOST_POINTS`` points, which are means."""
    steps, values = curve
    parts = min(MOST_POINTS, len(steps))
    return (
        [int(part[-1]) for part in np.array_split(steps, parts)],
        [float(np.mean(part)) for part in np.array_split(values, parts)],
    )


def loss_curves(curves: Mapping[str, Curve]) -> str:
    """The loss and its terms by iteration."""
    figure, ax = _figure()
    for number, (tag, curve) in enumerate((t, c) for t, c in curves.items() if t.startswith("train/loss_")):
        name = tag.removeprefix("train/loss_").replace("level", "level ")
        style = {"color": TERM_COLORS[number % len(TERM_COLORS)], "linestyle": DASHES[number % len(DASHES)]}
        ax.plot(*thinned(curve), linewidth=1.1, label=name, **style)
    if "train/loss" in curves:
        ax.plot(*thinned(curves["train/loss"]), color="black", linewidth=1.6, label="loss, the sum")
    ax.set(xlabel="iteration", ylabel="loss", title="Loss and its terms", ylim=(0, None))
    ax.legend(frameon=False, fontsize=8)
    return _svg(figure, "Curves of the loss and its terms by iteration")


def rate_curve(curves: Mapping[str, Curve]) -> str:
    """The learning rate by iteration."""
    figure, ax = _figure()
    ax.plot(*thinned(curves["train/learning_rate"]), color="black")
    ax.set(xlabel="iteration", ylabel="learning rate", title="Learning rate", ylim=(0, None))
    return _svg(figure, "Curve of the learning rate by iteration")


def validation_curves(curves: Mapping[str, Curve]) -> str:
    """The validation's Dice by epoch and region, and their mean."""
    figure, ax = _figure()
    for region in REGIONS:
        if f"val_dice_{region}" in curves:
            steps, values = curves[f"val_dice_{region}"]
            ax.plot(steps, values, color=COLORS[region], marker=MARKERS[region], markersize=4, label=region)
    if "val_mean_dice" in curves:
        ax.plot(*curves["val_mean_dice"], color="black", linewidth=2, label="mean")
    ax.set(xlabel="epoch", ylabel="Dice", title="Validation", ylim=(0, 1))
    ax.legend(frameon=False, fontsize=8, loc="lower right")
    return _svg(figure, "Curves of the Dice of the validation by epoch and region")


def distributions(cases: Sequence[Case], name: str) -> str:
    """A score or volume of all cases, by region: a point for each case, over a box of the quartiles of five or more."""
    score = score_of(name)
    figure, ax = _figure()
    for position, region in enumerate(REGIONS):
        values = [case.scores[f"{name}_{region}"] / score.divisor for case in cases]
        draw_box(ax, values, position, 0.5, "gray", color=COLORS[region], marker=MARKERS[region], s=16, alpha=0.8)
    ax.set_xticks(range(len(REGIONS)), REGIONS)
    ax.set_xlim(-0.6, len(REGIONS) - 0.4)
    ax.set(ylabel=score.heading, title=f"{score.heading} by region")
    if name in VOLUMES:
        ax.set_ylim(0, None)
    elif not score.unit:
        ax.set_ylim(-0.02, 1.02)
    return _svg(figure, f"Distribution of {score.heading} by region over {len(cases)} cases")


def volumes_compared(cases: Sequence[Case]) -> str:
    """The volume of each prediction over that of its reference, by region."""
    figure, ax = _figure()
    most = 0.0
    for region in REGIONS:
        x, y = (
            [case.scores[f"{name}_{region}"] / SCORES[name].divisor for case in cases]
            for name in ("reference_volume", "volume")
        )
        ax.scatter(x, y, color=COLORS[region], marker=MARKERS[region], s=22, alpha=0.8, linewidths=0, label=region)
        most = max(most, *x, *y)
    ax.plot([0, most], [0, most], color="gray", linewidth=0.8, linestyle="--", label="equal")
    ax.set(xlabel="reference (ml)", ylabel="prediction (ml)", title="Volume of prediction and reference")
    ax.legend(frameon=False, fontsize=8)
    return _svg(figure, f"Volumes of predictions over volumes of references of {len(cases)} cases")


def draw_box(ax: Axes, values: Sequence[float], center: float, width: float, box_color: str, **points: Any) -> None:
    """Draw a point for each value, which looks as ``points`` say, and behind enough of them a box of the quartiles."""
    if len(values) >= LEAST_BOXED:
        lines: dict[str, Any] = {f"{part}props": {"color": box_color} for part in ("box", "whisker", "cap")}
        lines["medianprops"] = {"color": "black"}
        ax.boxplot(values, positions=[center], widths=width, showfliers=False, **lines)
    # The same cases lie at the same places in each drawing.
    across = center + np.random.default_rng(0).uniform(-0.35, 0.35, len(values)) * width
    ax.scatter(across, values, linewidths=0, **points)


def draw_runs(evaluations: Sequence[Evaluation], names: Sequence[str]) -> Figure:
    """Draw scores of all cases: for each score and region a box for each run, with a point for each case."""
    beside = min(len(names), MOST_BESIDE)
    lines = math.ceil(len(names) / beside)
    figure = Figure(figsize=(4.2 * beside, 3.2 * lines + 0.4), layout="constrained")
    axes = list(figure.subplots(lines, beside, squeeze=False).flat)
    width = 0.8 / len(evaluations)
    for ax, name in zip(axes, names, strict=False):
        for number, evaluation in enumerate(evaluations):
            color = RUN_COLORS[number % len(RUN_COLORS)]
            for place, region in enumerate(REGIONS):
                values = evaluation.values(f"{name}_{region}").tolist()
                center = place + (number - (len(evaluations) - 1) / 2) * width
                label = evaluation.name if place == 0 else None
                draw_box(ax, values, center, 0.8 * width, color, color=color, s=9, alpha=0.7, label=label)
        ax.set_xticks(range(len(REGIONS)), REGIONS)
        ax.set_xlim(-0.6, len(REGIONS) - 0.4)
        ax.set_ylabel(score_of(name).heading)
        style_axes(ax)
    for ax in axes[len(names) :]:
        ax.remove()
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(len(labels), 4), frameon=False, markerscale=2)
    return figure


def _figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.6, 3.2), layout="constrained")
    ax = figure.subplots()
    style_axes(ax)
    return figure, ax


def style_axes(ax: Axes) -> None:
    """Give a plot horizontal lines behind its marks, and no frame above and on the right."""
    ax.grid(axis="y", color="#dddddd", linewidth=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def _svg(figure: Figure, label: str) -> str:
    """The figure as an element ``svg`` that tells screen readers its ``label``."""
    text = io.StringIO()
    # Ids must differ between the plots of one page. Letters stay letters, which are small and can be searched.
    with mpl.rc_context({"svg.hashsalt": label, "svg.fonttype": "none", "font.family": "sans-serif"}):
        figure.savefig(text, format="svg", transparent=True)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # Groups have names that occur in every plot, and nothing refers to them.
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1)
