# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Scans of one examination, and how far they are prepared already."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scripts.brats import REFERENCE
from scripts.data.images import check_dimensions, read_file, voxels_of
from scripts.data.inspection import check_image
from scripts.data.placement import DOUBTS, one_place
from scripts.data.plausibility import LARGEST_BRAIN_ML
from scripts.preparation.grids import Array, Volume, resample
from scripts.utils.errors import InputError

PREPARED = "prepared"
WITH_SKULL = "co-registered, with skull"
STRIPPED = "stripped, on own grids"
RAW = "raw"


@dataclass(frozen=True)
class Scan:
    """A sequence as it was given: its voxels, float32, its file with its checksum, and whether it has no skull."""

    volume: Volume
    file: str
    sha256: str
    stripped: bool
    doubts: tuple[tuple[str, str], ...] = ()  # about the header: kind and message

    @property
    def brain(self) -> Volume:
        """Where the voxels of a stripped scan are not 0, float32."""
        return self.volume.like((self.volume.voxels != 0).astype(np.float32))


def read_scan(file: str) -> Scan:
    """Read a file, or a DICOM series by one of its files.

    Raises:
        InputError: it is no image of one sequence, or faulty.
    """
    image = read_file(file)
    check_dimensions(file, image)
    voxels = voxels_of(image, file)
    check_image(file, voxels)
    volume = Volume(np.asarray(voxels, np.float32), image.affine)
    stripped = np.count_nonzero(volume.voxels) * volume.voxel_ml <= LARGEST_BRAIN_ML
    return Scan(volume, file, image.extra["sha256"], stripped, tuple(image.extra.get(DOUBTS, ())))


def read_scans(files: Mapping[str, str]) -> dict[str, Scan]:
    """Read the files of sequences. One of them must be T1ce; else an InputError says so."""
    if REFERENCE not in files:
        first = next(iter(files.values()))
        raise InputError(f"{first}: there is no T1ce with it, to which the others are registered; add it.")
    return {name: read_scan(file) for name, file in files.items()}


def kind_of(scans: Mapping[str, Scan]) -> str:
    """How far scans of these sequences are prepared, by their grids and their background."""
    first = scans[REFERENCE].volume
    one_grid = all(
        scan.volume.voxels.shape == first.voxels.shape and one_place(scan.volume.affine, first.affine)
        for scan in scans.values()
    )
    fine = one_grid and np.allclose(first.spacing, 1, atol=0.05)
    if all(scan.stripped for scan in scans.values()):
        return PREPARED if fine else STRIPPED
    return WITH_SKULL if fine else RAW


def on_grid(scan: Scan, affine: Array, shape: tuple[int, ...], to_scan: Array) -> Array:
    """A scan on another grid by one linear interpolation, 0 outside its field of view, float32.

    At the border of a stripped brain, the zeros beside it have no part in the interpolation.
    """
    found = resample(scan.volume, affine, shape, to_scan, mode="nearest").voxels
    if scan.stripped:
        share = resample(scan.brain, affine, shape, to_scan).voxels
        found = np.where(share > 0.499, found / np.maximum(share, 0.499), 0)
    return np.where(field_of_view(scan.volume, affine, shape, to_scan), found, 0)


def field_of_view(volume: Volume, affine: Array, shape: tuple[int, ...], to_volume: Array) -> Array:
    """Mask of the points of a grid that lie in a voxel of a volume."""
    index = np.linalg.inv(volume.affine) @ to_volume @ affine
    inside = np.ones(shape, bool)
    places = np.ogrid[tuple(slice(n) for n in shape)]
    for row, size in zip(index, volume.voxels.shape, strict=False):
        place = row[3] + sum(factor * along for factor, along in zip(row, places, strict=False))
        inside &= (place >= -0.5) & (place <= size - 0.5)
    return inside
