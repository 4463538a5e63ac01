# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""A patient as pictures need him: sequences, parts of the tumor, brain and position."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scripts.brats import CHANNEL_ORDER, CORE_LABEL, EDEMA_LABEL, ET_LABELS, SEQUENCES
from scripts.data.cases import NO_FILE, image_files
from scripts.data.images import check_dimensions, in_lps, is_phantom, read_file, voxels_of
from scripts.data.inspection import check_channel_order, check_grid
from scripts.pictures.colors import CORE_PART, EDEMA_PART, ENHANCING_PART
from scripts.scores.volumetry import connected_lesions
from scripts.utils.errors import InputError

Volume = npt.NDArray[Any]


@dataclass(frozen=True)
class Patient:
    """The images and label maps of a patient in LPS order: axes run to the left, to the back and up.

    Attributes:
        name: name of the case.
        images: voxels of the sequences that the case has, in the order of ``SEQUENCES``, each (x, y, z).
        affine: matrix from indices to mm, (4, 4), in nibabel's convention: to the right, to the front and up.
        reference: numbers of the parts in ``SUB_REGIONS``, from 1, (x, y, z), or None.
        prediction: the same for the prediction.
        phantom: whether the case is a synthetic phantom.
    """

    name: str
    images: dict[str, Volume]
    affine: Volume
    reference: Volume | None = None
    prediction: Volume | None = None
    phantom: bool = False

    @property
    def shown(self) -> Volume | None:
        """The label map to be shown in color: the prediction, or else the reference."""
        return self.reference if self.prediction is None else self.prediction

    @property
    def brain(self) -> Volume:
        """Mask of the brain, bool of shape (x, y, z)."""
        found: Volume = np.any([image != 0 for image in self.images.values()], axis=0)
        # Images may be 0 everywhere.
        return found if found.any() else np.ones_like(found)

    @property
    def drawn(self) -> Volume:
        """Mask of the brain and the tumor, bool of shape (x, y, z). Predictions may lie outside the brain."""
        found = self.brain
        for labels in (self.reference, self.prediction):
            if labels is not None:
                found = found | (labels > 0)
        return found

    @property
    def spacing(self) -> Volume:
        """Size of a voxel along each axis in mm, (3,)."""
        sizes: Volume = np.linalg.norm(self.affine[:3, :3], axis=0)
        return sizes


def parts_of(labels: Volume, et_labels: Sequence[int] = ET_LABELS, edema_label: int = EDEMA_LABEL) -> Volume:
    """Numbers of the parts in ``SUB_REGIONS``, from 1, in place of the values of a label map, uint8.

    Args:
        labels: the label map, of any shape.
        et_labels: values of the enhancing tumor. Any other value than these, 1 and 2 is no part.
        edema_label: value of edema, 2 or 1. The core has the other value of the two.

    Example:
        >>> parts_of(np.array([0, 1, 2, 4])).tolist()
        [0, 1, 2, 3]
        >>> parts_of(np.array([0, 1, 2, 3, 4]), [3], edema_label=1).tolist()
        [0, 2, 1, 3, 0]
    """
    found = np.zeros(labels.shape, np.uint8)
    core_label = CORE_LABEL + EDEMA_LABEL - edema_label
    for part, values in ((CORE_PART, [core_label]), (EDEMA_PART, [edema_label]), (ENHANCING_PART, et_labels)):
        found[np.isin(labels, values)] = part
    return found


def read_patient(
    item: Mapping[str, Any],
    prediction: str | Path | None = None,
    channel_order: Sequence[str] = CHANNEL_ORDER,
    read: Callable[[str], nib.Nifti1Image] = read_file,
) -> Patient:
    """Read a patient for its pictures.

    Args:
        item: datalist entry of the case (``scripts.data.datalist``), with or without ``label``.
        prediction: file of a label map in the case's grid, which this bundle has written.
        channel_order: the sequences in the order of a four-dimensional file's channels.
        read: gives the files.

    Raises:
        InputError: a file is unreadable or has another grid, or the dataset states another order of channels.
    """
    image, four_dimensional = item["image"], isinstance(item["image"], str | Path)
    check_channel_order(item, channel_order)
    opened = {path: read(path) for path in image_files(image)}
    first_path, first = next(iter(opened.items()))
    for path, one in opened.items():
        check_dimensions(path, one, len(SEQUENCES) if four_dimensional else 0)
        check_grid(path, one, first_path, first)
    voxels = {path: voxels_of(in_lps(one), path).astype(np.float32) for path, one in opened.items()}
    if four_dimensional:
        images = {name: voxels[str(image)][..., channel_order.index(name)] for name in SEQUENCES}
    else:
        images = {name: voxels[str(path)] for name, path in zip(SEQUENCES, image, strict=True) if path != NO_FILE}
    shape = next(iter(images.values())).shape

    def labels(path: str | Path, *values: Any) -> Volume:
        found = read(str(path))
        check_dimensions(path, found)
        in_order = voxels_of(in_lps(found), path)
        if in_order.shape != shape:
            raise InputError(f"{path}: shape {in_order.shape}, not the case's {shape}; give a label map in its grid.")
        return parts_of(in_order, *values)

    # Only the release's own value is ET. In BraTS 2024 ET is 3, and 4 is the resection cavity.
    reference = labels(item["label"], [item["et_label"]], item["edema_label"]) if "label" in item else None
    predicted = None if prediction is None else labels(prediction, ET_LABELS)
    return Patient(str(item["case"]), images, in_lps(first).affine, reference, predicted, is_phantom(first))


def lesion_mask(patient: Patient) -> Volume:
    # What the slices go through: the largest lesion, first of the label map that is shown, or else the whole brain.
    for labels in (patient.shown, patient.reference):
        if labels is not None and labels.any():
            lesion: Volume = connected_lesions(labels > 0) == 1
            return lesion
    return patient.brain


def affine_of_part(affine: npt.NDArray[np.float64], part: Sequence[slice]) -> npt.NDArray[np.float64]:
    """The affine, (4, 4), of the part of a volume that three slices cut out.

    Example:
        >>> affine_of_part(np.diag([2.0, 2.0, 2.0, 1.0]), (slice(3, 5), slice(0, 5), slice(1, 5)))[:3, 3].tolist()
        [6.0, 0.0, 2.0]
    """
    moved = affine.copy()
    moved[:3, 3] += affine[:3, :3] @ [s.start for s in part]
    return moved


def slices_through(mask: Volume) -> list[int]:
    """For each axis, the index of the slice with the largest area of a mask.

    Example:
        >>> mask = np.zeros((4, 5, 6), bool)
        >>> mask[1:3, 2, 3] = mask[1, 2, 4] = True
        >>> slices_through(mask)
        [1, 2, 3]
    """
    return [int(np.argmax(mask.sum(axis=tuple(a for a in range(3) if a != axis)))) for axis in range(3)]


def plane_of(volume: Volume, axis: int, position: int) -> Volume:
    """A slice of a volume in LPS order, in the radiological convention."""
    # In LPS order indices run to the left, to the back and up. The rows of an axial slice run to the back, as they
    # should. The rows of the other slices run up, so they are reversed.
    plane = np.take(volume, position, axis=axis).T
    return plane if axis == 2 else plane[::-1]


def box_of(mask: Volume) -> tuple[slice, ...]:
    """The smallest box that holds a mask, bool, which is not empty."""
    (found,) = ndimage.find_objects(mask.view(np.uint8))
    box: tuple[slice, ...] = found
    return box


def gray_window(image: Volume, brain: Volume) -> tuple[float, float]:
    """The values that are black and white, from the values in the whole brain."""
    low, high = np.percentile(image[brain], [1, 99.5])
    return min(float(low), 0.0), float(high)
