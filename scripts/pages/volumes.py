# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Images and label maps of a case as a page shows them: cut to the brain, in few gray levels, and small pictures."""

from __future__ import annotations

import base64
import gzip
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from matplotlib.colors import to_rgb
from PIL import Image
from scripts.brats import SEQUENCES
from scripts.data.cases import NO_FILE, image_files
from scripts.data.images import read_image, voxels_of
from scripts.pictures.colors import REGION_PARTS, SUB_REGIONS
from scripts.pictures.patient import (
    affine_of_part,
    box_of,
    gray_window,
    parts_of,
    plane_of,
    read_patient,
    slices_through,
)
from scripts.pictures.preview import PLANES
from scripts.utils.errors import InputError

# Noise hardly compresses. With 64 gray levels a case takes a third less than with 256, and looks the same.
GRAY_STEP = 4
# Gray levels of a preview. With three parts over each, all colors fit into a palette of 256, which makes files small.
PREVIEW_LEVELS = 32
# Pixels around each plane of a preview.
GAP = 3
# How much of a label covers the image in a preview.
OVERLAY = 0.55

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class View:
    """The volumes of one case, in LPS order and cut to the brain.

    Attributes:
        images: gray values of sequences, uint8, by the name of the sequence.
        maps: parts of the tumor, numbered from 1 in the order of ``SUB_REGIONS``, by "reference" or "prediction".
        affine: affine of all volumes, in mm.
    """

    images: dict[str, Bytes]
    maps: dict[str, Bytes]
    affine: npt.NDArray[np.float64]

    @property
    def center(self) -> tuple[int, int, int]:
        """The slices, one for each axis, with most tumor in the first map that has any; else with most brain."""
        found = next((parts > 0 for parts in self.maps.values() if parts.any()), next(iter(self.images.values())) > 0)
        x, y, z = slices_through(found)
        return x, y, z


def region_volumes(path: Path) -> dict[str, float]:
    """Volumes of ET, TC and WT, in mm^3, in a label map that the bundle has written.

    Raises:
        InputError: the file cannot be read.
    """
    opened = read_image(path)
    voxel = abs(float(np.linalg.det(opened.affine[:3, :3])))
    counts = np.bincount(parts_of(voxels_of(opened, path)).ravel(), minlength=4)
    return {region: float(counts[list(parts)].sum()) * voxel for region, parts in REGION_PARTS.items()}


def gray_values(image: npt.NDArray[Any], brain: npt.NDArray[np.bool_]) -> Bytes:
    """Gray values from 0 to 255 in steps of ``GRAY_STEP``. The window goes from the brain's percentile 1 to 99.5.

    Where that percentile is above 0, the window begins at 0.

    Args:
        image: voxels of a sequence, of any shape.
        brain: where the brain is, in the same shape.

    Example:
        >>> image = np.arange(0.0, 1001.0)
        >>> gray_values(image, image > 0)[[0, 100, 500, 1000]].tolist()
        [0, 24, 128, 255]
    """
    low, high = gray_window(image, brain)
    scaled = np.clip((image - low) / max(high - low, float(np.finfo(np.float32).tiny)), 0, 1) * 255
    return np.minimum(np.round(scaled / GRAY_STEP) * GRAY_STEP, 255).astype(np.uint8)


def read_view(
    entry: Mapping[str, Any],
    prediction: Path | None,
    channel_order: Sequence[str],
    sequences: Sequence[str] = SEQUENCES,
) -> View:
    """Read the volumes of a case.

    Args:
        entry: datalist entry of the case. Its ``label`` is the reference, if it has one.
        prediction: label map that the bundle has written, or None.
        channel_order: the sequences in the order of the channels of a four-dimensional file.
        sequences: the sequences to read. Those that the case lacks are left out.

    Raises:
        InputError: as in ``read_patient``, or the case has none of ``sequences``, or all of them are 0 everywhere.
    """
    image = entry["image"]
    if not isinstance(image, str | Path):
        image = [path if name in sequences else NO_FILE for name, path in zip(SEQUENCES, image, strict=True)]
        if not image_files(image):
            raise InputError(f"{entry['case']}: has no file of {', '.join(sequences)}; nothing can be shown.")
    patient = read_patient({**entry, "image": image}, prediction, channel_order)
    if not any(voxels.any() for voxels in patient.images.values()):
        raise InputError(f"{entry['case']}: its images are 0 everywhere; copy them again.")
    brain = patient.brain
    cut = box_of(brain)
    maps = {"reference": patient.reference, "prediction": patient.prediction}
    return View(
        {name: gray_values(patient.images[name], brain)[cut] for name in sequences if name in patient.images},
        {name: parts[cut] for name, parts in maps.items() if parts is not None},
        affine_of_part(patient.affine, cut),
    )


def encoded(volume: Bytes, affine: npt.NDArray[np.float64]) -> str:
    """A volume as base64 of a gzip file of NIfTI. The same volume gives the same text.

    Example:
        >>> text = encoded(np.full((2, 3, 4), 7, np.uint8), np.eye(4))
        >>> nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(text))).shape
        (2, 3, 4)
    """
    nifti = nib.Nifti1Image(volume, affine)
    return base64.b64encode(gzip.compress(nifti.to_bytes(), mtime=0)).decode("ascii")


def preview(view: View, sequence: str) -> bytes:
    """A PNG file with a sequence of a view in three planes, one row for each map; without maps, one row.

    The planes are axial, coronal and sagittal, through ``View.center``, in the radiological convention.
    """
    image, center = view.images[sequence], view.center
    rows = []
    for parts in view.maps.values() or [np.zeros(image.shape, np.uint8)]:
        # The number of a color: first all gray values without a part, then those under each part.
        colors = image // (256 // PREVIEW_LEVELS) + PREVIEW_LEVELS * parts
        planes = [plane_of(colors, axis, center[axis]) for _, axis, _ in PLANES]
        height = max(plane.shape[0] for plane in planes)
        rows.append(np.concatenate([_centered(plane, height) for plane in planes], axis=1))
    picture = Image.fromarray(np.concatenate(rows))
    picture.putpalette(_palette().tobytes())
    file = io.BytesIO()
    picture.save(file, format="PNG", optimize=True)
    return file.getvalue()


def _palette() -> Bytes:
    """The colors of a preview, (colors, 3)."""
    gray = np.linspace(0, 255, PREVIEW_LEVELS)[:, None].repeat(3, axis=1)
    parts = [np.array(to_rgb(part.color)) * 255 for part in SUB_REGIONS]
    covered = [gray * (1 - OVERLAY) + part * OVERLAY for part in parts]
    return np.round(np.concatenate([gray, *covered])).astype(np.uint8)


def _centered(plane: Bytes, height: int) -> Bytes:
    above = (height - plane.shape[0]) // 2
    return np.pad(plane, ((above + GAP, height - plane.shape[0] - above + GAP), (GAP, GAP)))
