# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""What all figures share: images, outlines, legend, title and scale."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text
from scripts.brats import SEQUENCE_TITLES, SEQUENCES
from scripts.pictures.captions import FOR_RESEARCH, Captions
from scripts.pictures.parts import REGION_PARTS, SUB_REGIONS
from scripts.pictures.patient import Patient
from scripts.pictures.planes import Volume
from scripts.scores.volumetry import voxel_volume
from scripts.utils.errors import printable
from scripts.utils.files import replacing

matplotlib.use("Agg")

DPI = 110
TITLE_SHARE = 0.97  # of a picture's width that a title may take
NO_TUMOR = "no tumor found"
# A title has little room.
SEQUENCE_NAMES = {**SEQUENCE_TITLES, "t1ce": "T1ce"}
PHANTOM = "synthetic phantom, not a patient"
Extent = tuple[float, float, float, float]  # left, right, bottom and top of a slice in mm


def draw_gray(ax: Axes, plane: Volume, window: tuple[float, float], extent: Extent) -> None:
    """Show a plane of a sequence."""
    ax.imshow(plane, cmap="gray", vmin=window[0], vmax=window[1], extent=extent, interpolation="bilinear")
    ax.set_xticks([])
    ax.set_yticks([])
    ax.set_facecolor("black")
    ax.set_frame_on(False)


def draw_colors(ax: Axes, plane: Volume, extent: Extent) -> None:
    """Lay the sub-regions of a plane of a label map over it, half transparent."""
    overlay = ListedColormap(["none", *(region.color for region in SUB_REGIONS)])
    ax.imshow(plane, cmap=overlay, vmin=0, vmax=3, alpha=0.5, extent=extent, interpolation="nearest")


def draw_outlines(ax: Axes, plane: Volume, colors: Mapping[str, str], extent: Extent) -> None:
    """Draw the borders of regions in a plane of a label map, each in its color."""
    _, across, down, _ = extent
    # Borders of a region that reaches the edge of the slice are closed.
    rows, columns = (np.arange(-0.5, size + 1) for size in plane.shape)
    for region, color in colors.items():
        mask = np.pad(np.isin(plane, REGION_PARTS[region]), 1)
        if mask.any():
            x, y = columns * across / plane.shape[1], rows * down / plane.shape[0]
            ax.contour(x, y, mask, levels=[0.5], colors=color, linewidths=1.1)


def legend_texts(labels: Volume, affine: Volume) -> tuple[list[str], str]:
    """What a legend says of parts by number, (x, y, z): a text for each of ``SUB_REGIONS``, and one for the regions.

    Example:
        >>> parts, regions = legend_texts(np.array([[[1, 2, 2, 3]]]), np.diag([10.0, 10.0, 10.0, 1.0]))
        >>> parts
        ['necrotic and non-enhancing core 1.0 ml', 'edema 2.0 ml', 'enhancing tumor 1.0 ml']
        >>> regions
        'ET 1.0 ml, TC 2.0 ml, WT 4.0 ml'
    """
    volumes = np.bincount(labels.ravel(), minlength=len(SUB_REGIONS) + 1) * (voxel_volume(affine) / 1000)
    parts = [f"{region.name} {volume:.1f} ml" for region, volume in zip(SUB_REGIONS, volumes[1:], strict=True)]
    regions = {name: sum(float(volumes[part]) for part in own) for name, own in REGION_PARTS.items()}
    return parts, ", ".join(f"{name} {volume:.1f} ml" for name, volume in regions.items())


def draw_legend(figure: Figure, patient: Patient, outlined: bool, source: str) -> None:
    """Colors, volumes and lesions, and below them where the result comes from."""
    inch = 1 / figure.get_figheight()
    look: dict[str, Any] = {"color": "white", "fontsize": 9, "ha": "center"}
    told = f"{source}; {FOR_RESEARCH}" if source else FOR_RESEARCH
    _fit(figure, figure.text(0.5, 0.1 * inch, printable(told), parse_math=False, **look))
    if patient.shown is None:
        return
    parts, regions = legend_texts(patient.shown, patient.affine)
    handles: list[Patch | Line2D] = [
        Patch(color=region.color, label=text) for region, text in zip(SUB_REGIONS, parts, strict=True)
    ]
    count = int(patient.lesions.max()) if patient.shown.any() else 0
    lesions = f"{count} lesion{'s' * (count != 1)}"
    lines = [f"{'reference' if patient.prediction is None else 'prediction'}: {regions}, {lesions}"]
    if outlined and patient.reference is not None:
        handles.append(Line2D([], [], color="white", linewidth=1, label="outline of the reference"))
        lines.append(f"reference: {legend_texts(patient.reference, patient.affine)[1]}")
    below = {"loc": "lower center", "frameon": False, "labelcolor": "white", "fontsize": 9}
    figure.legend(handles=handles, ncols=len(handles), bbox_to_anchor=(0.5, 0.44 * inch), **below)
    _fit(figure, figure.text(0.5, 0.3 * inch, "     ".join(lines), **look))


def draw_title(figure: Figure, patient: Patient, captions: Captions) -> None:
    """The case's name with notes, and below it what to expect of the result."""
    notes = [PHANTOM] if patient.phantom else []
    if lacking := [SEQUENCE_NAMES[name] for name in SEQUENCES if name not in patient.images]:
        notes.append(f"without {' and '.join(lacking)}")
    notes += captions.notes
    if patient.prediction is not None and not patient.prediction.any():
        notes.append(NO_TUMOR)
    title = printable(patient.name) + (" - " + "; ".join(notes) if notes else "")
    inch = 1 / figure.get_figheight()
    look: dict[str, Any] = {"color": "white", "va": "top", "parse_math": False}
    _fit(figure, figure.suptitle(title, y=1 - 0.12 * inch, fontsize=11, **look))
    if captions.expected:
        _fit(figure, figure.text(0.5, 1 - 0.34 * inch, captions.expected, fontsize=10, ha="center", **look))


def _fit(figure: Figure, text: Text) -> None:
    # A long text becomes smaller rather than cut.
    share = text.get_window_extent().width / figure.bbox.width
    if share > TITLE_SHARE:
        text.set_fontsize(float(text.get_fontsize()) * TITLE_SHARE / share)


def scale(width: float) -> tuple[int, str]:
    """Length in mm and text of the scale bar of a picture of this width in mm."""
    if width >= 50:
        return 50, "5 cm"
    return (10, "1 cm") if width >= 10 else (1, "1 mm")


def scale_bar(ax: Axes, width: float, height: float) -> None:
    length, text = scale(width)
    ax.plot([0, length], [height, height], color="white", linewidth=2, solid_capstyle="butt", gid="scale bar")
    ax.text(length / 2, height, text, color="white", fontsize=8, ha="center", va="bottom")


def save_figure(figure: Figure, picture: str | Path, dpi: int = DPI) -> None:
    """Write a figure into a PNG file, or raise a WriteError."""
    with replacing(picture) as temporary:
        figure.savefig(temporary, dpi=dpi, format="png")
