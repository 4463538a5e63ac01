# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""A patient as pictures need him: sequences, parts of the tumor, brain and position."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from scripts.brats import CHANNEL_ORDER, ET_LABELS, SEQUENCES
from scripts.data.cases import NO_FILE, image_files
from scripts.data.dicom import is_dicom, slice_numbers
from scripts.data.images import check_dimensions, in_lps, is_phantom, read_file, voxels_of
from scripts.data.inspection import check_channel_order
from scripts.data.placement import check_grid
from scripts.pictures.parts import CORE_PART, EDEMA_PART, ENHANCING_PART, REGION_PARTS, parts_of
from scripts.pictures.planes import Volume, areas, slices_through
from scripts.scores.volumetry import connected_lesions, voxel_volume

LEAST_LESION_MM3 = 100.0  # of a further lesion that gets a slice of its own
MOST_FURTHER = 2


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
    numbers: tuple[Sequence[int], ...] = ((), (), ())  # of the slices along each axis, as the file counts; else from 1

    @property
    def shown(self) -> Volume | None:
        """The label map to be shown in color: the prediction, or else the reference."""
        return self.reference if self.prediction is None else self.prediction

    @cached_property
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

    @cached_property
    def lesions(self) -> Volume:
        """Numbers of the lesions, from 1 for the largest one, (x, y, z): of what is shown, or else of the reference."""
        found = next((labels for labels in (self.shown, self.reference) if labels is not None and labels.any()), None)
        return np.zeros(self.brain.shape, np.int32) if found is None else connected_lesions(found > 0)

    @property
    def lesion(self) -> Volume:
        """Mask of the largest lesion, or without any of the brain, bool of shape (x, y, z)."""
        return self.lesions == 1 if self.lesions.any() else self.brain

    @cached_property
    def slices(self) -> list[int]:
        """For each axis, the index of the slice that shows the parts of the largest lesion best."""
        labels = self.shown if self.shown is not None and self.shown.any() else self.reference
        found = (
            []
            if labels is None
            else [self.lesion & (labels == part) for part in (CORE_PART, EDEMA_PART, ENHANCING_PART)]
        )
        return slices_through([mask for mask in found if mask.any()] or [self.lesion])

    @cached_property
    def further_slices(self) -> list[int]:
        """Axial slices, at most ``MOST_FURTHER``, through further lesions and regions that ``slices`` do not show."""
        if self.shown is None:
            return []
        least = LEAST_LESION_MM3 / voxel_volume(self.affine)
        # Half of a lesion's largest area shows it. Of a region, any voxel does.
        lesions = [(self.lesions == number, 0.5) for number in range(2, 2 + MOST_FURTHER)]
        wanted = [(mask, share) for mask, share in lesions if mask.sum() >= least]
        wanted += [(np.isin(self.shown, REGION_PARTS[region]), 0.0) for region in ("ET", "TC")]
        found: list[int] = []
        for mask, share in wanted:
            sizes = areas(mask, 2)
            if sizes.any() and not any(sizes[z] > share * sizes.max() for z in (self.slices[2], *found)):
                found.append(int(sizes.argmax()))
        return found[:MOST_FURTHER]

    def place(self, axis: int, index: int) -> tuple[str, str]:
        """Where a slice is: its number in the file or series, and its position in mm, such as "S 34.5 mm".

        Slices of an oblique grid have no single position; that of the place where ``slices`` cross counts.
        """
        size = self.brain.shape[axis]
        crossing = np.array([*self.slices, 1.0])
        crossing[axis] = index
        position = float((self.affine @ crossing)[axis])
        number = self.numbers[axis][index] if self.numbers[axis] else index + 1
        return f"{number} of {size}", f"{('RL', 'AP', 'SI')[axis][int(position < 0)]} {abs(position):.1f} mm"

    @property
    def spacing(self) -> Volume:
        """Size of a voxel along each axis in mm, (3,)."""
        sizes: Volume = nib.affines.voxel_sizes(self.affine)
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
    return Patient(
        name=str(item["case"]),
        images=images,
        affine=in_lps(first).affine,
        reference=reference,
        prediction=predicted,
        phantom=is_phantom(first),
        numbers=_slice_numbers(first_path, first),
    )


def _slice_numbers(path: str, image: nib.Nifti1Image) -> tuple[Sequence[int], ...]:
    """The numbers of the slices of a file, from 1, or of a DICOM series, along each axis in LPS order."""
    counted = [list(range(1, size + 1)) for size in image.shape[:3]]
    if is_dicom(path):
        counted[2] = slice_numbers(path) or counted[2]
    to_lps = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(image.affine), nib.orientations.axcodes2ornt("LPS")
    )
    turned = {int(axis): own if flip > 0 else own[::-1] for own, (axis, flip) in zip(counted, to_lps, strict=True)}
    return turned[0], turned[1], turned[2]
