# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Slices of a patient and of several patients, in the radiological convention (the patient's left is on the right)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from scripts.brats import CHANNEL_ORDER, CORE, EDEMA, ENHANCING, SEQUENCE_TITLES, SEQUENCES
from scripts.pictures.captions import FOR_RESEARCH, NO_CAPTIONS, Captions
from scripts.pictures.figure import draw_colors, draw_gray, draw_legend, draw_outlines, draw_title, scale_bar
from scripts.pictures.parts import SUB_REGIONS
from scripts.pictures.patient import Patient, read_patient
from scripts.pictures.planes import Volume, box_of, gray_window, plane_of
from scripts.utils.errors import printable

# The letters are at the left and at the right of a slice.
PLANES = (("axial", 2, ("R", "L")), ("coronal", 1, ("R", "L")), ("sagittal", 0, ("A", "P")))
# Each region has the color of the part that it adds.
OUTLINES = {"WT": EDEMA.color, "TC": CORE.color, "ET": ENHANCING.color}
# Contrast agent brightens the enhancing tumor, and the core stands out dark inside it. FLAIR shows edema best: it is
# bright, and fluid is dark. A sequence that is missing gives its place to the next best one.
OUTLINED, FILLED = ("t1ce", "t1", "flair", "t2"), ("flair", "t2", "t1ce", "t1")
COLUMNS = ("t1", "t1ce", "t2", "flair")


def preview(patient: Patient, captions: Captions = NO_CAPTIONS) -> Figure:
    """Slices through the largest lesion of a patient, and through further ones. Their coordinates are mm.

    The columns are all sequences, the outlines of the regions over the sequence that shows the core best, and the parts
    in colors over the one that shows edema best, with lines where the other planes cut. Outlines and colors are those
    of the prediction, and then the outlines of the reference, if there is one, are white lines over the colors. Without
    a prediction they are those of the reference.
    """
    cut = box_of(patient.drawn)
    start = [s.start for s in cut]
    size = np.array([s.stop - s.start for s in cut]) * patient.spacing  # of what is drawn, in mm
    colors = patient.shown
    brain = patient.brain
    windows = {name: gray_window(image, brain) for name, image in patient.images.items()}
    columns = [(name, "") for name in COLUMNS if name in patient.images]
    if colors is not None:
        # At least one sequence is there.
        of_outlines, of_fills = (next(s for s in order if s in patient.images) for order in (OUTLINED, FILLED))
        columns += [(of_outlines, "outlines"), (of_fills, "colors")]
    rows = [(plane, axis, patient.slices[axis], letters) for plane, axis, letters in PLANES]
    rows += [("axial", 2, index, PLANES[0][2]) for index in patient.further_slices]

    # All slices have one scale. Each column is wide enough for the widest slice, its letters, and a gap to the next
    # column's letters.
    widest = max(size[0], size[1])
    wide, inches = 1.2 * widest, 2.45 / widest
    heights = [size[2 if axis < 2 else 1] for _, axis, _, _ in rows]
    top, bottom, left = 0.84, 0.72, 1.25
    width, height = left + 2.95 * len(columns), top + bottom + inches * sum(heights) + 0.16
    figure = Figure(figsize=(width, height), facecolor="black")
    axes = figure.subplots(len(rows), len(columns), squeeze=False, height_ratios=heights)
    figure.subplots_adjust(left / width, bottom / height, 1, 1 - top / height, wspace=0.02, hspace=0.02)
    for (plane, axis, index, (first, last)), row in zip(rows, axes, strict=True):
        across, down = (size[a] for a in range(3) if a != axis)
        extent = (0.0, float(across), float(down), 0.0)
        for (sequence, kind), ax in zip(columns, row, strict=True):
            at = index - start[axis]
            draw_gray(ax, plane_of(patient.images[sequence][cut], axis, at), windows[sequence], extent)
            if colors is not None and kind == "outlines":
                draw_outlines(ax, plane_of(colors[cut], axis, at), OUTLINES, extent)
            if colors is not None and kind == "colors":
                draw_colors(ax, plane_of(colors[cut], axis, at), extent)
                if patient.prediction is not None and patient.reference is not None:
                    white = dict.fromkeys(OUTLINES, "white")
                    draw_outlines(ax, plane_of(patient.reference[cut], axis, at), white, extent)
                _draw_cuts(ax, patient, axis, start, size)
            # Outlines may have moved the limits.
            ax.set_xlim((across - wide) / 2, (across + wide) / 2)
            ax.set_ylim(down, 0)
            for x, letter, side in ((-0.01 * wide, first, "right"), (across + 0.01 * wide, last, "left")):
                ax.text(x, down / 2, letter, color="white", fontsize=12, ha=side, va="center")
            if ax in axes[0]:
                title = SEQUENCE_TITLES[sequence] + (f", {kind}" if kind else "")
                ax.set_title(title, color="white", fontsize=11, pad=3)
        told = "{}\nslice {}\n{}".format(plane, *patient.place(axis, index))
        row[0].annotate(
            told, (0, 0.5), (0, 0.5), xycoords="axes fraction", color="white", fontsize=10, ha="right", va="center"
        )
    scale_bar(axes[2][0], float(size[1]), float(size[2]))
    draw_legend(figure, patient, patient.prediction is not None, captions.source)
    draw_title(figure, patient, captions)
    return figure


def _draw_cuts(ax: Axes, patient: Patient, axis: int, start: Sequence[int], size: Volume) -> None:
    """Draw thin lines where the other planes cut this one."""
    look: dict[str, Any] = {"color": "white", "linewidth": 0.5, "linestyle": (0, (6, 6)), "alpha": 0.7}
    across, down = (other for other in range(3) if other != axis)
    for other, draw in ((across, ax.axvline), (down, ax.axhline)):
        for index in [patient.slices[other], *(patient.further_slices if other == 2 else [])]:
            place = (index - start[other] + 0.5) * patient.spacing[other]
            # Rows of coronal and sagittal slices run down, and their axis up.
            draw(size[2] - place if other == 2 else place, **look)


def overview(items: Sequence[Mapping[str, Any]], channel_order: Sequence[str] = CHANNEL_ORDER) -> Figure:
    """The axial slice with most tumor of each case, one row for each. Errors are those of ``read_patient``."""
    figure = Figure(figsize=(1.6 * 5, 1.9 * len(items) + 0.85), facecolor="black")
    axes = figure.subplots(len(items), 5, squeeze=False)
    labeled = False
    for row, item in enumerate(items):
        # Only one patient at a time is in memory.
        patient = read_patient(item, channel_order=channel_order)
        brain, labels = patient.brain, patient.reference
        cut = box_of(patient.drawn)
        middle = patient.slices[2] - cut[2].start
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
    figure.subplots_adjust(0.035, 0.5 / height, 0.995, 1 - 0.3 / height, wspace=0.02, hspace=0.02)
    figure.text(0.5, 0.08 / height, FOR_RESEARCH, color="white", fontsize=9, ha="center")
    if labeled:
        handles = [Patch(color=region.color, label=region.name) for region in SUB_REGIONS]
        figure.legend(
            handles=handles,
            loc="lower center",
            ncols=3,
            frameon=False,
            labelcolor="white",
            fontsize=10,
            bbox_to_anchor=(0.5, 0.2 / height),
        )
    return figure
