# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""A picture of one patient: four sequences, reference and prediction.

    python -m scripts.render_case CASE_DIR PICTURE.png --prediction LABEL_MAP.nii.gz

Each row is a plane (axial, coronal, sagittal) through the middle of the tumour, in the radiological convention: the
patient's left is on the right-hand side.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import nibabel as nib
import numpy as np
import numpy.typing as npt
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from scripts import command
from scripts.data.checks import UNREADABLE, check_grid
from scripts.data.datalist import SEQUENCES, Case, find_cases
from scripts.errors import InputError
from scripts.files import replacing
from scripts.run_record import read_record
from scripts.transforms import ET_LABELS

matplotlib.use("Agg")

TITLES = {"t1": "T1", "t1ce": "T1 contrast-enhanced", "t2": "T2", "flair": "FLAIR"}
CORE, OEDEMA, ENHANCING = 1, 2, 3
# Colours that stay apart for colour-blind eyes (Okabe and Ito).
COLORS = {CORE: "#0072B2", OEDEMA: "#009E73", ENHANCING: "#E69F00"}
NAMES = {CORE: "necrotic and non-enhancing core", OEDEMA: "oedema", ENHANCING: "enhancing tumour"}
PLANES = (("axial", 2), ("coronal", 1), ("sagittal", 0))

Volume = npt.NDArray[Any]


def read_labels(path: str | Path, shape: tuple[int, ...], et_labels: Sequence[int]) -> Volume:
    """A label map with ET as 3, in LPS order; values but 1, 2 and ``et_labels`` are background.

    Raises:
        InputError: the file is absent or unreadable, or its shape is another.
    """
    labels = _read(path)
    if labels.shape != shape:
        raise InputError(f"{path}: shape {labels.shape}, not the case's {shape}; give a label map in its grid.")
    found = np.zeros(shape, np.uint8)
    for value, label in ((1, CORE), (2, OEDEMA), *((et_label, ENHANCING) for et_label in et_labels)):
        found[labels == value] = label
    return found


def _read(path: str | Path) -> Volume:
    try:
        image: Any = nib.load(path)
        target = nib.orientations.axcodes2ornt("LPS")
        to_lps = nib.orientations.ornt_transform(nib.orientations.io_orientation(image.affine), target)
        return np.asanyarray(image.as_reoriented(to_lps).dataobj)
    except UNREADABLE as error:
        raise InputError(f"{path}: not a readable NIfTI image ({error}).") from error


def _slice(volume: Volume, axis: int, position: int) -> Volume:
    # In LPS order indices run to the left, to the back and up: rows of an axial slice go to the back, of others down.
    plane = np.take(volume, position, axis=axis).T
    return plane if axis == 2 else plane[::-1]


def render(case: Case, picture: str | Path, prediction: str | Path | None = None, note: str = "") -> None:
    """Draw ``case`` into the PNG file ``picture``.

    Args:
        case: a complete case.
        picture: file to write.
        prediction: label map in the case's grid.
        note: a line below the title, such as where the weights come from.

    Raises:
        InputError: a file is unreadable or of another shape.
    """
    phantom = check_grid({"image": [str(case.images[s]) for s in SEQUENCES]})
    images = [_read(case.images[s]).astype(np.float32) for s in SEQUENCES]
    brain = np.any([image != 0 for image in images], axis=0)
    maps: dict[str, Volume] = {}
    if case.label is not None:
        # In BraTS 2024 a 4 beside ET's 3 is the resection cavity.
        maps["reference"] = read_labels(case.label, brain.shape, [case.release.et_label])
    if prediction is not None:
        maps["prediction"] = read_labels(prediction, brain.shape, ET_LABELS)

    lesion = next((labels > 0 for labels in maps.values() if labels.any()), brain)
    # The slice that shows most of the lesion, cut to the brain's box.
    centre = [int(np.argmax(lesion.sum(axis=tuple(a for a in range(3) if a != axis)))) for axis in range(3)]
    box = [np.flatnonzero(brain.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3)]
    cut = tuple(slice(int(b[0]), int(b[-1]) + 1) for b in box)
    centre = [c - s.start for c, s in zip(centre, cut, strict=True)]

    columns = len(images) + len(maps)
    figure = Figure(figsize=(2.3 * columns, 7.9), facecolor="black")
    axes = figure.subplots(len(PLANES), columns, squeeze=False)
    overlay = ListedColormap(["none", *COLORS.values()])
    for column, image in enumerate([*images, *[images[SEQUENCES.index("flair")]] * len(maps)]):
        low, high = np.percentile(image[brain], [1, 99.5])
        labels = list(maps.values())[column - len(images)] if column >= len(images) else None
        for row, (plane, axis) in enumerate(PLANES):
            ax = axes[row][column]
            ax.imshow(_slice(image[cut], axis, centre[axis]), cmap="gray", vmin=min(low, 0), vmax=high)
            if labels is not None:
                shown = _slice(labels[cut], axis, centre[axis])
                ax.imshow(shown, cmap=overlay, vmin=0, vmax=3, alpha=0.65, interpolation="nearest")
            ax.set_xticks([])
            ax.set_yticks([])
            ax.set_facecolor("black")
            if row == 0:
                title = TITLES[SEQUENCES[column]] if labels is None else list(maps)[column - len(images)]
                ax.set_title(title, color="white", fontsize=11)
            if column == 0:
                ax.set_ylabel(plane, color="white", fontsize=11)
    notes = [text for text in ("synthetic phantom, not a patient" if phantom else "", note) if text]
    figure.suptitle(case.name + (" - " + "; ".join(notes) if notes else ""), color="white", fontsize=12)
    handles = [Patch(color=COLORS[label], label=NAMES[label]) for label in COLORS]
    if maps:
        figure.legend(handles=handles, loc="lower center", ncols=3, frameon=False, labelcolor="white", fontsize=10)
    figure.subplots_adjust(left=0.03, right=0.995, top=0.91, bottom=0.06, wspace=0.03, hspace=0.03)
    with replacing(picture) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m scripts.render_case", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("case_dir", type=Path, help="folder of one case")
    parser.add_argument("picture", type=Path, help="PNG file to write")
    parser.add_argument("--prediction", type=Path, help="label map that inference or evaluation wrote")
    args = parser.parse_args(argv)
    cases = [case for case in find_cases(args.case_dir) if not case.missing]
    if len(cases) != 1 or cases[0].file is not None:
        raise InputError(
            f"{args.case_dir}: {len(cases)} complete cases; give the folder of one case, with a file per sequence."
        )
    note = ""
    if args.prediction is not None:
        record = read_record(args.prediction.parent)
        note = "weights trained on phantoms" if record.get("phantom_weights") else ""
    render(cases[0], args.picture, args.prediction, note)
    print(args.picture)
    return 0


if __name__ == "__main__":
    command.run(main)
