# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""What a segmented case gets beside its label map: numbers, pictures and a DICOM object."""

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from scripts.data.cases import image_files, missing_sequences
from scripts.data.findings import ACCEPTABLE, PREPARATION_DOUBTS, warned_of
from scripts.data.images import read_file, voxels_of
from scripts.inference.dicom_seg import save_dicom_seg
from scripts.inference.label_tables import save_label_tables
from scripts.inference.writers import map_files, record_file
from scripts.patients.options import PREPARED_GRID, Options
from scripts.pictures.captions import captions_of
from scripts.pictures.figure import save_figure
from scripts.pictures.patient import read_patient
from scripts.pictures.preview import preview
from scripts.pictures.surface import surface_view
from scripts.preparation.folder import draw_prepared
from scripts.preparation.grids import Volume, resample
from scripts.preparation.native import RECORD_KEY, read_native_grid
from scripts.scores.volume_table import TABLE_FILE, add_to_table
from scripts.scores.volumetry import measure, rounded
from scripts.utils.errors import printable
from scripts.utils.files import read_json
from scripts.utils.run_json import read_run_json
from scripts.weights.record import Record
from scripts.workflow.case_records import ENDINGS

# The method; CITATION.cff has the bundle, too.
CITATION = "Zhao et al., IEEE Trans Med Imaging 2022, doi:10.1109/TMI.2022.3197180, and CITATION.cff."

Reader = Callable[[str], nib.Nifti1Image]


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
        done: called with this content as soon as the case has all of its results.
    """

    items: Mapping[str, Mapping[str, Any]]
    folder: Path
    options: Options
    record: Record
    facts: Mapping[str, Any]
    started: float = field(default_factory=time.monotonic)
    found: dict[str, dict[str, Any]] = field(default_factory=dict)
    done: Callable[[Mapping[str, Any]], None] | None = None

    def label_map(self, case: str) -> Path:
        """File of a case's label map."""
        return map_files(case, self.folder, case_folders=True)[0]

    def describe(self, case: str, read: Reader | None) -> dict[str, Any]:
        """The entries of the JSON file of a case that was segmented. ``read`` remembers files that were read."""
        seconds = round(time.monotonic() - self.started, 2)
        found = describe(self.items[case], self.label_map(case), self.options.et_label, read or read_file)
        warnings = read_run_json(self.folder).get("warnings", {}).get(case, [])
        kinds = [warning["kind"] for warning in warnings]
        found |= {
            "warnings": warnings,
            "accepted": [kind for kind in (*ACCEPTABLE, *PREPARATION_DOUBTS) if kind in kinds],
        }
        if RECORD_KEY in self.items[case]:
            found["preparation"] = preparation_of(self.items[case][RECORD_KEY], self.options.native)
        return {**found, **self.facts, "seconds_of_the_run": seconds}

    def finish(self, case: str, read: Reader | None = None) -> None:
        """Write what is missing beside the label map and the JSON file of a case."""
        if case in self.found:
            return
        item, label_map = self.items[case], self.label_map(case)
        read = native_reader(item, self.options.native, read or functools.cache(read_file))
        dicom, slices, views = (label_map.with_name(case + ending) for ending in ENDINGS)
        result = read_json(record_file(label_map))
        save_label_tables(label_map, self.options.et_label)
        # There is no DICOM object of an empty segmentation.
        if self.options.dicom_seg and result["lesion_count"] and not dicom.is_file():
            weights = result["weights"]
            save_dicom_seg(label_map, source_of(item, self.options.native), self.options.et_label, dicom, weights)
        wanted = {slices: (self.options.pictures, preview), views: (self.options.surface, surface_view)}
        draw = {file: draw for file, (is_wanted, draw) in wanted.items() if is_wanted and not file.is_file()}
        if draw:
            patient = read_patient(item, label_map, read=read)
            captions = captions_of(result, read_run_json(self.folder), case)
            for file, figure in draw.items():
                save_figure(figure(patient, captions), file)
        if slices in draw and (record := item.get(RECORD_KEY)):
            labels = read(str(label_map))
            drawn = Volume(np.asanyarray(labels.dataobj), labels.affine)
            draw_prepared(record, drawn, None if self.options.native == PREPARED_GRID else self.options.native)
        add_to_table(result, self.folder)
        self.found[case] = result
        if self.done is not None:
            self.done(result)


def closing_words(results: Sequence[Mapping[str, Any]]) -> str:
    """Where to look first, of at least one result: at a case with warnings, or with the lowest expected Dice of WT."""

    def certainty(result: Mapping[str, Any]) -> tuple[bool, float]:
        expected = result["expected_dice"]
        return not result["warnings"], expected["WT"]["dice"] if expected else 1.0

    result = min(results, key=certainty)
    label_map = Path(result["label_map"])
    picture = label_map.with_name(f"{result['case']}{ENDINGS[1]}")
    told = warned_of(result["warnings"])
    if not told and result["expected_dice"]:
        told = [f"expected Dice of WT {result['expected_dice']['WT']['dice']:.2f}"]
    first = f"{picture if picture.is_file() else label_map}{f' ({told[0]})' if told else ''}"
    return printable(
        f"Look first at {first}, then at {label_map.parents[1] / TABLE_FILE}. For research, not for diagnosis. "
        f"To cite: {CITATION}"
    )


def source_of(item: Mapping[str, Any], native: str) -> str:
    """The image in whose grid the results of a case are."""
    if RECORD_KEY in item and native != PREPARED_GRID:
        return str(read_json(item[RECORD_KEY])["scans"][native]["file"])
    return image_files(item["image"])[0]


def native_reader(item: Mapping[str, Any], native: str, read: Reader) -> Reader:
    """What reads the sequences of a case for its pictures: in the grid of the scan that the results are in."""
    if RECORD_KEY not in item or native == PREPARED_GRID:
        return read
    grid = read_native_grid(item[RECORD_KEY], native)

    def read_native(file: str) -> nib.Nifti1Image:
        image = read(file)
        if file not in image_files(item["image"]):
            return image
        prepared = Volume(np.asanyarray(image.dataobj), image.affine)
        found = resample(prepared, grid.affine, grid.shape, grid.to_prepared).as_image()
        found.header["descrip"] = image.header["descrip"]
        return found

    return functools.cache(read_native)


def preparation_of(record: str, native: str) -> dict[str, Any]:
    """What a case's JSON file says of its preparation; the rest is in the record that it names."""
    found = read_json(record)
    scans = [
        {"sequence": name, "file": scan["file"], "sha256": scan["sha256"]} for name, scan in found["scans"].items()
    ]
    kept = {name: found[name] for name in ("kind", "brain_ml", "seconds")}
    return {"record": record, "grid_of": native, "scans": scans, **kept}


def describe(item: Mapping[str, Any], label_map: Path, et_label: int, read: Reader) -> dict[str, Any]:
    """The numbers of a segmented case, by its label map. ``read`` gives the files."""
    labels = read(str(label_map))
    measures = rounded(measure(voxels_of(labels, label_map), labels.affine, et_label))
    return {
        "case": item["case"],
        "use": "for research, not for diagnosis",
        "label_map": str(label_map),
        "et_label": et_label,
        "volumes_ml": measures["volume_ml"],
        "lesion_count": measures["lesion_count"],
        "lesions": measures["lesions"],
        "missing_sequences": missing_sequences(item["image"]),
    }
