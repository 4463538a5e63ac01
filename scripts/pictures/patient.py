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
from scripts.brats import CHANNEL_ORDER, ET_LABELS, SEQUENCES
from scripts.data.cases import NO_FILE, image_files
from scripts.data.images import check_dimensions, in_lps, is_phantom, read_file, voxels_of
from scripts.data.inspection import check_channel_order
from scripts.data.placement import check_grid
from scripts.pictures.parts import parts_of
from scripts.pictures.planes import Volume
from scripts.scores.volumetry import connected_lesions


@dataclass(frozen=True)
class Patient:
    """The images and label maps of a patient in LPS order: axes run to the left, to the back and up.

    The images are those that the case has, by sequence in the order of ``SEQUENCES``. The label maps hold the numbers
    of the parts in ``SUB_REGIONS``, from 1. All have the shape (x, y, z).
    """

    name: str  # of the case
    images: dict[str, Volume]
    affine: Volume  # from indices to mm, (4, 4), in nibabel's convention: to the right, to the front and up
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
    def lesion(self) -> Volume:
        """Mask of what the slices go through, bool of shape (x, y, z): the largest lesion, or without any the brain."""
        for labels in (self.shown, self.reference):
            if labels is not None and labels.any():
                largest: Volume = connected_lesions(labels > 0) == 1
                return largest
        return self.brain

    @property
    def spacing(self) -> Volume:
        """Size of a voxel along each axis in mm, (3,)."""
        sizes: Volume = np.linalg.norm(self.affine[:3, :3], axis=0)
        return sizes


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
        read: gives the image of a file.

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

    def labels(path: str | Path, *values: Any) -> Volume:
        found = read(str(path))
        check_dimensions(path, found)
        check_grid(str(path), in_lps(found), first_path, in_lps(first), label=True)
        return parts_of(voxels_of(in_lps(found), path), *values)

    # Only the release's own value is ET. In BraTS 2024 ET is 3, and 4 is the resection cavity.
    reference = labels(item["label"], [item["et_label"]], item["edema_label"]) if "label" in item else None
    predicted = None if prediction is None else labels(prediction, ET_LABELS)
    return Patient(str(item["case"]), images, in_lps(first).affine, reference, predicted, is_phantom(first))
