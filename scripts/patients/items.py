# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The cases that a user names, as entries for the run."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.brats import SEQUENCES
from scripts.data.cases import NO_FILE, image_files
from scripts.data.datalist import unlabeled_items
from scripts.data.datalist_file import LONGEST_NAME, is_plain_name, misnamed
from scripts.data.dicom import series_file
from scripts.data.inspection import check_folder, nothing_found, refuse_errors
from scripts.utils.errors import InputError
from scripts.workflow.output import earlier_cases, same_images

logger = logging.getLogger(__name__)


def given_case(files: Mapping[str, Path], name: str | None) -> dict[str, Any]:
    """The entry of a case whose files have any name. A folder of one DICOM series counts as its first file.

    Raises:
        InputError: the case's name is no plain name, or a file's name says another sequence.

    Example:
        >>> given_case({"flair": Path("a.nii"), "t1": Path("b.nii"), "t1ce": Path("c.nii")}, "ann")
        {'case': 'ann', 'image': ['b.nii', 'missing', 'c.nii', 'a.nii']}
    """
    if name is not None and not is_plain_name(name):
        raise InputError(f"--name {name}: results are named after it; use at most {LONGEST_NAME} bytes and no slash.")
    image = [series_file(files[s]) if s in files else NO_FILE for s in SEQUENCES]
    # A datalist with such names is refused, too, and the run writes one.
    for file, sequence, other in misnamed(image, SEQUENCES):
        raise InputError(f"--{sequence} {file}: its name says {other}; correct the option, or rename the file.")
    return {"case": name or "case", "image": image}


def find_items(cases: Sequence[Path], may_lack: int) -> list[dict[str, Any]]:
    """The entries of all cases in ``cases``. A case that ``cases`` name several times is taken once.

    The run checks the entries, but it cannot tell what was left out of the folders. So they are checked here.

    Raises:
        InputError: there is no case, or a case has a missing or doubled file.
    """
    items: list[dict[str, Any]] = []
    for path in cases:
        found = unlabeled_items(path)
        findings = check_folder(path, may_lack)
        refuse_errors(findings, path)
        for finding in findings:
            logger.warning("%s", finding.message)
        if not found:
            raise InputError(nothing_found(path, "cases"))
        for item in found:
            if any(item["case"] == other["case"] and same_images(item, other) for other in items):
                logger.warning("%s: %s was named before; it is segmented once.", path, item["case"])
            else:
                items.append(item)
    return items


def with_absolute_paths(item: Mapping[str, Any]) -> dict[str, Any]:
    """The entry of a case with absolute paths without "..", for later calls and readers in other folders."""

    def absolute(file: str) -> str:
        path = Path(file)
        # A path such as link/../ann leads elsewhere than ann if the link leads to another folder.
        return str(path.resolve() if ".." in path.parts else path.absolute())

    image = item["image"]
    if isinstance(image, str):
        return {**item, "image": absolute(image)}
    return {**item, "image": [file if file == NO_FILE else absolute(file) for file in image]}


def refuse_other_images(items: Sequence[Mapping[str, Any]], output_dir: Path) -> None:
    """Check that no earlier call has given ``output_dir`` a case of the same name with other images."""
    earlier = earlier_cases(str(output_dir), ".")
    for item in items:
        other = earlier.get(item["case"])
        if other is not None and not same_images(item, other):
            raise InputError(
                f"{output_dir}: holds a case {item['case']} of other images ({image_files(other['image'])[0]}); choose "
                "another --output_dir, or add --overwrite (the earlier folder is then kept under a dated name)."
            )
