# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""CSV tables: lists of cases, for files of any name, and BraTS's tables of names.

In a list of cases a row is a case. The columns ``t1``, ``t1ce``, ``t2`` and ``flair`` hold its images; other usual
names of the sequences are known, too. ``label`` (or ``seg``) holds the label map, ``case`` a name, ``et_label`` and
``edema_label`` what the label values mean, and ``list`` says which list the case belongs to (training, validation or
testing). ``grade`` and ``site`` describe the patient, for the folds.

The releases 2018 to 2020 come with a table ``name_mapping.csv``, which has the grade of each case, and the names that
the case had in the earlier releases.
"""

import csv
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.brats import SEQUENCES, sequence_named, site_named
from scripts.utils.errors import InputError

LISTS = ("training", "validation", "testing")
DESCRIPTIONS = ("grade", "site")
COLUMNS = {"case": "case", "label": "label", "seg": "label", "list": "list", "grade": "grade", "site": "site"}
NUMBERS = ("et_label", "edema_label")
NAME_TABLES = "name_mapping*.csv"
# BraTS_2018_subject_ID, for instance.
_NAME_COLUMN = re.compile(r"brats.*id", re.IGNORECASE)
_NOT_KNOWN = ("", "na", "n/a", "nan")


def read_table(path: str | Path) -> dict[str, Any]:
    """The content of a CSV table in the form of a datalist's JSON: ``sequences``, and the lists by name.

    The separator is a comma, a semicolon or a tab. Without the column ``list``, rows are in ``training`` if they have a
    label map, else in ``testing``. An entry's ``image`` holds four files in the network's order, with None for an empty
    cell.

    Raises:
        InputError: the table cannot be read, or something in it is missing, unknown or doubled.
    """
    rows = _rows(path, "give an existing --datalist_file")
    names = [_column(name.strip(), path) for name in rows[0]] if rows else []
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{path}: two columns are '{name}'; keep one of them.")
    if missing := [name for name in SEQUENCES if name not in names]:
        raise InputError(f"{path}: no column {', '.join(missing)}; name a column for each of {', '.join(SEQUENCES)}.")
    content: dict[str, Any] = {"sequences": list(SEQUENCES)}
    for number, row in enumerate(rows[1:], 2):
        if any(cell.strip() for cell in row):
            where = f"{path}, row {number}"
            if len(row) > len(names):
                raise InputError(f"{where}: {len(row)} cells under {len(names)} columns; quote cells with a separator.")
            entry, chosen = _entry(dict(zip(names, map(str.strip, row), strict=False)), where)
            content.setdefault(chosen, []).append(entry)
    if len(content) == 1:
        raise InputError(f"{path}: no case; a row is a case, with the columns {', '.join(SEQUENCES)}.")
    return content


def _rows(path: str | Path, remedy: str) -> list[list[str]]:
    try:
        # Excel writes a mark before the first column, and utf-8-sig leaves it out.
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); {remedy}.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 ({error.reason}); save the table as CSV in UTF-8.") from error
    first, _, rest = text.partition("\n")
    if stated := re.fullmatch(r"sep=(.)\s*", first, re.IGNORECASE):  # for Excel
        separator, text = stated[1], rest
    else:
        separator = max(",;\t", key=first.count)
    try:
        # A quoted cell may hold a line break.
        return list(csv.reader(io.StringIO(text, newline=""), delimiter=separator))
    except csv.Error as error:
        raise InputError(f"{path}: not a CSV table ({error}); save it as CSV again.") from error


@dataclass(frozen=True)
class Described:
    """What a table says of a case, HGG or LGG and where the images come from. An empty text says nothing."""

    grade: str
    site: str
    source: str


def read_name_table(path: str | Path) -> dict[str, Described]:
    """The grade and the site of each case in a table of names, by each of the case's names.

    The column of the grade is ``Grade``. The names are in ``BraTS_2017_subject_ID`` and so on, the latest one last. Of
    the names that tell the site, the latest one counts, because BraTS 2017 has coarser sites. A faulty table is an
    InputError, and so is a case of two grades.
    """
    header, *rows = _rows(path, "make it readable, or move it out of --dataset_dir") or [[]]
    named = [number for number, name in enumerate(header) if _NAME_COLUMN.fullmatch(name.strip())]
    graded = [number for number, name in enumerate(header) if name.strip().lower() == "grade"]
    if not named:
        raise InputError(f"{path}: no column of names, such as BraTS_2020_subject_ID; copy it again, or move it away.")
    found: dict[str, Described] = {}
    for row in rows:
        cells = ["" if cell.strip().lower() in _NOT_KNOWN else cell.strip() for cell in row]
        names = [cells[number] for number in named if number < len(cells) and cells[number]]
        grade = next((cells[number] for number in graded if number < len(cells)), "")
        site = next((site for name in reversed(names) if (site := site_named(name))), "")
        for name in names:
            described = Described(grade, site, str(path))
            check_grades(name, found.setdefault(name, described), described)
    return found


def check_grades(case: str, first: Described, second: Described) -> None:
    """Refuse two different grades of one case. The InputError names both sources."""
    if first.grade and second.grade and first.grade.lower() != second.grade.lower():
        raise InputError(
            f"{second.source}: {case} is {second.grade} here, but {first.grade} by {first.source}; correct one of them."
        )


def _column(name: str, path: str | Path) -> str:
    known = sequence_named(name) or COLUMNS.get(name.lower()) or (name.lower() if name.lower() in NUMBERS else None)
    if known is None:
        possible = ", ".join((*SEQUENCES, *COLUMNS, *NUMBERS))
        raise InputError(f"{path}: unknown column '{name}'; columns are {possible}. Leave other columns out.")
    return known


def _entry(row: dict[str, str], where: str) -> tuple[dict[str, Any], str]:
    if not any(row.get(name) for name in SEQUENCES):
        raise InputError(f"{where}: no image; fill in the cells of {', '.join(SEQUENCES)}, or remove the row.")
    entry: dict[str, Any] = {key: row[key] for key in ("case", "label", *DESCRIPTIONS) if row.get(key)}
    entry["image"] = [row.get(name) or None for name in SEQUENCES]
    for key in NUMBERS:
        if value := row.get(key):
            if not value.isdecimal():
                raise InputError(f"{where}: {key} is '{value}', which is no whole number.")
            entry[key] = int(value)
    chosen = row.get("list", "") or ("training" if "label" in entry else "testing")
    if chosen not in LISTS:
        raise InputError(f"{where}: list is '{chosen}'; it is one of {', '.join(LISTS)}.")
    return entry, chosen
