# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Cases of files of any name, whose sequences are told by the words that descriptions of DICOM series have."""

import logging
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from itertools import chain, takewhile
from pathlib import Path

from scripts.brats import ANY_NAME, IMAGE_SUFFIX, SEQUENCE_TITLES, SEQUENCES
from scripts.data.cases import Case
from scripts.data.dicom_choice import agent_told, described
from scripts.utils.errors import InputError

logger = logging.getLogger(__name__)

_IMAGE = re.compile(rf"(?P<stem>[^.].*){IMAGE_SUFFIX}", re.IGNORECASE | re.DOTALL)
# Names of releases, in words of descriptions.
_RELEASED = {r"t1n(?![a-z])": "t1 native", r"t2[ _-]?f(?![a-z])|(?<![a-z])fla(?![a-z])": "flair"}
_NO_IMAGE = re.compile(r"mask|(?<![a-z])(?:seg|label|roi|prob|unc)", re.IGNORECASE)


def file_told(text: str) -> tuple[str, bool | None] | None:
    """What a file's name says of it, as ``described``; nothing of a mask or a segmentation.

    Example:
        >>> [file_told(name) for name in ("T1_MPRAGE_post_GAD", "pat7_FLAIR", "AX T2 TSE", "ann-t2f", "T1_mask")]
        [('t1', True), ('flair', None), ('t2', None), ('flair', None), None]
    """
    if _NO_IMAGE.search(text):
        return None
    text = text.lower()
    for pattern, words in _RELEASED.items():
        text = re.sub(pattern, words, text)
    return described(text)


def named_images(files: Sequence[Path]) -> tuple[dict[str, Path], list[Path]]:
    """The files of the sequences, by their names, and the files that show none.

    Raises:
        InputError: two files may be the same sequence, or it is not sure which T1 has contrast agent.
    """
    stems = [_stem(file) for file in files]
    # What all names begin with, such as the words of a patient or of a visit, tells nothing.
    alike = "".join(
        letters[0] for letters in takewhile(lambda letters: len(set(letters)) == 1, zip(*stems, strict=False))
    )
    begin = (re.match(r".*[ _.-]", alike, re.DOTALL) or [""])[0]
    if (file_told(begin) or ("",))[0]:
        begin = ""
    told = {file: said for file, stem in zip(files, stems, strict=True) if (said := file_told(stem[len(begin) :]))}
    shown: dict[str, list[Path]] = {sequence: [] for sequence in SEQUENCES}
    for file, (weighting, agent) in told.items():
        if weighting:
            shown["t1ce" if (weighting, agent) == ("t1", True) else weighting].append(file)
    of_t1 = [*shown["t1"], *shown["t1ce"]]
    if len(of_t1) == 1:
        # Words of an agent that all sequences have may mean a visit after an operation.
        unsure = all(agent_told(_stem(file)) for file in chain(*shown.values()))
    else:
        unsure = not shown["t1ce"] and any(told[file][1] is None for file in of_t1)
    if unsure:
        shown |= {"t1": of_t1, "t1ce": []}
    for sequence, several in shown.items():
        why = "with or without contrast agent" if unsure and sequence == "t1" else "the same sequence"
        if len(several) > 1 or (unsure and sequence == "t1"):
            sure = {name: str(found[0]) for name, found in shown.items() if len(found) == 1 and found is not several}
            options = " ".join(f"--{name} {shlex.quote(sure.get(name, 'FILE'))}" for name in SEQUENCES)
            names = " and ".join(file.name for file in several)
            raise InputError(f"{several[0].parent}: {names} may be {why}; name the files instead: {options}")
    images = {sequence: found[0] for sequence, found in shown.items() if found}
    return images, [file for file in files if file not in images.values()]


def _stem(file: Path) -> str:
    found = _IMAGE.fullmatch(file.name)
    return found["stem"] if found else file.name


def named_case(files: Sequence[Path]) -> Case | None:
    """The case of these files, under the name of their folder; None if no name tells a sequence.

    Raises:
        InputError: as ``named_images``.
    """
    images, left_out = named_images(files)
    if not images:
        return None
    folder = folder_of(files)
    shown = [f"{SEQUENCE_TITLES[name]}: {images[name].name if name in images else 'none'}" for name in SEQUENCES]
    rest = ", ".join(file.name for file in left_out) or "none"
    logger.info("%s, by the names of its files: %s; left out: %s", folder.name, "; ".join(shown), rest)
    return Case(folder.name or "case", folder, ANY_NAME, images)


def folder_of(files: Sequence[Path]) -> Path:
    """The deepest folder that holds all files."""
    return Path(os.path.commonpath([file.absolute().parent for file in files]))


def images_in(folder: Path) -> list[Path]:
    """The image files in a folder."""
    return sorted(file for file in folder.iterdir() if _IMAGE.fullmatch(file.name) and file.is_file())


def with_any_names(cases: Sequence[Case], folder: Path) -> list[Case]:
    """The cases that were found in ``folder``, with those whose files have other names than the releases'.

    These are searched where no case was found, and in place of an incomplete case that has its folder for itself.

    Raises:
        InputError: as ``named_images``.
    """
    if not cases:
        found = []
        for root, folders, _ in os.walk(folder):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            found += [named_case(files)] if (files := images_in(Path(root))) else []
        return [case for case in found if case is not None]
    alone: Mapping[Path, int] = {case.folder: sum(case.folder == other.folder for other in cases) for case in cases}
    return [_completed(case) if case.missing and case.images and alone[case.folder] == 1 else case for case in cases]


def _completed(case: Case) -> Case:
    if case.choice is not None or len(files := images_in(case.folder)) <= len(case.images):
        return case
    named = named_case(files)
    return named if named is not None and len(named.images) > len(case.images) else case
