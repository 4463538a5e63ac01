# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The cases that a user names, as entries for the run."""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from scripts.brats import SEQUENCES
from scripts.data.cases import NO_FILE, Case, find_cases, image_files
from scripts.data.datalist_file import LONGEST_NAME, is_plain_name, misnamed
from scripts.data.dicom import series_file
from scripts.data.findings import Finding, refused_kinds
from scripts.data.images import read_header
from scripts.data.inspection import check_found, examine, nothing_found, refuse
from scripts.patients.file_names import folder_of, named_case, with_any_names
from scripts.utils.errors import InputError
from scripts.workflow.output import earlier_cases, same_images

logger = logging.getLogger(__name__)

NAMES_TELL = (
    "Files of other names are found by words such as T1, T1 post GD, T2 and FLAIR; --t1, --t1ce, --t2 and --flair name "
    "any file."
)


def given_case(files: Mapping[str, Path], name: str | None) -> dict[str, Any]:
    """The entry of a case whose files have any name. A folder of one DICOM series counts as its first file.

    Raises:
        InputError: the case's name is no plain name, or a file's name says another sequence.

    Example:
        >>> given_case({"flair": Path("a.nii"), "t1": Path("b.nii"), "t1ce": Path("c.nii")}, "ann")
        {'case': 'ann', 'image': ['b.nii', 'missing', 'c.nii', 'a.nii']}
        >>> given_case({"t1": Path("/patients/ann/b.nii")}, None)["case"]
        'ann'
    """
    image = [series_file(files[s]) if s in files else NO_FILE for s in SEQUENCES]
    # A datalist with such names is refused, too, and the run writes one.
    for file, sequence, other in misnamed(image, SEQUENCES):
        raise InputError(f"--{sequence} {file}: its name says {other}; correct the option, or rename the file.")
    return named({"case": folder_of([Path(file) for file in image_files(image)]).name or "case", "image": image}, name)


def named(item: Mapping[str, Any], name: str | None) -> dict[str, Any]:
    """The entry of a case under the name that a user gives it, if any."""
    if name is not None and not is_plain_name(name):
        raise InputError(f"--name {name}: results are named after it; use at most {LONGEST_NAME} bytes and no slash.")
    return {**item, "case": name or item["case"]}


def cases_in(paths: Sequence[Path], given: Mapping[str, str] | None = None) -> list[tuple[Path, list[Case]]]:
    """The cases in each of these folders and files. Several files of single sequences are one case.

    ``given`` are numbers or folders of series of a DICOM study, by sequence.

    Raises:
        InputError: there is no case in a folder, or the names of files do not decide which sequences they are.
    """
    if len(paths) > 1 and all(path.is_file() and len(read_header(path).shape) == 3 for path in paths):
        if (case := named_case(paths)) is None:
            raise InputError(f"{paths[0]}: no name of a file tells its sequence; give --t1, --t1ce, --t2 and --flair.")
        return [(case.folder, [case])]
    found = [(path, with_any_names(find_cases(path, given), path)) for path in paths]
    for path, cases in found:
        if not cases:
            told = f" {NAMES_TELL}" if path.is_dir() else ""
            raise InputError(f"{nothing_found(path, 'cases')}{told}")
    return found


def find_items(
    cases: Sequence[Path],
    may_lack: int,
    accept: Collection[str] = (),
    given: Mapping[str, str] | None = None,
    name: str | None = None,
) -> tuple[list[dict[str, Any]], list[Finding]]:
    """The entries of all cases in ``cases``, and what is doubtful about their files.

    The run checks the entries, but it cannot tell what was left out of the folders. So they are checked here. A case
    that ``cases`` name several times is taken once.

    Args:
        cases: folders of cases, of one case, or four-dimensional files.
        may_lack: how many sequences a case may lack.
        accept: kinds of doubts that do not stop a case.
        given: numbers or folders of series of a DICOM study, by sequence.
        name: name of the one case.

    Raises:
        InputError: there is no case, or several and a ``name``, or a case has a missing or doubled file.
    """
    items: list[dict[str, Any]] = []
    findings: list[Finding] = []
    for path, there in cases_in(cases, given):
        found = [{"case": case.name, "image": case.image} for case in there if image_files(case.image)]
        told = check_found(there, may_lack)
        if any(finding.is_error for finding in told):
            refused = refused_kinds(accept)
            # The user learns of all that is wrong at once.
            others = examine(found, None, may_lack=may_lack, headers_only=True, refused=refused)[0] if found else []
            lacking = {finding.case for finding in told if finding.kind == "missing sequence"}
            told += [one for one in others if one.kind != "missing sequence" or one.case not in lacking]
            refuse(told, path, refused)
        for finding in told:
            logger.warning("%s", finding.message)
        findings += told
        if not found:
            raise InputError(nothing_found(path, "cases"))
        for item in found:
            if any(item["case"] == other["case"] and same_images(item, other) for other in items):
                logger.warning("%s: %s was named before; it is segmented once.", path, item["case"])
            else:
                items.append(item)
    if name is not None:
        items = [only(items, name)]
        findings = [replace(finding, case=name) for finding in findings]
    return items, findings


def only(items: Sequence[Mapping[str, Any]], name: str) -> dict[str, Any]:
    """The one entry under this name; several are an InputError."""
    if len(items) > 1:
        raise InputError(f"--name {name}: there are {len(items)} cases; give one, or leave --name out.")
    return named(items[0], name)


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
