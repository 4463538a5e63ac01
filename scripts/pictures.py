# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Pictures of a patient, and of several patients.

In the picture of a patient each row is a plane (axial, coronal, sagittal) through the middle of the tumor. In the
picture of several patients each row is the axial plane of one of them. The pictures follow the radiological convention,
in which the patient's left is on the right-hand side.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from scripts.brats import CORE, CORE_LABEL, EDEMA, EDEMA_LABEL, ENHANCING, ET_LABELS, SEQUENCE_TITLES, SEQUENCES
from scripts.data.cases import Case
from scripts.data.checks import check_grid, is_phantom
from scripts.data.images import in_lps, read_image, voxels_of
from scripts.errors import InputError
from scripts.files import replacing

matplotlib.use("Agg")

# A picture numbers the parts from 1, in this order.
SUB_REGIONS = (CORE, EDEMA, ENHANCING)
PLANES = (("axial", 2), ("coronal", 1), ("sagittal", 0))

Volume = npt.NDArray[Any]


def read_labels(path: str | Path, shape: tuple[int, ...], et_labels: Sequence[int]) -> Volume:
    """Read a label map in LPS order.

    Args:
        path: file of the label map.
        shape: shape that the label map must have.
        et_labels: values of the enhancing tumor.

    Returns:
        Numbers of the parts in ``SUB_REGIONS``, from 1. Any value except 1, 2 and ``et_labels`` becomes 0.

    Raises:
        InputError: the file is absent or unreadable, or it has another shape.
    """
    labels = voxels_of(in_lps(read_image(path)), path)
    if labels.shape != shape:
        raise InputError(f"{path}: shape {labels.shape}, not the case's {shape}; give a label map in its grid.")
    found = np.zeros(shape, np.uint8)
    for index, values in enumerate(([CORE_LABEL], [EDEMA_LABEL], et_labels), 1):
        found[np.isin(labels, values)] = index
    return found


def _slice(volume: Volume, axis: int, position: int) -> Volume:
    # In LPS order indices run to the left, to the back and up. The rows of an axial slice run to the back, as they
    # should. The rows of the other slices run up, so they are reversed.
    plane = np.take(volume, position, axis=axis).T
    return plane if axis == 2 else plane[::-1]


def _read(case: Case) -> tuple[list[Volume], bool]:
    """Read the sequences of a case in LPS order, and whether it is a phantom."""
    paths = [str(case.images[s]) for s in SEQUENCES]
    opened = [read_image(path) for path in paths]
    for path, nifti in zip(paths, opened, strict=True):
        check_grid(path, nifti, paths[0], opened[0])
    images = [voxels_of(in_lps(nifti), path).astype(np.float32) for path, nifti in zip(paths, opened, strict=True)]
    return images, is_phantom(opened[0])


def _show(ax: Axes, image: Volume, brain: Volume, plane: Volume, labels: Volume | None = None) -> None:
    """Show one plane of a sequence, with the gray values of its whole brain, under labels if there are any."""
    low, high = np.percentile(image[brain], [1, 99.5])
    ax.imshow(plane, cmap="gray", vmin=min(low, 0), vmax=high)
    if labels is not None:
        overlay = ListedColormap(["none", *(region.color for region in SUB_REGIONS)])
        ax.imshow(labels, cmap=overlay, vmin=0, vmax=3, alpha=0.65, interpolation="nearest")
    ax.set_xticks([])
    ax.set_yticks([])
    ax.set_facecolor("black")


def _box(brain: Volume) -> tuple[slice, ...]:
    """The box of the brain."""
    found = [np.flatnonzero(brain.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3)]
    return tuple(slice(int(f[0]), int(f[-1]) + 1) for f in found)


def _save(figure: Figure, legend: bool, picture: str | Path) -> None:
    if legend:
        handles = [Patch(color=region.color, label=region.name) for region in SUB_REGIONS]
        figure.legend(handles=handles, loc="lower center", ncols=3, frameon=False, labelcolor="white", fontsize=10)
    with replacing(picture) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def draw_cases(cases: Sequence[Case], picture: str | Path) -> None:
    """Draw the axial plane with most tumor of each case into the PNG file ``picture``, one row for each case.

    Args:
        cases: complete cases with a file for each sequence.
        picture: file to write.

    Raises:
        InputError: a file is unreadable or has another shape.
    """
    figure = Figure(figsize=(1.6 * 5, 1.9 * len(cases) + 0.7), facecolor="black")
    axes = figure.subplots(len(cases), 5, squeeze=False)
    labeled = False
    for row, case in enumerate(cases):
        images, phantom = _read(case)
        brain = np.any([image != 0 for image in images], axis=0)
        cut = _box(brain)
        labels = None
        if case.label is not None:
            labels = read_labels(case.label, brain.shape, [case.release.et_label])[cut]
            labeled = True
        lesion = labels > 0 if labels is not None and labels.any() else brain[cut]
        middle = int(np.argmax(lesion.sum(axis=(0, 1))))
        for column, name in enumerate((*SEQUENCES, "flair")):
            image = images[SEQUENCES.index(name)]
            over = None if column < len(SEQUENCES) or labels is None else _slice(labels, 2, middle)
            ax = axes[row][column]
            _show(ax, image, brain, _slice(image[cut], 2, middle), over)
            if row == 0:
                title = SEQUENCE_TITLES[name] if column < len(SEQUENCES) else "reference"
                ax.set_title(title, color="white", fontsize=10)
        # The end of a name tells cases apart.
        label = case.name[-16:] + ("\nsynthetic phantom" if phantom else "")
        axes[row][0].set_ylabel(label, color="white", fontsize=7)
    figure.subplots_adjust(
        left=0.035,
        right=0.995,
        top=1 - 0.3 / figure.get_figheight(),
        bottom=0.35 / figure.get_figheight(),
        wspace=0.02,
        hspace=0.02,
    )
    _save(figure, labeled, picture)


def draw_case(case: Case, picture: str | Path, prediction: str | Path | None = None, note: str = "") -> None:
    """Draw ``case`` into the PNG file ``picture``.

    Args:
        case: a complete case.
        picture: file to write.
        prediction: file of a label map in the case's grid.
        note: text for the title, such as the origin of the weights.

    Raises:
        InputError: a file is unreadable or has another shape.
    """
    images, phantom = _read(case)
    brain = np.any([image != 0 for image in images], axis=0)
    maps: dict[str, Volume] = {}
    if case.label is not None:
        # Only the release's own value is ET. In BraTS 2024 ET is 3, and 4 is the resection cavity.
        maps["reference"] = read_labels(case.label, brain.shape, [case.release.et_label])
    if prediction is not None:
        maps["prediction"] = read_labels(prediction, brain.shape, ET_LABELS)

    lesion = next((labels > 0 for labels in maps.values() if labels.any()), brain)
    # The picture shows the slices with the largest area of the lesion, cut to the box of the brain.
    center = [int(np.argmax(lesion.sum(axis=tuple(a for a in range(3) if a != axis)))) for axis in range(3)]
    cut = _box(brain)
    center = [c - s.start for c, s in zip(center, cut, strict=True)]

    columns = len(images) + len(maps)
    figure = Figure(figsize=(2.3 * columns, 7.9), facecolor="black")
    axes = figure.subplots(len(PLANES), columns, squeeze=False)
    for column, image in enumerate([*images, *[images[SEQUENCES.index("flair")]] * len(maps)]):
        labels = list(maps.values())[column - len(images)] if column >= len(images) else None
        for row, (plane, axis) in enumerate(PLANES):
            ax = axes[row][column]
            over = None if labels is None else _slice(labels[cut], axis, center[axis])
            _show(ax, image, brain, _slice(image[cut], axis, center[axis]), over)
            if row == 0:
                title = SEQUENCE_TITLES[SEQUENCES[column]] if labels is None else list(maps)[column - len(images)]
                ax.set_title(title, color="white", fontsize=11)
            if column == 0:
                ax.set_ylabel(plane, color="white", fontsize=11)
    notes = [text for text in ("synthetic phantom, not a patient" if phantom else "", note) if text]
    figure.suptitle(case.name + (" - " + "; ".join(notes) if notes else ""), color="white", fontsize=12)
    figure.subplots_adjust(left=0.03, right=0.995, top=0.91, bottom=0.06, wspace=0.03, hspace=0.03)
    _save(figure, bool(maps), picture)
