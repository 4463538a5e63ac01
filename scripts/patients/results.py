# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""What a segmented case gets beside its label map: numbers, pictures and a DICOM object."""

from __future__ import annotations

import functools
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
from scripts.brats import SEQUENCE_TITLES, SEQUENCES
from scripts.data.cases import NO_FILE, image_files, missing_sequences
from scripts.data.images import read_file, voxels_of
from scripts.inference.dicom_seg import save_dicom_seg
from scripts.inference.writers import map_files
from scripts.patients.options import Options
from scripts.pictures.figure import save_figure
from scripts.pictures.patient import read_patient
from scripts.pictures.preview import preview
from scripts.pictures.surface import surface_view
from scripts.scores.volumetry import measure
from scripts.utils.files import keep_earlier, read_json, save_json
from scripts.weights.record import Record, only_phantoms

logger = logging.getLogger(__name__)

# A title of a picture has little room.
SEQUENCE_NAMES = {**SEQUENCE_TITLES, "t1ce": "T1ce"}


@dataclass
class Results:
    """The results of the cases of one call.

    Attributes:
        items: the entries of the cases by name.
        folder: folder with a folder for each case.
        options: how to segment.
        record: the record of the weights.
        facts: entries of each case's JSON file that are the same for all cases.
        started: when the run started, by ``time.monotonic``.
        found: the content of each case's JSON file, by name.
    """

    items: Mapping[str, Mapping[str, Any]]
    folder: Path
    options: Options
    record: Record
    facts: Mapping[str, Any]
    started: float = field(default_factory=time.monotonic)
    found: dict[str, dict[str, Any]] = field(default_factory=dict)

    def label_map(self, case: str) -> Path:
        """File of a case's label map."""
        return map_files(case, self.folder, case_folders=True)[0]

    def _beside(self, case: str, *endings: str) -> list[Path]:
        return [self.label_map(case).with_name(f"{case}{ending}") for ending in endings]

    def set_aside(self, case: str) -> None:
        """Keep under a dated name what belongs to an earlier label map than the present one, or than none."""
        label_map = self.label_map(case)
        made = label_map.stat().st_mtime if label_map.is_file() else math.inf
        for path in self._beside(case, ".json", ".dcm", ".png", "_3d.png"):
            if path.is_file() and path.stat().st_mtime < made:
                logger.info("Kept an earlier %s as %s", path, keep_earlier(path))

    def finish(self, case: str, read: Callable[[str], nib.Nifti1Image] | None = None) -> None:
        """Measure and draw a segmented case, unless an earlier call has. ``read`` remembers files that were read."""
        read = read or functools.cache(read_file)
        item, label_map = self.items[case], self.label_map(case)
        numbers, dicom, slices, views = self._beside(case, ".json", ".dcm", ".png", "_3d.png")
        seconds = time.monotonic() - self.started
        self.set_aside(case)
        if not (result := read_json(numbers)):
            result = describe(item, label_map, self.options.et_label, read)
            result |= {**self.facts, "seconds_of_the_run": round(seconds, 2)}
            save_json(result, numbers)
        # There is no DICOM object of an empty segmentation.
        if self.options.dicom_seg and result["volumes_ml"]["WT"] and not dicom.is_file():
            save_dicom_seg(label_map, image_files(item["image"])[0], self.options.et_label, dicom)
        if self.options.pictures and not (slices.is_file() and views.is_file()):
            patient = read_patient(item, label_map, read=read)
            note = note_of(self.record, result["missing_sequences"], self.options.fast)
            save_figure(preview(patient, note), slices)
            save_figure(surface_view(patient, note), views)
        self.found[case] = result


def describe(
    item: Mapping[str, Any], label_map: Path, et_label: int, read: Callable[[str], nib.Nifti1Image]
) -> dict[str, Any]:
    """The numbers of a segmented case, by its label map, and where they come from. ``read`` gives the files."""
    labels = read(str(label_map))
    measures = asdict(measure(voxels_of(labels, label_map), labels.affine, et_label))
    image = item["image"]
    files = {"all": image} if isinstance(image, str) else dict(zip(SEQUENCES, image, strict=True))
    return {
        "case": item["case"],
        "use": "for research, not for diagnosis",
        "label_map": str(label_map),
        "et_label": et_label,
        "volumes_ml": measures["volume_ml"],
        "lesion_count": measures["lesion_count"],
        "lesions": measures["lesions"],
        "missing_sequences": missing_sequences(item["image"]),
        "inputs": [
            {"sequence": sequence, "file": file, "sha256": read(file).extra["sha256"]}
            for sequence, file in files.items()
            if file != NO_FILE
        ],
    }


def note_of(record: Record, lacking: Sequence[str], fast: bool) -> str:
    """What the pictures say of how a case was segmented: with what weights, without what sequences, and if fast.

    Example:
        >>> note_of({"trained_on": {"patients": 16, "phantoms": 0}}, ["t1ce", "flair"], fast=True)
        'for research only; without T1ce and FLAIR; fast'
    """
    notes = ["for research only"]
    if only_phantoms(record):
        notes.append("weights trained on phantoms")
    if lacking:
        notes.append(f"without {' and '.join(SEQUENCE_NAMES[sequence] for sequence in lacking)}")
    if fast:
        notes.append("fast")
    return "; ".join(notes)
