# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""What a picture says of a result: how it was made, what to expect of it, and what may be wrong."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai.utils import ensure_tuple
from scripts.data.findings import warned_of
from scripts.scores.expected_dice import in_words
from scripts.utils.files import read_json
from scripts.utils.run_json import RUN_FILE, read_run_json

FOR_RESEARCH = "for research only, not for diagnosis"
WHOLE_BRAIN = "whole_brain.yaml"  # the configuration of panet segment --fast


@dataclass(frozen=True)
class Captions:
    """Lines beside a patient's name.

    Attributes:
        notes: what belongs to the title, such as warnings.
        expected: the expected Dice; empty without a prediction.
        source: weights and date; empty without a prediction.
    """

    notes: tuple[str, ...] = ()
    expected: str = ""
    source: str = ""


NO_CAPTIONS = Captions()


def captions_of(record: Mapping[str, Any], run: Mapping[str, Any], case: str) -> Captions:
    """The captions of a result, by its case's JSON file and the run's ``run.json``. Either may be empty.

    Example:
        >>> run = {"model_file": "models/starter/model.pt", "weights": ["58b9dde78f71"], "started": "2026-11-30T03:34"}
        >>> captions_of({}, run, "ann")
        Captions(notes=(), expected='expected Dice unknown', source='weights starter/model.pt (58b9dde7); 2026-11-30')
    """
    notes = ["weights trained on phantoms"] if run.get("phantom_weights") else []
    if WHOLE_BRAIN in record.get("parameters", {}).get("configurations", []):
        notes.append("fast")
    notes += warned_of(record.get("warnings") or run.get("warnings", {}).get(case, []))
    files, checksums = (ensure_tuple(run.get(key) or ()) for key in ("model_file", "weights"))
    if len(files) == len(checksums) and files:
        named = [f"{'/'.join(Path(file).parts[-2:])} ({sum_[:8]})" for file, sum_ in zip(files, checksums, strict=True)]
        weights = f"weights {', '.join(named)}"
    else:
        weights = "weights unknown"
    date = str(record.get("date") or run.get("started") or "")[: len("2026-11-30")] or "date unknown"
    return Captions(tuple(notes), in_words(record.get("expected_dice")), f"{weights}; {date}")


def captions_beside(label_map: Path) -> Captions:
    """The captions of a label map, by what lies beside it or, of ``panet segment``, in the folder above."""
    case, folder = label_map.name.removesuffix(".nii.gz"), label_map.parent
    record = read_json(folder / f"{case}.json")
    if folder.name == case and not (folder / RUN_FILE).is_file():
        folder = folder.parent
    return captions_of(record, read_run_json(folder), case)
