# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Checks of the data before long work starts.

A fault that is found here costs seconds instead of hours. The ``run`` list of a workflow calls ``check_cases`` before
its engine, and ``panet check`` reports the same findings. An inference checks the headers of all cases before, and the
voxels of each case when it reads them.
"""

import hashlib
import itertools
import json
import logging
import re
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from rich.console import Console
from rich.progress import track
from scripts.brats import (
    CHANNEL_ORDER,
    ET_LABELS,
    OTHER_TUMORS,
    SEQUENCES,
    check_label_values,
    other_tumor,
    released_file,
    sequence_named,
)
from scripts.data.cases import LOOKED_FOR, NO_FILE, Case, find_cases, image_files, missing_sequences
from scripts.data.dicom import check_patient
from scripts.data.dicom_choice import Choice
from scripts.data.findings import ACCEPTABLE, ERRORS, KINDS, Finding, Findings, refused_kinds, warnings_by_case
from scripts.data.images import check_dimensions, is_phantom, read_file, read_header, read_image, voxels_of
from scripts.data.placement import DOUBTS, check_grid, shown
from scripts.data.plausibility import doubt_images, doubt_label
from scripts.data.splits import by_patient, patient_of
from scripts.utils.errors import InputError
from scripts.utils.files import refuse_pointer
from scripts.utils.machine import available_memory, container_memory, processors

logger = logging.getLogger(__name__)

PREPARATION_PAGE = "docs/get_started.md"
# The BraTS preprocessing resamples to this spacing. A network that was trained on it knows no other scale.
EXPECTED_SPACING_MM = 1.0

# Reading a case takes at most this many bytes: four float32 sequences on the BraTS grid, one of them unpacked and as an
# array, and masks.
MEMORY_PER_CASE = 700e6


@dataclass(frozen=True)
class CheckedCase:
    """What the check of one case found. ``file`` is its first image, and ``et_values`` are those in its label map.

    ``checksum`` is that of the voxels of the first image, and empty if they were not read.
    """

    case: str
    file: str
    phantom: bool
    findings: list[Finding]
    et_values: frozenset[int]
    checksum: str


def check_case(
    item: Mapping[str, Any],
    channel_order: Sequence[str] = CHANNEL_ORDER,
    read: Callable[[str], nib.Nifti1Image] = read_file,
    headers_only: bool = False,
) -> CheckedCase:
    """Read each file of an entry once and completely, and check it; with ``headers_only``, say nothing of voxels.

    All files must have one grid, no sequence may be empty, and the label map may hold only the values of its release.
    ``scripts.data.plausibility`` adds doubts about images that are sound in themselves. ``read`` may remember the files
    (``functools.cache``), for others.
    """
    found = Findings(str(item["case"]))
    image, four_dimensional = item["image"], isinstance(item["image"], str | Path)
    paths = [str(image)] if four_dimensional else [str(path) for path in image]
    # A list may name one file for two sequences, which is then found to be the same image twice.
    given = [(sequence, path) for sequence, path in zip(SEQUENCES, paths, strict=False) if path != NO_FILE]
    with found.collecting():
        check_patient([path for _, path in given])
    first: tuple[str, nib.Nifti1Image] | None = None
    checksum = ""
    images: dict[str, np.ndarray] = {}
    files: dict[str, str] = {}
    for sequence, path in given:
        with found.collecting():
            opened = read(path)
            check_dimensions(path, opened, len(SEQUENCES) if four_dimensional else 0)
            if first is None:
                first = path, opened
                spacing = nib.affines.voxel_sizes(opened.affine)
                if not np.allclose(spacing, EXPECTED_SPACING_MM, atol=0.05):
                    found.add(
                        "other voxel size",
                        f"{path}: voxels of {shown(spacing)} mm; the network expects BraTS "
                        "preprocessing (1 mm, skull-stripped).",
                    )
            check_grid(path, opened, *first)
            if headers_only:
                continue
            for doubt in opened.extra.get(DOUBTS, []):
                found.add(*doubt)
            voxels = voxels_of(opened, path)
            if opened is first[1]:
                # In NIfTI files the first axis runs fastest, so this order needs no copy voxel by voxel.
                checksum = hashlib.sha256(voxels.tobytes(order="F")).hexdigest()
            check_image(path, voxels)
            if four_dimensional:
                images = {name: voxels[..., number] for number, name in enumerate(channel_order)}
                files = {name: f"{path}, channel {number}" for number, name in enumerate(channel_order)}
            else:
                images[sequence], files[sequence] = voxels, path
    et_values: set[int] = set()
    brain = doubt_images(found, images, files, first[1]) if first is not None and images else None
    if "label" in item and not headers_only:
        path, et = str(item["label"]), int(item["et_label"])
        with found.collecting():
            label = read_image(path)
            for doubt in label.extra.get(DOUBTS, []):
                found.add(*doubt)
            voxels = voxels_of(label, path)
            # Few voxels are not 0, and only those need sorting.
            values = np.unique(voxels[voxels != 0])
            et_values = {value for value in ET_LABELS if value in values}
            if first is not None and not check_grid(path, label, *first, label=True):
                found.add(
                    "other origin of a label map",
                    f"{path}: its origin differs from the images' origin, but its shape and axes are equal; it is "
                    "matched to the images voxel by voxel.",
                )
            check_label_values(values, et, path, int(item.get("label_release", 0)))
            if brain is not None:
                doubt_label(found, images, files, brain, voxels, path, et)
    phantom = first is not None and is_phantom(first[1])
    return CheckedCase(found.case, given[0][1], phantom, found.list, frozenset(et_values), checksum)


def check_image(path: str, voxels: np.ndarray) -> None:
    """Refuse a file if a sequence in it is 0 everywhere or has one other value only, or if a voxel is not finite.

    The voxels are those of one sequence, (*size), or of several, (*size, channel).
    """
    channels = np.moveaxis(voxels, -1, 0) if voxels.ndim == 4 else voxels[None]
    # In the order of the memory, a voxel takes a fraction of the time.
    flat = [channel.ravel(order="K") for channel in channels]
    insides = [channel[channel != 0] for channel in flat]
    for number, inside in sorted(enumerate(insides), key=lambda pair: len(pair[1])):
        where = f"channel {number} is " if voxels.ndim == 4 else ""
        fault, kind = "", ""
        if not inside.size:
            fault, kind = f"{where}empty, every voxel is 0", "empty image"
        elif not np.isfinite(inside).all():
            fault, kind = "holds voxels that are no finite numbers", "no finite numbers"
        elif inside.size > 1 and inside.min() == inside.max():
            fault, kind = f"{where}constant, every voxel that is not 0 is {inside[0]:g}", "constant image"
        if fault:
            raise InputError(f"{path}: {fault}; export the sequence again.", kind)


def check_channel_order(item: Mapping[str, Any], channel_order: Sequence[str]) -> None:
    """Refuse an entry's four-dimensional file if its dataset states another order of channels, or other channels.

    The Medical Segmentation Decathlon states the order as ``modality`` in the file ``dataset.json`` beside
    ``imagesTr``. Without such a file ``channel_order`` alone decides.
    """
    stated = Path(image_files(item["image"])[0]).parent.parent / "dataset.json"
    if not isinstance(item["image"], str | Path) or not stated.is_file():
        return
    try:
        modality = json.loads(stated.read_text(encoding="utf-8"))["modality"]
        order = [str(modality[str(number)]) for number in range(len(modality))]
    except (OSError, ValueError, KeyError, TypeError):
        return
    known = [str(sequence_named(name)) for name in order]
    if known == list(channel_order):
        return
    setting = ", ".join(channel_order)
    if sorted(known) == sorted(SEQUENCES):
        fault = f'but --channel_order says {setting}; set --channel_order "{known}".'
    else:
        fault = (
            f"and not each of {', '.join(SEQUENCES)} once; write these names there, or, if --channel_order "
            f"({setting}) is right, move that file away."
        )
    raise InputError(f"{stated}: the channels are {', '.join(order)}, {fault}", "contradicting order of channels")


def check_found(cases: Iterable[Case], may_lack: int = 0) -> list[Finding]:
    """What is wrong with the files of cases that were found in a folder, by their names.

    ``may_lack`` says how many sequences a case may lack, by the record of the weights.
    """
    findings: list[Finding] = []
    for case in cases:
        found = Findings(case.name)
        if len(case.missing) > may_lack:
            series = f"found {case.choice}; name it in a --datalist_file, " if case.choice else ""
            found.add(
                "missing sequence",
                f"{case.folder}: incomplete, there is no {' and no '.join(case.missing)}; {series}{_bearable(may_lack)}"
                "add it, or move the folder away.",
            )
        if case.choice and (case.choice.doubt or not found.list):
            _tell_choice(found, case.folder, case.choice)
        if case.doubled:
            found.add(
                "doubled file", f"{case.doubled[0]}: {case.name} has this image twice; keep one of the two files."
            )
        findings += found.list
    return findings


def check_files(
    items: Sequence[Mapping[str, Any]],
    dataset_dir: str | Path | None,
    datalist_file: str | Path | None = None,
    channel_order: Sequence[str] = CHANNEL_ORDER,
    may_lack: int = 0,
) -> list[Finding]:
    """What is wrong with the files of a cohort before any image is read. The arguments are those of ``check_cases``."""
    searched = dataset_dir is not None and datalist_file is None
    findings = check_found(find_cases(dataset_dir), may_lack) if dataset_dir is not None and searched else []
    incomplete = {finding.case for finding in findings if finding.kind == "missing sequence"}
    names: dict[str, str] = {}
    said = {finding.message for finding in findings}
    for item in items:
        # A datalist may hold the same case on both sides of the split, to test whether a network can learn it.
        file, name = image_files(item["image"])[0], str(item["case"])
        found = Findings(name)
        if names.get(name, file) != file:
            found.add(
                "doubled case name",
                f"{file}: the case {name} is also in {Path(names[name]).parent}; "
                "results are named after cases, so keep only one of them.",
            )
        elif name not in names:
            absent = missing_sequences(item["image"])
            if len(absent) > may_lack and name not in incomplete:
                found.add(
                    "missing sequence",
                    f"{file}: {name} lacks {' and '.join(absent)}; {_bearable(may_lack)}add it, or leave the case out.",
                )
            elif absent and len(absent) <= may_lack:
                found.add(
                    "tolerated missing sequence",
                    f"{name} lacks {' and '.join(absent)}. The weights were trained to bear this, but the result is "
                    "worse than with all sequences.",
                )
            # Names of cases become names of files. Plain characters make no trouble in any file system or shell.
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
                found.add(
                    "odd name",
                    f"{file}: the name of the case ({name!r}) has characters that some programs do not take; rename it "
                    "with letters, digits, '.', '_' and '-'.",
                )
            with found.collecting():
                check_channel_order(item, channel_order)
        names[name] = file
        # The order of channels is the same fault in every case.
        findings += [one for one in found.list if one.message not in said]
        said |= {one.message for one in found.list}
    return findings + _of_patients(items) + _of_other_tumors(names)


def _bearable(may_lack: int) -> str:
    return f"the weights bear {may_lack} missing sequence at most; " if may_lack else ""


def _tell_choice(found: Findings, folder: Path, choice: Choice) -> None:
    if choice.several:
        found.add(
            "several series of a sequence",
            f"{folder}: {choice}; to take another series, name its file in a --datalist_file.",
        )
    else:
        logger.info("%s: %s", folder, choice)
    for series, other in choice.scattered:
        found.add(
            "series in several folders",
            f"{series.first.file}: {series} has files in {Path(other.first.file).parent}, too; put all of its files "
            "into one folder, once.",
        )
    if choice.doubt:
        for line in choice.table:
            logger.error("%s", line)
        found.add(
            "contradicting contrast agent",
            f"{folder}: {choice.doubt}; name the right one of {', '.join(map(str, choice.candidates))} by --t1ce "
            "<number or folder> of panet segment, or each series in a --datalist_file.",
        )


def _of_patients(items: Sequence[Mapping[str, Any]]) -> list[Finding]:
    cases = {str(item["case"]): dict(item) for item in items}
    several = [visits for visits in by_patient(list(cases.values())) if len(visits) > 1]
    if not several:
        return []
    visits = [str(item["case"]) for item in several[0]]
    told = (
        f"{len(several)} patient{'s have' if len(several) > 1 else ' has'} several cases, such as "
        f"{patient_of(several[0][0])} ({', '.join(visits[:3])}); their scores are not independent, and splits keep "
        "them together."
    )
    return [Finding("one patient in several cases", visits[0], told)]


def _of_other_tumors(names: Iterable[str]) -> list[Finding]:
    kinds: dict[str, list[str]] = {}
    for name in names:
        if kind := other_tumor(name):
            kinds.setdefault(kind, []).append(name)
    return [
        Finding(
            "other tumor",
            cases[0],
            f"{cases[0] if len(cases) == 1 else f'{cases[0]} and {len(cases) - 1} more'}: the name says "
            f"{OTHER_TUMORS[kind]}; the weights of this bundle and its reading of label values are for gliomas.",
        )
        for kind, cases in kinds.items()
    ]


def seen_before(case: CheckedCase, seen: dict[str, CheckedCase]) -> Finding | None:
    """The finding that a case in ``seen``, by checksums, has the same first image, or None. ``case`` is added to it."""
    other = seen.setdefault(case.checksum, case) if case.checksum else case
    if other.case == case.case:
        return None
    told = f"{case.file}: the same image as {other.file} of another case; keep one of the two cases."
    return Finding("same image twice", case.case, told)


def compare_cases(items: Sequence[Mapping[str, Any]], checked: Sequence[CheckedCase]) -> list[Finding]:
    """What is wrong with cases together that are sound one by one; ``checked`` is what was found in each item."""
    findings: list[Finding] = []
    seen: dict[str, CheckedCase] = {}
    releases: dict[str, dict[int, list[str]]] = {}
    for item, case in zip(items, checked, strict=True):
        if (finding := seen_before(case, seen)) is not None:
            findings.append(finding)
        label = released_file(str(item.get("label", "")))
        if label and case.et_values:
            values = releases.setdefault(label.release.name, {})
            values.setdefault(sum(case.et_values), []).append(case.case)
    for release, values in releases.items():
        # Where some maps hold both, as in BraTS 2024, a map with 4 alone has no ET.
        if sorted(values) == list(ET_LABELS):
            (few, cases), (most, others) = sorted(values.items(), key=lambda pair: len(pair[1]))
            told = (
                f"{cases[0]}: label maps named as in {release} hold {few} in {len(cases)} cases and {most} in "
                f"{len(others)}; ET has one value in a release, so correct the label maps, or name the values of each "
                "case in a --datalist_file."
            )
            findings.append(Finding("ET 3 and 4 mixed", cases[0], told))
    return findings


def _read_cases(
    items: Sequence[Mapping[str, Any]], cases: str, channel_order: Sequence[str], headers_only: bool
) -> list[CheckedCase]:
    # Without a terminal a progress bar would only leave empty lines in the log.
    quiet = not sys.stderr.isatty() or not logger.isEnabledFor(logging.INFO)
    read = read_header if headers_only else read_file
    check = partial(check_case, channel_order=channel_order, read=read, headers_only=headers_only)
    # Decompression releases the interpreter's lock, so threads use all cores.
    memory = min(available_memory(), container_memory())
    pool = ThreadPoolExecutor(max(1, min(processors(), int(memory / MEMORY_PER_CASE))))
    try:
        done = pool.map(check, items)
        step = f"Reading {'headers of ' * headers_only}{len(items)} {cases}"
        return list(track(done, step, len(items), console=Console(stderr=True), transient=True, disable=quiet))
    finally:
        pool.shutdown(cancel_futures=True)


def examine(
    items: Sequence[Mapping[str, Any]],
    dataset_dir: str | Path | None,
    cases: str = "cases",
    datalist_file: str | Path | None = None,
    channel_order: Sequence[str] = CHANNEL_ORDER,
    may_lack: int = 0,
    headers_only: bool = False,
    refused: Sequence[str] = ERRORS,
) -> tuple[list[Finding], list[CheckedCase]]:
    """All findings of a cohort, and what was found in each case; no case is an InputError (``check_cases``).

    With ``headers_only``, the voxels of a case are read only if it has a finding of the kinds ``refused``, so that the
    user learns of all that is wrong with it at once.
    """
    findings = check_files(items, dataset_dir, datalist_file, channel_order, may_lack)
    if not items and not any(finding.is_error for finding in findings):
        raise InputError(nothing_found(Path(dataset_dir or "."), cases))
    checked = _read_cases(items, cases, channel_order, headers_only) if items else []
    if headers_only:
        faulty = {finding.case for finding in findings if finding.kind in refused}
        faulty |= {case.case for case in checked if any(finding.kind in refused for finding in case.findings)}
        if numbers := [number for number, case in enumerate(checked) if case.case in faulty]:
            for number, case in zip(
                numbers, _read_cases([items[n] for n in numbers], cases, channel_order, False), strict=True
            ):
                checked[number] = case
    findings += [finding for case in checked for finding in case.findings] + compare_cases(items, checked)
    # A datalist may hold a case, and an entry a file, more than once.
    return list(dict.fromkeys(findings)), checked


def check_cases(
    items: Sequence[Mapping[str, Any]],
    dataset_dir: str | Path | None,
    cases: str = "cases",
    datalist_file: str | Path | None = None,
    channel_order: Sequence[str] = CHANNEL_ORDER,
    may_lack: int = 0,
    headers_only: bool = False,
    accept: Collection[str] | None = None,
    kept: dict[str, list[dict[str, str]]] | None = None,
) -> list[bool]:
    """Refuse data on which a workflow would fail later, and warn of doubtful data.

    Args:
        items: the entries.
        dataset_dir: the folder of the cases, or None if a caller brought its own list. An incomplete case in this
            folder is refused too, because leaving it out without notice would change the cohort.
        cases: word for the items in the messages.
        datalist_file: the file in which the user chose the cases, or None. Without it, all in the folder count.
        channel_order: the sequences in the order of the channels of four-dimensional files.
        may_lack: how many sequences a case may lack, by the record of the weights.
        headers_only: the workflow checks the voxels of each case itself, and tells of doubts then.
        accept: kinds of doubts that do not stop the run, where the others do. None stops at errors alone.
        kept: gets the warnings of each case (``warnings_by_case``).

    Returns:
        For each item, whether it is a synthetic phantom.

    Raises:
        InputError: there is no case, or something was found that stops the run (``refused_kinds``).
    """
    refused = refused_kinds(accept)
    findings, checked = examine(
        items, dataset_dir, cases, datalist_file, channel_order, may_lack, headers_only, refused
    )
    refuse(findings, datalist_file or dataset_dir or "the given list", refused)
    for finding in findings:
        # A workflow that reads the voxels itself finds doubts again then.
        if not finding.is_error and not (headers_only and finding.kind in ACCEPTABLE):
            logger.warning("%s", finding.message)
    if kept is not None:
        kept.update(warnings_by_case(findings))
    phantoms = [case.phantom for case in checked]
    logger.info("%s: %s %d, %schecked", dataset_dir or "Given list", cases, len(items), "headers " * headers_only)
    if any(phantoms):
        logger.warning("%d of %d %s are synthetic phantoms, not patients.", sum(phantoms), len(items), cases)
    return phantoms


def refuse(findings: Sequence[Finding], source: str | Path, refused: Sequence[str] = ERRORS) -> None:
    """Raise an InputError if there is a finding of a kind in ``refused``.

    Those of one case come in one message, in the order in which a user mends them. Those of several cases are logged,
    and the error counts them. ``source`` is the place that the cases come from.
    """
    stopping = [finding for finding in findings if finding.kind in refused]
    if not stopping:
        return
    stopping.sort(key=lambda finding: KINDS.index(finding.kind))
    advice = ""
    if doubts := list(dict.fromkeys(finding.kind for finding in stopping if finding.kind in ACCEPTABLE)):
        accepted = " ".join(f'--accept "{kind}"' for kind in doubts)
        advice = f" --prepare prepares scans ({PREPARATION_PAGE}); {accepted} segments these as they are."
    count = len({finding.case for finding in stopping})
    if count == 1:
        messages = [finding.message for finding in stopping]
        told = messages[0]
        if len(messages) > 1:
            steps = (f"({number}) {message}" for number, message in enumerate(messages, 1))
            told = f"{stopping[0].case}: {len(messages)} faults, to be mended in this order: {' '.join(steps)}"
        raise InputError(told + advice, stopping[0].kind)
    for case in dict.fromkeys(finding.case for finding in stopping):
        for finding in stopping:
            if finding.case == case:
                logger.error("%s", finding.message)
    raise InputError(
        f"{source}: {len(stopping)} faults in {count} cases, which the lines above name with their remedies.{advice}"
    )


def nothing_found(dataset_dir: Path, cases: str) -> str:
    """The message about a folder that holds no ``cases``."""
    if not dataset_dir.is_dir():
        return f"{dataset_dir}: no such folder; give a folder of {LOOKED_FOR}."
    for file in itertools.islice(dataset_dir.rglob("*"), 1000):
        refuse_pointer(file)
    if found := len(find_cases(dataset_dir)):
        return (
            f"{dataset_dir}: {found} cases, but no {cases}; these need a segmentation (seg) beside the sequences, or a "
            "--datalist_file that names it."
        )
    return f"{dataset_dir}: no {cases} found; looked for {LOOKED_FOR}, at any depth."
