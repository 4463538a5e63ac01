# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The plots of a page: what they show, and that they can stand beside each other in one page."""

import re
from xml.etree import ElementTree

import pytest
from matplotlib.figure import Figure
from scripts.brats import EDEMA
from scripts.pages import plots
from scripts.pages.runs import Case

CASES = [
    Case(
        f"P{number}",
        {
            f"{measure}_{region}": value * number
            for measure, value in (("dice", 0.25), ("hd95", 2.0), ("volume", 1500.0), ("reference_volume", 1000.0))
            for region in ("ET", "TC", "WT")
        },
    )
    for number in (1, 2, 3)
]
CURVES = {
    "train/loss": ([1, 2], [3.0, 1.5]),
    "train/loss_level1": ([1, 2], [3.0, 1.5]),
    "train/learning_rate": ([1, 2], [0.1, 0.2]),
    "val_dice_WT": ([2, 4], [0.5, 0.75]),
    "val_mean_dice": ([2, 4], [0.25, 0.5]),
}


def every_plot() -> list[str]:
    return [
        plots.loss_curves(CURVES),
        plots.rate_curve(CURVES),
        plots.validation_curves(CURVES),
        plots.distributions(CASES, "dice"),
        plots.distributions(CASES, "hd95"),
        plots.volumes_compared(CASES),
        plots.distributions(CASES, "volume"),
    ]


@pytest.fixture
def drawn(monkeypatch) -> list[Figure]:
    """The figures that are drawn."""
    figures: list[Figure] = []
    svg = plots._svg
    monkeypatch.setattr(plots, "_svg", lambda figure, label: figures.append(figure) or svg(figure, label))
    return figures


def test_curves_hold_the_values_with_their_axes(drawn):
    plots.validation_curves(CURVES)
    (ax,) = drawn[0].axes
    lines = {line.get_label(): line for line in ax.lines}
    assert list(lines) == ["WT", "mean"] and lines["WT"].get_color() == EDEMA.color
    assert lines["WT"].get_xydata().tolist() == [[2, 0.5], [4, 0.75]]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("epoch", "Dice")


def test_volumes_are_in_ml(drawn):
    plots.volumes_compared(CASES)
    (ax,) = drawn[0].axes
    points = ax.collections[0].get_offsets().tolist()
    assert points == [[1.0, 1.5], [2.0, 3.0], [3.0, 4.5]]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("reference (ml)", "prediction (ml)")


def test_distributions_have_a_point_for_each_case_and_units(drawn):
    plots.distributions(CASES, "hd95")
    (ax,) = drawn[0].axes
    assert ax.collections[2].get_offsets()[:, 1].tolist() == [2.0, 4.0, 6.0]
    # A box takes five cases, with seven lines for each region: box, median, whiskers and caps.
    plots.distributions([*CASES, *CASES], "hd95")
    assert [len(figure.axes[0].lines) for figure in drawn] == [0, 18]
    assert ax.get_ylabel() == "HD95 (mm)"
    assert [text.get_text() for text in ax.get_xticklabels()] == ["ET", "TC", "WT"]


def test_plots_are_svg_with_a_label_and_ids_of_their_own():
    seen: set[str] = set()
    for text in every_plot():
        root = ElementTree.fromstring(text)
        assert root.attrib["role"] == "img" and root.attrib["aria-label"]
        ids = {node.attrib["id"] for node in root.iter() if "id" in node.attrib}
        assert not ids & seen
        seen |= ids
        # All that is referred to is there.
        assert set(re.findall(r"url\(#([^)]+)\)", text)) | set(re.findall(r'href="#([^"]+)"', text)) <= ids
    assert every_plot() == every_plot(), "the same values give the same file"
