# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Slices of a patient and of several patients, in the radiological convention (the patient's left is on the right)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from scripts.brats import CHANNEL_ORDER, SEQUENCE_TITLES, SEQUENCES
from scripts.pictures.figure import draw_colors, draw_gray, draw_legend, draw_outline, draw_title, scale_bar
from scripts.pictures.parts import SUB_REGIONS
from scripts.pictures.patient import Patient, read_patient
from scripts.pictures.planes import box_of, gray_window, plane_of, slices_through
from scripts.utils.errors import printable

# The letters are at the left and at the right of a slice.
PLANES = (("axial", 2, ("R", "L")), ("coronal", 1, ("R", "L")), ("sagittal", 0, ("A", "P")))
# Contrast agent brightens the enhancing tumor, and the core stands out dark inside it. FLAIR shows edema best: it is
# bright, and fluid is dark. A sequence that is missing gives its place to the next best one. The regions are those that
# the sequence shows, and whose borders in the reference are drawn over it.
SHOWN: tuple[tuple[Sequence[str], Sequence[str]], ...] = ((("t1ce", "t1"), ("ET", "TC")), (("flair", "t2"), ("WT",)))


def preview(patient: Patient, note: str = "") -> Figure:
    """Slices through the largest lesion of a patient. Their coordinates are mm.

    The columns are the sequence that shows the enhancing tumor and the core best, and the one that shows edema best,
    each without and with colors. The colors are those of the prediction. If there is a reference as well, its ET and
    TC are outlined on the first sequence, and its WT on the second. Without a prediction the colors are those of the
    reference. The ``note``, such as the origin of the weights, is added to the title.
    """
    cut = box_of(patient.drawn)
    center = [c - s.start for c, s in zip(slices_through(patient.lesion), cut, strict=True)]
    size = np.array([s.stop - s.start for s in cut]) * patient.spacing  # of what is drawn, in mm
    colors = patient.shown
    columns: list[tuple[str, Sequence[str], bool]] = []
    for sequences, regions in SHOWN:
        # At least one sequence is there.
        sequence = next(s for s in (*sequences, *SEQUENCES) if s in patient.images)
        columns += [(sequence, regions, False)] + [(sequence, regions, True)] * (colors is not None)
    brain = patient.brain
    windows = {sequence: gray_window(patient.images[sequence], brain) for sequence, _, _ in columns}
    outline = patient.reference if patient.prediction is not None else None

    # All slices have one scale. Each column is wide enough for the widest slice, its letters, and a gap to the next
    # column's letters.
    widest = max(size[0], size[1])
    wide, inches = 1.2 * widest, 2.45 / widest
    heights = [size[1], size[2], size[2]]
    top, bottom, left = 0.62, 0.5, 0.28
    width, height = left + 2.95 * len(columns), top + bottom + inches * sum(heights) + 0.16
    figure = Figure(figsize=(max(width, 8.0), height), facecolor="black")
    axes = figure.subplots(len(PLANES), len(columns), squeeze=False, height_ratios=heights)
    figure.subplots_adjust(left / width, bottom / height, 1, 1 - top / height, wspace=0.02, hspace=0.02)
    for row, (plane, axis, (first, last)) in enumerate(PLANES):
        across, down = (size[a] for a in range(3) if a != axis)
        extent = (0.0, float(across), float(down), 0.0)
        for column, (sequence, regions, colored) in enumerate(columns):
            ax = axes[row][column]
            gray = plane_of(patient.images[sequence][cut], axis, center[axis])
            draw_gray(ax, gray, windows[sequence], extent)
            if colored and colors is not None:
                draw_colors(ax, plane_of(colors[cut], axis, center[axis]), extent)
            if colored and outline is not None:
                draw_outline(ax, plane_of(outline[cut], axis, center[axis]), regions, extent)
            # Outlines may have moved the limits.
            ax.set_xlim((across - wide) / 2, (across + wide) / 2)
            ax.set_ylim(down, 0)
            for x, letter, side in ((-0.01 * wide, first, "right"), (across + 0.01 * wide, last, "left")):
                ax.text(x, down / 2, letter, color="white", fontsize=9, ha=side, va="center")
            if row == 0:
                ax.set_title(SEQUENCE_TITLES[sequence], color="white", fontsize=10, pad=3)
        axes[row][0].set_ylabel(plane, color="white", fontsize=10)
    scale_bar(axes[-1][0], float(size[1]), float(size[2]))
    draw_legend(figure, patient, outline is not None)
    draw_title(figure, patient, note)
    return figure


def overview(items: Sequence[Mapping[str, Any]], channel_order: Sequence[str] = CHANNEL_ORDER) -> Figure:
    """The axial slice with most tumor of each case, one row for each. Errors are those of ``read_patient``."""
    figure = Figure(figsize=(1.6 * 5, 1.9 * len(items) + 0.7), facecolor="black")
    axes = figure.subplots(len(items), 5, squeeze=False)
    labeled = False
    for row, item in enumerate(items):
        # Only one patient at a time is in memory.
        patient = read_patient(item, channel_order=channel_order)
        brain, labels = patient.brain, patient.reference
        cut = box_of(patient.drawn)
        middle = slices_through(labels > 0 if labels is not None and labels.any() else brain)[2] - cut[2].start
        across, down, _ = (float((s.stop - s.start) * mm) for s, mm in zip(cut, patient.spacing, strict=True))
        extent = (0.0, across, down, 0.0)
        last = next(s for s in ("flair", *SEQUENCES) if s in patient.images)
        for column, name in enumerate((*SEQUENCES, last)):
            ax = axes[row][column]
            if name in patient.images:
                image = patient.images[name]
                draw_gray(ax, plane_of(image[cut], 2, middle), gray_window(image, brain), extent)
            else:
                ax.set_axis_off()
            if column == len(SEQUENCES) and labels is not None:
                draw_colors(ax, plane_of(labels[cut], 2, middle), extent)
                labeled = True
            if row == 0:
                title = SEQUENCE_TITLES[name] if column < len(SEQUENCES) else "reference"
                ax.set_title(title, color="white", fontsize=10)
        # The end of a name tells cases apart.
        label = printable(patient.name[-16:]) + ("\nsynthetic phantom" if patient.phantom else "")
        axes[row][0].set_ylabel(label, color="white", fontsize=7, parse_math=False)
    height = figure.get_figheight()
    figure.subplots_adjust(0.035, 0.35 / height, 0.995, 1 - 0.3 / height, wspace=0.02, hspace=0.02)
    if labeled:
        handles = [Patch(color=region.color, label=region.name) for region in SUB_REGIONS]
        figure.legend(handles=handles, loc="lower center", ncols=3, frameon=False, labelcolor="white", fontsize=10)
    return figure
