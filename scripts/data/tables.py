# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Lists of cases as CSV tables, for files of any name.

A row is a case. The columns ``t1``, ``t1ce``, ``t2`` and ``flair`` hold its images; other usual names of the sequences
are known, too. ``label`` (or ``seg``) holds the label map, ``case`` a name, ``et_label`` and ``edema_label`` what the
label values mean, and ``list`` says which list the case belongs to (training, validation or testing).
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from scripts.brats import SEQUENCES, sequence_named
from scripts.errors import InputError

LISTS = ("training", "validation", "testing")
COLUMNS = {"case": "case", "label": "label", "seg": "label", "list": "list"}
NUMBERS = ("et_label", "edema_label")


def read_table(path: str | Path) -> dict[str, Any]:
    """The content of a CSV table in the form of a datalist's JSON.

    The separator is a comma, a semicolon or a tab. Without the column ``list``, all rows are in ``training`` if they
    have a label map, else in ``testing``.

    Args:
        path: the table, in UTF-8.

    Returns:
        ``sequences``, and the lists by name. An entry's ``image`` holds four files in the network's order, with None
        for an empty cell.

    Raises:
        InputError: the table cannot be read, a column is unknown, doubled or missing, or a row has no image or holds
            an unknown value. The message names the file and the row.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "cases.csv")
        ...     _ = path.write_text("case;FLAIR;T1;T1Gd;T2\\nann;a.nii;b.nii;c.nii;d.nii\\n")
        ...     read_table(path)["testing"]
        [{'case': 'ann', 'image': ['b.nii', 'd.nii', 'c.nii', 'a.nii']}]
    """
    try:
        # Excel writes a mark before the first column, and utf-8-sig leaves it out.
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give an existing --datalist_file.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 ({error.reason}); save the table as CSV in UTF-8.") from error
    separator = max(",;\t", key=lines[0].count) if lines else ","
    rows = list(csv.reader(lines, delimiter=separator))
    names = [_column(name.strip(), path) for name in rows[0]] if rows else []
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{path}: two columns are '{name}'; keep one of them.")
    if missing := [name for name in SEQUENCES if name not in names]:
        raise InputError(f"{path}: no column {', '.join(missing)}; name a column for each of {', '.join(SEQUENCES)}.")
    content: dict[str, Any] = {"sequences": list(SEQUENCES)}
    for number, row in enumerate(rows[1:], 2):
        if any(cell.strip() for cell in row):
            if len(row) > len(names):
                raise InputError(
                    f"{path}, row {number}: {len(row)} cells under {len(names)} columns; put a cell with a separator "
                    "into quotes."
                )
            entry, chosen = _entry(dict(zip(names, map(str.strip, row), strict=False)), f"{path}, row {number}")
            content.setdefault(chosen, []).append(entry)
    if len(content) == 1:
        raise InputError(f"{path}: no case; a row is a case, with the columns {', '.join(SEQUENCES)}.")
    return content


def _column(name: str, path: str | Path) -> str:
    known = sequence_named(name) or COLUMNS.get(name.lower()) or (name.lower() if name.lower() in NUMBERS else None)
    if known is None:
        possible = ", ".join((*SEQUENCES, *COLUMNS, *NUMBERS))
        raise InputError(f"{path}: unknown column '{name}'; columns are {possible}. Leave other columns out.")
    return known


def _entry(row: dict[str, str], where: str) -> tuple[dict[str, Any], str]:
    if not any(row.get(name) for name in SEQUENCES):
        raise InputError(f"{where}: no image; fill in the cells of {', '.join(SEQUENCES)}, or remove the row.")
    entry: dict[str, Any] = {key: row[key] for key in ("case", "label") if row.get(key)}
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
