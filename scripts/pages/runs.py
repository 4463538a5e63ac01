# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""What a run has left in its folder: its record, curves, scores, cases and label maps."""

import csv
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scripts.brats import ET_LABELS
from scripts.data.cases import missing_sequences
from scripts.data.datalist_file import read_datalist
from scripts.data.images import read_image, voxels_of
from scripts.inference.writers import map_files, record_file
from scripts.scores.expected_dice import mean_expected
from scripts.scores.paired import read_scores
from scripts.scores.table import columns_of
from scripts.scores.volumetry import measure
from scripts.utils.errors import InputError
from scripts.utils.files import read_json
from scripts.utils.run_json import CONFIG_FILE, RUN_FILE, read_run_json
from scripts.workflow.output import DATALIST_FILE
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

TRAINING, EVALUATION, INFERENCE = "training", "evaluation", "inference"
SCORES_FILE, SUMMARY_FILE = "scores.csv", "summary.csv"
# What a curve holds: steps (iterations or epochs) and values.
Curve = tuple[list[int], list[float]]
Entry = Mapping[str, Any]  # of a datalist


@dataclass
class Case:
    """A case of an evaluation or of an inference."""

    name: str
    scores: dict[str, float] = field(default_factory=dict)  # scores and volumes (mm^3), by columns of scores.csv
    entry: Entry | None = None  # None if nothing says where the images are
    prediction: Path | None = None  # the label map that the run has saved
    record: dict[str, Any] = field(default_factory=dict)  # of an inference, its JSON file with lesions (``measure``)

    @property
    def mean_dice(self) -> float:
        """Mean Dice of the regions; NaN without scores."""
        return float(np.mean([self.scores.get(column, math.nan) for column in columns_of(["dice"])]))


@dataclass
class Run:
    """A run's folder."""

    folder: Path
    kind: str  # TRAINING, EVALUATION or INFERENCE
    record: dict[str, Any]  # run.json
    config: dict[str, Any]  # config.json; empty without this file
    notes: list[str] = field(default_factory=list)  # what could not be found, in sentences

    @property
    def failed(self) -> dict[str, str]:
        """Reasons by the names of the cases that failed."""
        return dict(self.record.get("failed", {}))

    @property
    def warnings(self) -> dict[str, list[dict[str, str]]]:
        """Warnings, with ``kind`` and ``text``, by the names of cases that have any."""
        return dict(self.record.get("warnings", {}))


def read_run(folder: Path) -> Run:
    """The run in ``folder``.

    Raises:
        InputError: there is no such folder, it holds no run, or a file of it cannot be read.
    """
    if not (folder / RUN_FILE).is_file():
        fault = f"holds no {RUN_FILE}" if folder.is_dir() else "no such folder"
        raise InputError(f"{folder}: {fault}; give the output folder of a training, an evaluation or an inference.")
    record, config = read_run_json(folder), read_json(folder / CONFIG_FILE)
    if isinstance(record.get("cases"), dict):
        kind = TRAINING
    else:
        # An evaluation that has not ended has no scores, but its configuration says what it is.
        is_evaluation = (folder / SCORES_FILE).is_file() or "evaluation_dir" in config
        kind = EVALUATION if is_evaluation else INFERENCE
    return Run(folder, kind, record, config)


def read_curves(run: Run) -> dict[str, Curve]:
    """The curves of a training by their names, such as "train/loss" (by iteration) and "val_dice_ET" (by epoch)."""
    curves: dict[str, Curve] = {}
    for part in ("training", "validation"):
        folder = run.folder / "tensorboard" / part
        if not folder.is_dir():
            run.notes.append(f"The folder {folder} with curves is not there.")
            continue
        events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
        events.Reload()
        for tag in events.Tags()["scalars"]:
            points = events.Scalars(tag)
            curves[tag] = [point.step for point in points], [point.value for point in points]
    return curves


def read_summary(run: Run) -> tuple[list[str], list[list[str]]]:
    """The header and the rows of ``summary.csv``; empty if there is no file."""
    path = run.folder / SUMMARY_FILE
    if not path.is_file():
        return [], []
    with path.open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    return header, rows


def cases_of(run: Run) -> list[Case]:
    """The cases of an evaluation, from the worst mean Dice to the best, or of an inference, from the worst
    expected Dice to the best.

    Raises:
        InputError: ``scores.csv``, the list of cases or a label map cannot be read.
    """
    listed = run.folder / DATALIST_FILE
    lists = (
        read_datalist(listed, run.record.get("dataset_dir", "."), run.kind == EVALUATION) if listed.is_file() else {}
    )
    entries = {str(entry["case"]): entry for items in lists.values() for entry in items}
    if not entries:
        run.notes.append(f"The file {listed} is not there, so nothing says where the images are.")
    return _scored_cases(run, entries) if run.kind == EVALUATION else _segmented_cases(run, entries)


def _scored_cases(run: Run, entries: Mapping[str, Entry]) -> list[Case]:
    path = run.folder / SCORES_FILE
    if not path.is_file():
        run.notes.append(f"The file {path} is not there, so the evaluation has not ended.")
        return []
    # The configuration names another folder, or refers to the run's own.
    map_dir = run.config.get("label_map_dir") or "@evaluation_dir"
    folder = run.folder if map_dir.startswith(("$", "@")) else Path(map_dir)
    cases = [
        Case(name, scores, entries.get(name), _existing(map_files(name, folder)[0]))
        for name, scores in read_scores(path).items()
    ]
    return sorted(cases, key=lambda case: (case.mean_dice, case.name))


def _segmented_cases(run: Run, entries: Mapping[str, Entry]) -> list[Case]:
    cases = []
    for name in entries.keys() - run.failed.keys():
        file = map_files(name, run.folder, case_folders=bool(run.config.get("case_folders")))[0]
        record = read_json(record_file(file))
        if (prediction := _existing(file)) and "lesions" not in record:
            record |= _measured(prediction)
        record.setdefault("missing_sequences", missing_sequences(entries[name]["image"]))
        volumes = {f"volume_{region}": ml * 1000 for region, ml in record.get("volumes_ml", {}).items()}
        cases.append(Case(name, volumes if prediction else {}, entries[name], prediction, record))
    return sorted(cases, key=lambda case: _worst_first(run, case))


def _worst_first(run: Run, case: Case) -> tuple[bool, float, bool, str]:
    """The order of segmented cases: by the expected Dice, then those without it, of which warned ones come first."""
    expected = mean_expected(case.record.get("expected_dice"))
    unknown = math.isnan(expected)
    return unknown, 0.0 if unknown else expected, case.name not in run.warnings, case.name


def _measured(label_map: Path) -> dict[str, Any]:
    """Volumes and lesions of a label map that the bundle has written, as in the JSON file of ``panet segment``."""
    image = read_image(label_map)
    voxels = voxels_of(image, label_map)
    measures = asdict(
        measure(voxels, image.affine, max(ET_LABELS) if (voxels == max(ET_LABELS)).any() else ET_LABELS[0])
    )
    return {"volumes_ml": measures["volume_ml"], "lesions": measures["lesions"]}


def _existing(path: Path) -> Path | None:
    return path if path.is_file() else None
