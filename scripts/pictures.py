# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Pictures of a patient.

Each row is a plane (axial, coronal, sagittal) through the middle of the tumor, in the radiological convention: the
patient's left is on the right-hand side.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
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

# In the order in which a picture numbers them, from 1.
SUB_REGIONS = (CORE, EDEMA, ENHANCING)
PLANES = (("axial", 2), ("coronal", 1), ("sagittal", 0))

Volume = npt.NDArray[Any]


def read_labels(path: str | Path, shape: tuple[int, ...], et_labels: Sequence[int]) -> Volume:
    """A label map in LPS order, as indices into ``SUB_REGIONS`` from 1; values but 1, 2 and ``et_labels`` are 0.

    Raises:
        InputError: the file is absent or unreadable, or its shape is another.
    """
    labels = voxels_of(in_lps(read_image(path)), path)
    if labels.shape != shape:
        raise InputError(f"{path}: shape {labels.shape}, not the case's {shape}; give a label map in its grid.")
    found = np.zeros(shape, np.uint8)
    for index, values in enumerate(([CORE_LABEL], [EDEMA_LABEL], et_labels), 1):
        found[np.isin(labels, values)] = index
    return found


def _slice(volume: Volume, axis: int, position: int) -> Volume:
    # In LPS order indices run to the left, to the back and up: rows of an axial slice go to the back, of others down.
    plane = np.take(volume, position, axis=axis).T
    return plane if axis == 2 else plane[::-1]


def draw_case(case: Case, picture: str | Path, prediction: str | Path | None = None, note: str = "") -> None:
    """Draw ``case`` into the PNG file ``picture``.

    Args:
        case: a complete case.
        picture: file to write.
        prediction: label map in the case's grid.
        note: a line below the title, such as where the weights come from.

    Raises:
        InputError: a file is unreadable or of another shape.
    """
    paths = [str(case.images[s]) for s in SEQUENCES]
    opened = [read_image(path) for path in paths]
    for path, nifti in zip(paths, opened, strict=True):
        check_grid(path, nifti, paths[0], opened[0])
    images = [voxels_of(in_lps(nifti), path).astype(np.float32) for path, nifti in zip(paths, opened, strict=True)]
    brain = np.any([image != 0 for image in images], axis=0)
    maps: dict[str, Volume] = {}
    if case.label is not None:
        # In BraTS 2024 a 4 beside ET's 3 is the resection cavity.
        maps["reference"] = read_labels(case.label, brain.shape, [case.release.et_label])
    if prediction is not None:
        maps["prediction"] = read_labels(prediction, brain.shape, ET_LABELS)

    lesion = next((labels > 0 for labels in maps.values() if labels.any()), brain)
    # The slice that shows most of the lesion, cut to the brain's box.
    center = [int(np.argmax(lesion.sum(axis=tuple(a for a in range(3) if a != axis)))) for axis in range(3)]
    box = [np.flatnonzero(brain.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3)]
    cut = tuple(slice(int(b[0]), int(b[-1]) + 1) for b in box)
    center = [c - s.start for c, s in zip(center, cut, strict=True)]

    columns = len(images) + len(maps)
    figure = Figure(figsize=(2.3 * columns, 7.9), facecolor="black")
    axes = figure.subplots(len(PLANES), columns, squeeze=False)
    overlay = ListedColormap(["none", *(region.color for region in SUB_REGIONS)])
    for column, image in enumerate([*images, *[images[SEQUENCES.index("flair")]] * len(maps)]):
        low, high = np.percentile(image[brain], [1, 99.5])
        labels = list(maps.values())[column - len(images)] if column >= len(images) else None
        for row, (plane, axis) in enumerate(PLANES):
            ax = axes[row][column]
            ax.imshow(_slice(image[cut], axis, center[axis]), cmap="gray", vmin=min(low, 0), vmax=high)
            if labels is not None:
                shown = _slice(labels[cut], axis, center[axis])
                ax.imshow(shown, cmap=overlay, vmin=0, vmax=3, alpha=0.65, interpolation="nearest")
            ax.set_xticks([])
            ax.set_yticks([])
            ax.set_facecolor("black")
            if row == 0:
                title = SEQUENCE_TITLES[SEQUENCES[column]] if labels is None else list(maps)[column - len(images)]
                ax.set_title(title, color="white", fontsize=11)
            if column == 0:
                ax.set_ylabel(plane, color="white", fontsize=11)
    notes = [text for text in ("synthetic phantom, not a patient" if is_phantom(opened[0]) else "", note) if text]
    figure.suptitle(case.name + (" - " + "; ".join(notes) if notes else ""), color="white", fontsize=12)
    handles = [Patch(color=region.color, label=region.name) for region in SUB_REGIONS]
    if maps:
        figure.legend(handles=handles, loc="lower center", ncols=3, frameon=False, labelcolor="white", fontsize=10)
    figure.subplots_adjust(left=0.03, right=0.995, top=0.91, bottom=0.06, wspace=0.03, hspace=0.03)
    with replacing(picture) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
