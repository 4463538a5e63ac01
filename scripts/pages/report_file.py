# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The file that the report of a run is written to."""

from __future__ import annotations

from pathlib import Path

from scripts.pages.page import make_report
from scripts.pages.runs import read_run
from scripts.utils.errors import InputError
from scripts.utils.files import keep_earlier, save_text

REPORT_FILE = "report.html"


def save_report(run_dir: Path, output: Path | None = None) -> list[str]:
    """Write the report of the run in a folder, by default into the folder. An earlier one is kept under a dated name.

    Returns:
        Lines for the user: what was not found, and the file that was written.

    Raises:
        InputError: the folder holds no run, or ``output`` is a folder.
    """
    output = output or run_dir / REPORT_FILE
    if output.is_dir():
        raise InputError(f"{output}: a folder; give --output the name of an HTML file.")
    run = read_run(run_dir)
    page = make_report(run)
    kept = keep_earlier(output)
    save_text(page, output)
    return [*run.notes, *([f"kept the earlier file as {kept.name}"] if kept else []), str(output)]
