# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Scans as the scanner made them: their cases, and the preparation of each."""

import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.brats import REFERENCE, SEQUENCES
from scripts.data.cases import NO_FILE, image_files
from scripts.data.findings import Finding
from scripts.data.inspection import check_found, refuse
from scripts.patients.items import cases_in, given_case, only
from scripts.patients.options import PREPARED_GRID, Options
from scripts.preparation.folder import RECORD, image_file, refuse_used, save_prepared
from scripts.preparation.native import RECORD_KEY
from scripts.preparation.preparing import prepare_scans
from scripts.preparation.scans import PREPARED, kind_of, read_scans
from scripts.utils.errors import InputError, WriteError
from scripts.utils.files import read_json
from scripts.utils.run_json import bundle_version

logger = logging.getLogger(__name__)

# The folder of what a preparation leaves, in the folder of a case's results.
PREPARED_FOLDER = "prepared"


def raw_items(
    cases: Sequence[Path], files: Mapping[str, Path | str] | None = None, name: str | None = None
) -> list[dict[str, Any]]:
    """The entries of cases whose scans are to be prepared. A sequence other than T1ce may be missing.

    The arguments are those of ``segment``.

    Raises:
        InputError: there is no case, or a case has a doubled file or no T1ce.
    """
    items: list[dict[str, Any]] = []
    if files is not None and not cases:
        items.append(given_case({sequence: Path(file) for sequence, file in files.items()}, name))
    for path, there in cases_in(cases, {sequence: str(wanted) for sequence, wanted in (files or {}).items()}):
        findings = check_found(there, may_lack=len(SEQUENCES) - 1)
        refuse(findings, path)
        for finding in findings:
            logger.warning("%s", finding.message)
        items += [{"case": case.name, "image": case.image} for case in there]
    if cases and name is not None:
        items = [only(items, name)]
    for item in items:
        if isinstance(item["image"], str):
            raise InputError(f"{item['image']}: a file of four sequences has one grid; give a file for each sequence.")
        if item["image"][SEQUENCES.index(REFERENCE)] == NO_FILE:
            first = image_files(item["image"])[0] if image_files(item["image"]) else item["case"]
            raise InputError(f"{first}: {item['case']} has no T1ce, to which the others are registered; add it.")
    return items


def scans_of(item: Mapping[str, Any]) -> dict[str, str]:
    """The files of a case's scans by sequence."""
    return {name: file for name, file in zip(SEQUENCES, item["image"], strict=True) if file != NO_FILE}


def prepare_case(item: Mapping[str, Any], folder: Path, accept: Collection[str] = (), overwrite: bool = False) -> Path:
    """Prepare the scans of a case into ``folder`` (``save_prepared``), and return it."""
    refuse_used(folder, overwrite)
    logger.info("%s: preparing", item["case"])
    return save_prepared(prepare_scans(item["case"], read_scans(scans_of(item)), accept), folder, overwrite)


def prepared_items(
    items: Sequence[Mapping[str, Any]], output_dir: Path, options: Options
) -> tuple[list[dict[str, Any]], list[Finding], dict[str, InputError]]:
    """Prepare the scans of cases into ``output_dir/<case>/prepared``. What was prepared there before is taken again.

    Returns:
        The entries of the prepared sequences, which name the record of their preparation; its warnings; and the errors
        of cases that could not be prepared, by case. A case that came prepared stays as it is.
    """
    found: list[dict[str, Any]] = []
    warnings: list[Finding] = []
    failed: dict[str, InputError] = {}
    for item in items:
        case = item["case"]
        try:
            prepared = _prepared_item(item, output_dir / case / PREPARED_FOLDER, options)
        except WriteError:
            raise
        except InputError as error:
            failed[case] = error
            if len(items) > 1:
                logger.error("%s", error)
            continue
        found.append(prepared)
        told = read_json(prepared[RECORD_KEY])["warnings"] if RECORD_KEY in prepared else []
        warnings += [Finding(one["kind"], case, one["text"]) for one in told]
    return found, warnings, failed


def _prepared_item(item: Mapping[str, Any], folder: Path, options: Options) -> dict[str, Any]:
    case, scans = item["case"], read_scans(scans_of(item))
    if options.native != PREPARED_GRID and options.native not in scans:
        raise InputError(f"--native {options.native}: {case} has no such sequence; choose another.")
    if kind_of(scans) == PREPARED:
        logger.info("%s: prepared already; segmented as it is", case)
        return dict(item)
    record = read_json(folder / RECORD)
    checksums = {name: scan["sha256"] for name, scan in record.get("scans", {}).items()}
    same = checksums == {name: scan.sha256 for name, scan in scans.items()}
    unaccepted = set(record.get("accepted", [])) - set(options.accept)
    if not same or unaccepted or record["bundle_version"] != bundle_version():
        logger.info("%s: preparing", case)
        save_prepared(prepare_scans(case, scans, options.accept), folder, overwrite=True)
    image = [str(image_file(folder, case, name)) if name in scans else NO_FILE for name in SEQUENCES]
    return {"case": case, "image": image, RECORD_KEY: str(folder / RECORD)}
