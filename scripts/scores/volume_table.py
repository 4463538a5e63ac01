# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""``volumes.csv``: a row for each case that ``panet segment`` has segmented into a folder, from its ``<case>.json``."""

import csv
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scripts.brats import REGIONS
from scripts.scores.expected_dice import expected_columns
from scripts.scores.volumetry import MEASURED_REGIONS, largest_mm
from scripts.utils.errors import printable
from scripts.utils.files import keep_earlier, remove_unfinished, save_csv
from scripts.utils.locks import lock_file, locked

logger = logging.getLogger(__name__)

TABLE_FILE = "volumes.csv"
COLUMNS = (
    "case",
    *(f"volume_{region}_ml" for region in REGIONS),
    "lesions",
    *(f"largest_diameter_{region}_mm" for region in MEASURED_REGIONS),
    "missing_sequences",
    "warnings",
    *expected_columns(None),
    "weights_sha256",
    "date",
)


def row_of(result: Mapping[str, Any]) -> dict[str, str]:
    """The row of a case, given the content of its JSON file. What is unknown or absent is empty."""
    row = {"case": printable(str(result["case"])), "lesions": str(result["lesion_count"])}
    row |= {f"volume_{region}_ml": str(ml) for region, ml in result["volumes_ml"].items()}
    for region in MEASURED_REGIONS:
        largest = largest_mm(result["lesions"], region)
        row[f"largest_diameter_{region}_mm"] = "" if largest is None else str(largest)
    row["missing_sequences"] = "; ".join(result["missing_sequences"])
    row["warnings"] = "; ".join(dict.fromkeys(warning["kind"] for warning in result["warnings"]))
    row |= expected_columns(result["expected_dice"])
    return {**row, "weights_sha256": result["weights"]["checksum"], "date": result["date"]}


def read_table(folder: Path) -> list[dict[str, str]] | None:
    """The rows of the table in ``folder``; None if there is none with these columns."""
    try:
        with (folder / TABLE_FILE).open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            return list(reader) if tuple(reader.fieldnames or ()) == COLUMNS else None
    except (FileNotFoundError, UnicodeDecodeError, csv.Error):
        return None


def add_to_table(result: Mapping[str, Any], folder: Path) -> None:
    """Put the row of a case into the table in ``folder``, in place of its earlier row. Processes may share the folder.

    Rows of cases that are no longer there are left out. A table that a user has given other columns is kept under a
    dated name.
    """
    row = row_of(result)
    with locked(lock_file(folder, "lists"), wait=True):
        remove_unfinished(folder / TABLE_FILE)
        if (rows := read_table(folder)) is None:
            rows = []
            if (kept := keep_earlier(folder / TABLE_FILE)) is not None:
                logger.warning("%s: has other columns; kept as %s", folder / TABLE_FILE, kept.name)
        if row in rows:
            return
        cases = {printable(case.name) for case in folder.iterdir() if (case / f"{case.name}.json").is_file()}
        there = [other for other in rows if other["case"] in cases - {row["case"]}]
        rows = sorted([*there, row], key=lambda one: one["case"])
        save_csv(COLUMNS, ([one[column] for column in COLUMNS] for one in rows), folder / TABLE_FILE)
