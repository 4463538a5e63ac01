# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The pictures of a study show the numbers that they are given."""

import numpy as np
from PIL import Image
from scripts.lab.studies.plots import DPI, Line, Point, curves_figure, flops_figure
from scripts.pictures.figure import save_figure


def test_a_curve_is_the_mean_of_its_runs_over_samples():
    lines = [Line("PANet", [([10, 20], [0.2, 0.6]), ([10, 20], [0.4, 0.8])]), Line("U-Net", [([10, 20], [0.1, 0.5])])]
    figure = curves_figure(lines)
    first, second = figure.axes[0].get_lines()
    assert list(first.get_xdata()) == [10, 20]
    assert np.allclose(first.get_ydata(), [0.3, 0.7]) and np.allclose(second.get_ydata(), [0.1, 0.5])
    (band,) = figure.axes[0].collections
    assert np.allclose(band.get_datalim(figure.axes[0].transData).intervaly, [0.2, 0.8])
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["PANet (2 runs)", "U-Net"]


def test_a_point_is_the_mean_of_its_runs_over_operations(tmp_path):
    figure = flops_figure([Point("PANet", 10.0, [0.5, 0.75]), Point("U-Net", 10.0, [0.5]), Point("more", 20.0, [0.6])])
    mean, runs, unet, more = figure.axes[0].get_lines()
    assert (list(mean.get_xdata()), list(mean.get_ydata())) == ([10.0], [0.625])
    assert list(runs.get_ydata()) == [0.5, 0.75]
    # Two variants of the same number of operations stand beside each other.
    assert list(unet.get_xdata()) == [10.3] and list(more.get_xdata()) == [20.0]
    save_figure(figure, tmp_path / "picture.png", DPI)
    assert Image.open(tmp_path / "picture.png").size[0] > 1000


def test_small_differences_do_not_fill_the_picture():
    low, high = flops_figure([Point("PANet", 10.0, [0.660]), Point("U-Net", 20.0, [0.664])]).axes[0].get_ylim()
    assert np.allclose((low, high), (0.612, 0.712))
    low, high = flops_figure([Point("PANet", 10.0, [0.2]), Point("U-Net", 20.0, [0.8])]).axes[0].get_ylim()
    assert 0.1 < low < 0.2 and 0.8 < high < 0.9
