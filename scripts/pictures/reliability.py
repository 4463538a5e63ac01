# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Expected and real Dice of an evaluation as a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from scripts.brats import CORE, EDEMA, ENHANCING, REGIONS
from scripts.pictures.figure import save_figure
from scripts.scores.expected_dice import Expected
from scripts.scores.paired import read_scores
from scripts.scores.table import EXPECTED, columns_of


def draw_reliability(real: Mapping[str, Sequence[float]], expected: Mapping[str, Sequence[Expected]]) -> Figure:
    """The real Dice of each result over the expected one, with its interval, by region."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    colors = (ENHANCING.color, CORE.color, EDEMA.color)
    for ax, region, color in zip(figure.subplots(1, len(REGIONS)), REGIONS, colors, strict=True):
        told = expected[region]
        ax.plot([0, 1], [0, 1], color="gray", linewidth=0.8, linestyle="--")
        ax.vlines([one.dice for one in told], [one.low for one in told], [one.high for one in told], color="0.85", lw=4)
        ax.scatter([one.dice for one in told], real[region], color=color, s=18, linewidths=0, alpha=0.8, zorder=3)
        inside = np.mean([one.low <= value <= one.high for one, value in zip(told, real[region], strict=True)])
        ax.set(xlabel="expected Dice", ylabel="real Dice", xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
        ax.set_title(f"{region}: {inside:.0%} of {len(told)} in the interval of 80 %", fontsize=9)
    return figure


def save_reliability(evaluation_dir: str | Path) -> None:
    """Draw ``reliability.png`` beside an evaluation's scores, if they hold an expected Dice."""
    folder = Path(evaluation_dir)
    scores = [row for row in read_scores(folder / "scores.csv").values() if set(columns_of(EXPECTED)) <= row.keys()]
    if scores:
        real = {region: [row[f"dice_{region}"] for row in scores] for region in REGIONS}
        expected = {
            region: [Expected(*(row[f"{name}_{region}"] for name in EXPECTED)) for row in scores] for region in REGIONS
        }
        save_figure(draw_reliability(real, expected), folder / "reliability.png")
