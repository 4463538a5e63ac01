# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The table of all patients has a row for each case, whoever writes it and in whatever order."""

import csv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from scripts.scores.volume_table import COLUMNS, TABLE_FILE, add_to_table, read_table


def result(folder: Path, case: str, volume: float = 31.0, **changes: Any) -> dict[str, Any]:
    """The content of a case's JSON file, which is there."""
    (folder / case).mkdir(parents=True, exist_ok=True)
    (folder / case / f"{case}.json").write_text("{}")
    lesion = {"diameters": {"ET": None, "WT": {"largest_mm": 43.5}}}
    other = {"diameters": {"ET": {"largest_mm": 9.1}, "WT": {"largest_mm": 12.0}}}
    return {
        "case": case,
        "volumes_ml": {"ET": 0.004, "TC": 8.9, "WT": volume},
        "lesion_count": 2,
        "lesions": [lesion, other],
        "missing_sequences": ["t1", "flair"],
        "warnings": [{"kind": "odd name", "text": "a, b"}, {"kind": "odd name", "text": "c"}],
        "expected_dice": None,
        "weights": {"checksum": "ab"},
        "date": "2026-01-02T03:04:05+00:00",
        **changes,
    }


def test_a_row_has_the_numbers_of_the_record(tmp_path):
    told = {region: {"dice": 0.8125, "low": 0.5, "high": 1.0} for region in ("ET", "TC", "WT")}
    add_to_table(result(tmp_path, "p,1", expected_dice=told), tmp_path)
    (row,) = csv.DictReader((tmp_path / TABLE_FILE).open(encoding="utf-8"))
    assert tuple(row) == COLUMNS
    assert {name: row[name] for name in COLUMNS if not name.startswith("expected")} == {
        "case": "p,1",
        "volume_ET_ml": "0.004",
        "volume_TC_ml": "8.9",
        "volume_WT_ml": "31.0",
        "lesions": "2",
        "largest_diameter_ET_mm": "9.1",
        "largest_diameter_WT_mm": "43.5",
        "missing_sequences": "t1; flair",
        "warnings": "odd name",
        "weights_sha256": "ab",
        "date": "2026-01-02T03:04:05+00:00",
    }
    assert (row["expected_dice_ET"], row["expected_dice_low_TC"], row["expected_dice_high_WT"]) == (
        "0.812",
        "0.500",
        "1.000",
    )


def test_a_case_is_replaced_and_one_that_is_gone_is_left_out(tmp_path):
    for case in ("b", "a", "c"):
        add_to_table(result(tmp_path, case), tmp_path)
    (tmp_path / "c" / "c.json").unlink()
    add_to_table(result(tmp_path, "b", volume=2.5), tmp_path)
    assert [(row["case"], row["volume_WT_ml"]) for row in read_table(tmp_path)] == [("a", "31.0"), ("b", "2.5")]
    before = (tmp_path / TABLE_FILE).stat().st_mtime_ns
    add_to_table(result(tmp_path, "b", volume=2.5), tmp_path)
    assert (tmp_path / TABLE_FILE).stat().st_mtime_ns == before


def test_a_name_that_the_table_escapes_keeps_its_row(tmp_path):
    for case in ("a\n1", "b"):
        add_to_table(result(tmp_path, case), tmp_path)
    assert [row["case"] for row in read_table(tmp_path)] == ["a\\n1", "b"]


def test_writers_at_the_same_time_lose_no_row(tmp_path):
    results = [result(tmp_path, f"p{number:02}") for number in range(12)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda one: add_to_table(one, tmp_path), results))
    assert [row["case"] for row in read_table(tmp_path)] == [one["case"] for one in results]


def test_a_table_that_a_user_has_changed_is_kept(tmp_path):
    for content in (b"case;volume\np;1,5\n", b"caf\xe9,volume\n"):
        (tmp_path / TABLE_FILE).write_bytes(content)
        add_to_table(result(tmp_path, "a"), tmp_path)
        assert [row["case"] for row in read_table(tmp_path)] == ["a"]
        (kept,) = tmp_path.glob("volumes_*.csv")
        assert kept.read_bytes() == content
        kept.unlink()
