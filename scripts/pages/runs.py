# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""What a run has left in its folder: its record, curves, scores, cases and label maps."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from scripts.brats import CHANNEL_ORDER, REGIONS
from scripts.data.datalist import labeled_items, unlabeled_items
from scripts.data.datalist_file import read_datalist
from scripts.inference.writers import map_files
from scripts.pages.volumes import region_volumes
from scripts.utils.errors import InputError
from scripts.utils.files import read_json
from scripts.utils.run_json import CONFIG_FILE, RUN_FILE, read_run_json
from scripts.workflow.output import DATALIST_FILE
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

TRAINING, EVALUATION, INFERENCE = "training", "evaluation", "inference"
SCORES_FILE, SUMMARY_FILE = "scores.csv", "summary.csv"
# What a curve holds: steps (iterations or epochs) and values.
Curve = tuple[list[int], list[float]]


@dataclass
class Case:
    """A case of an evaluation or of an inference.

    Attributes:
        name: name of the case.
        scores: scores and volumes (mm^3) by the names of the columns of ``scores.csv``.
        entry: datalist entry of the case, or None if its images are not found.
        prediction: the label map that the run has saved, or None.
    """

    name: str
    scores: dict[str, float] = field(default_factory=dict)
    entry: Mapping[str, Any] | None = None
    prediction: Path | None = None

    @property
    def mean_dice(self) -> float:
        """Mean Dice of the regions; NaN without scores.

        Example:
            >>> Case("P1", {"dice_ET": 0.5, "dice_TC": 0.75, "dice_WT": 1.0, "hd95_ET": 3.0}).mean_dice
            0.75
        """
        found = [self.scores[name] for name in (f"dice_{region}" for region in REGIONS) if name in self.scores]
        return sum(found) / len(found) if found else math.nan


@dataclass
class Run:
    """A run's folder.

    Attributes:
        folder: the folder.
        kind: "training", "evaluation" or "inference".
        record: content of ``run.json``.
        config: content of ``config.json``; empty without this file.
        notes: what could not be found, in sentences.
    """

    folder: Path
    kind: str
    record: dict[str, Any]
    config: dict[str, Any]
    notes: list[str] = field(default_factory=list)

    @property
    def failed(self) -> dict[str, str]:
        """Reasons by the names of the cases that failed."""
        return dict(self.record.get("failed") or {})

    @property
    def channel_order(self) -> list[str]:
        """The sequences in the order of the channels of four-dimensional files."""
        return list(self.record.get("channel_order") or CHANNEL_ORDER)

    @property
    def dataset_dir(self) -> str | None:
        """Folder of the cases, or None if nothing says it."""
        # The records of older runs hold no folder. A configuration holds one unless it is an expression.
        return self.record.get("dataset_dir") or _plain_text(self.config.get("dataset_dir"))


def read_run(folder: Path) -> Run:
    """The run in ``folder``.

    Raises:
        InputError: there is no such folder, it holds no run, or a file of it cannot be read.

    Example:
        >>> read_run(Path("no_such_folder"))
        Traceback (most recent call last):
        scripts.utils.errors.InputError: no_such_folder: no such folder; give the output folder of a training, an \
evaluation or an inference.
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
    lines = _csv_lines(run.folder / SUMMARY_FILE)
    return (lines[0], lines[1:]) if lines else ([], [])


def read_cases(run: Run) -> list[Case]:
    """The cases of an evaluation, from the worst mean Dice to the best, or of an inference, by name.

    Raises:
        InputError: ``scores.csv`` or a label map cannot be read.
    """
    cases = _scored_cases(run) if run.kind == EVALUATION else _segmented_cases(run)
    _find_entries(run, cases)
    return cases


def _scored_cases(run: Run) -> list[Case]:
    path = run.folder / SCORES_FILE
    lines = _csv_lines(path)
    if not lines:
        run.notes.append(f"The file {path} is not there, so the evaluation has not ended.")
    folder = Path(_plain_text(run.config.get("label_map_dir")) or run.folder)
    cases = []
    for line in lines[1:]:
        try:
            scores = {name: float(value or math.nan) for name, value in zip(lines[0][1:], line[1:], strict=True)}
        except ValueError as error:
            raise InputError(f"{path}: {error}; evaluate again.") from error
        cases.append(Case(line[0], scores, prediction=_existing(map_files(line[0], folder)[0])))
    # A case without a Dice counts as the worst.
    return sorted(cases, key=lambda case: (-1.0 if math.isnan(case.mean_dice) else case.mean_dice, case.name))


def _segmented_cases(run: Run) -> list[Case]:
    listed = run.folder / DATALIST_FILE
    if listed.is_file():
        names = {entry["case"] for entry in read_datalist(listed, run.dataset_dir or ".", False).get("testing", [])}
    else:
        files = [path for path in run.folder.glob("*.nii.gz") if not path.name.startswith(".")]
        maps = {map_file for path in files for map_file in map_files(path.name.removesuffix(".nii.gz"), run.folder)[1:]}
        names = {path.name.removesuffix(".nii.gz") for path in files if path not in maps}
    cases = []
    for name in sorted(names - set(run.failed)):
        prediction = _existing(map_files(name, run.folder, case_folders=bool(run.config.get("case_folders")))[0])
        volumes = {} if prediction is None else region_volumes(prediction)
        cases.append(Case(name, {f"volume_{region}": v for region, v in volumes.items()}, prediction=prediction))
    return cases


def _find_entries(run: Run, cases: list[Case]) -> None:
    """Give the cases their datalist entries, from the first of the run's sources that has them."""
    for source in _sources(run):
        if all(case.entry is not None for case in cases):
            return
        try:
            found = {str(entry["case"]): entry for entry in source()}
        except InputError as error:
            run.notes.append(f"Images were not looked for there: {error}")
            continue
        for case in cases:
            case.entry = case.entry or found.get(case.name)
    if missing := sum(case.entry is None for case in cases):
        run.notes.append(f"The images of {missing} of {len(cases)} cases were not found.")


def _sources(run: Run) -> Iterator[Callable[[], list[dict[str, Any]]]]:
    root = run.dataset_dir or "."
    labeled = run.kind == EVALUATION
    # An evaluation takes the split in the folder of its training, where it writes its own folder.
    own = (run.folder.parent if labeled else run.folder) / DATALIST_FILE
    given = _plain_text(run.config.get("datalist_file"))
    for path in (own, Path(given) if given else None):
        if path is not None and path.is_file():
            yield partial(_listed_items, path, root, labeled)
    if run.dataset_dir is not None:
        et_label = run.config.get("et_label")
        known = et_label if isinstance(et_label, int) else None
        yield partial(labeled_items, root, known, incomplete=True) if labeled else partial(unlabeled_items, root)


def _listed_items(path: Path, root: str, labeled: bool) -> list[dict[str, Any]]:
    return [entry for items in read_datalist(path, root, labeled).values() for entry in items]


def _csv_lines(path: Path) -> list[list[str]]:
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [line for line in csv.reader(file) if line]


def _plain_text(value: Any) -> str | None:
    """A setting that is a text and neither an expression nor a reference; else None."""
    return value if isinstance(value, str) and not value.startswith(("$", "@")) else None


def _existing(path: Path) -> Path | None:
    return path if path.is_file() else None
