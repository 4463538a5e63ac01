# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""BraTS's own rules: sequences, releases and their files' names, label values, regions and their colors.

Regions are the channels (background, ET, TC, WT); they overlap: ET (enhancing tumor) lies in TC (tumor core: ET and
necrotic or non-enhancing core), TC in WT (whole tumor: TC and edema). BraTS label maps hold 1 for necrotic and
non-enhancing core, 2 for edema, and for ET 4 (releases 2018 to 2021) or 3 (from 2023 on).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scripts.errors import InputError

# The input channels, in the order of the PANet authors' program, whose weights fit as they are.
SEQUENCES = ("t1", "t2", "t1ce", "flair")
SEQUENCE_TITLES = {"t1": "T1", "t2": "T2", "t1ce": "T1 contrast-enhanced", "flair": "FLAIR"}
# What the channels of a four-dimensional file are, unless the setting channel_order says otherwise: as in Task01.
CHANNEL_ORDER = ("flair", "t1", "t1ce", "t2")
# The same names in small letters and digits, as Task01's dataset.json and others' write them.
SPELLINGS = {
    "t1": ("t1", "t1w", "t1n"),
    "t1ce": ("t1ce", "t1gd", "t1c", "t1wce", "t1wgd"),
    "t2": ("t2", "t2w"),
    "flair": ("flair", "t2flair", "t2f"),
}

REGIONS = ("ET", "TC", "WT")
BACKGROUND_CHANNEL, ET_CHANNEL, TC_CHANNEL, WT_CHANNEL = range(4)

# Values in a label map. That of ET depends on the release.
CORE_LABEL, EDEMA_LABEL = 1, 2
ET_LABELS = (3, 4)
# How entries of datalists spelled edema_label before; it is still read.
FORMER_EDEMA_KEY = "oedema_label"


@dataclass(frozen=True)
class SubRegion:
    """What one value of a label map stands for.

    Attributes:
        name: shown to the user.
        color: in pictures; the three stay apart for color-blind eyes (Okabe and Ito).
    """

    name: str
    color: str


CORE = SubRegion("necrotic and non-enhancing core", "#0072B2")
EDEMA = SubRegion("edema", "#009E73")
ENHANCING = SubRegion("enhancing tumor", "#E69F00")


@dataclass(frozen=True)
class Release:
    """How a family of BraTS releases names its files.

    Attributes:
        name: shown to the user.
        separator: between the case's name and the sequence's.
        suffixes: the sequences' names in the order of ``SEQUENCES``.
        et_label: value of the enhancing tumor in its label maps.
        edema_label: value of edema, 2 or 1; necrotic and non-enhancing core has the other.
    """

    name: str
    separator: str
    suffixes: tuple[str, str, str, str]
    et_label: int
    edema_label: int = EDEMA_LABEL

    def file_pattern(self) -> re.Pattern[str]:
        """Match ``<case><separator><sequence>.nii[.gz]``; groups: case, sequence."""
        names = "|".join((*self.suffixes, "seg"))
        return re.compile(rf"(?P<case>[^.].*){re.escape(self.separator)}(?P<sequence>{names})\.nii(\.gz)?")


BRATS_2020 = Release("BraTS 2018 to 2021", "_", ("t1", "t2", "t1ce", "flair"), et_label=4)
BRATS_2023 = Release("BraTS 2023 and later", "-", ("t1n", "t2w", "t1c", "t2f"), et_label=3)
# Those whose files' names tell the sequence.
RELEASES = (BRATS_2020, BRATS_2023)
# One four-dimensional file a case; core and edema have each other's label.
DECATHLON = Release("Medical Segmentation Decathlon, Task01", "", SEQUENCES, et_label=3, edema_label=3 - EDEMA_LABEL)

# Releases of other tumors have the names of 2023, and label values of their own meaning.
OTHER_TUMORS = {"PED": "pediatric tumors", "MEN": "meningiomas", "MET": "metastases"}

_PATTERNS = [(release, release.file_pattern()) for release in RELEASES]
_EXTENSION = re.compile(r"\.nii(\.gz)?$", re.IGNORECASE)
# The last number is the visit: BraTS-GLI-00005-101 (2023 on), Brats18_TCIA01_378_1 (2017 to 2019).
_VISIT = re.compile(r"(?P<patient>BraTS(-[a-z]+)+-\d+|BraTS1[789]_.+)[-_]\d+", re.IGNORECASE)
_OTHER_TUMOR = re.compile(rf"BraTS-(?P<kind>{'|'.join(OTHER_TUMORS)})-.*", re.IGNORECASE)


@dataclass(frozen=True)
class ReleasedFile:
    """What the name of a file tells that a BraTS release has named.

    Attributes:
        release: the release.
        case: name of the case.
        sequence: one of ``SEQUENCES``; None for the label map.
    """

    release: Release
    case: str
    sequence: str | None


def released_file(file: str | Path) -> ReleasedFile | None:
    """What a file's name tells; None where no release names files so."""
    for release, pattern in _PATTERNS:
        if found := pattern.fullmatch(Path(file).name):
            suffix = found["sequence"]
            sequence = None if suffix == "seg" else SEQUENCES[release.suffixes.index(suffix)]
            return ReleasedFile(release, found["case"], sequence)
    return None


def case_name(image: str | Path) -> str:
    """Name of the case that an image file belongs to; the file's stem where no release names files so."""
    if found := released_file(image):
        return found.case
    # p.1.nii.gz and p.2.nii.gz are two cases.
    name = Path(image).name
    stem = _EXTENSION.sub("", name)
    return stem if stem != name else Path(name).stem


def patient_name(case: str) -> str:
    """The patient whom a case is of, from its name: those of one release's visits are the same but for the last number.

    Cases of other names, and of BraTS 2020, 2021 and the Decathlon, are each a patient of their own. One patient's
    names in two releases have nothing in common.
    """
    found = _VISIT.fullmatch(case)
    return found["patient"] if found else case


def other_tumor(case: str) -> str | None:
    """The kind of tumor, a key of ``OTHER_TUMORS``, of a case whose name says that it is no glioma; else None."""
    found = _OTHER_TUMOR.fullmatch(case)
    return found["kind"].upper() if found else None


def sequence_named(name: str) -> str | None:
    """The sequence that a channel's name means, whatever its capitals and punctuation; None where that is unclear."""
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    return next((sequence for sequence, spellings in SPELLINGS.items() if plain in spellings), None)


def sequences_told(files: Sequence[str]) -> list[str] | None:
    """The sequences of four files by their names; None unless these tell each of the four once."""
    released = [released_file(file) for file in files]
    told = [found.sequence if found else None for found in released]
    if None in told:
        # The ends of other names, such as p1_T1-Gd.nii.gz.
        parts = [re.split(r"[^A-Za-z0-9]+", _EXTENSION.sub("", Path(file).name)) for file in files]
        told = [sequence_named("".join(part[-2:])) or sequence_named(part[-1]) for part in parts]
    return [str(sequence) for sequence in told] if sorted(map(str, told)) == sorted(SEQUENCES) else None


def in_network_order(files: Sequence[str], sequences: Sequence[str]) -> list[str]:
    """The four files, of which ``sequences`` says which is which, in the order of the network's channels."""
    return [files[sequences.index(sequence)] for sequence in SEQUENCES]


def check_et_label(et_label: int) -> int:
    """Return ``et_label`` if a BraTS release uses it for the enhancing tumor.

    Raises:
        InputError: it is neither 3 nor 4.
    """
    if et_label not in ET_LABELS:
        raise InputError(f"ET label {et_label!r}: the enhancing tumor is 4 (BraTS 2018 to 2021) or 3 (from 2023 on).")
    return et_label


def check_label_values(values: np.ndarray, et_label: int, name: str, cavity: bool = False) -> None:
    """Refuse label values that a release with this ET label does not use.

    Args:
        values: the distinct values of a label map.
        et_label: the release's ET label.
        name: file that the message names.
        cavity: accept 4 as resection cavity in a release whose ET label is 3.

    Raises:
        InputError: another value occurs.
    """
    used = {0.0, float(CORE_LABEL), float(EDEMA_LABEL), float(et_label)}
    unknown = sorted({float(v) for v in values} - used - ({4.0} if cavity else set()))
    if not unknown:
        return
    shown = ", ".join(f"{v:g}" for v in unknown)
    if et_label == 3 and unknown == [4.0]:
        remedy = "in BraTS 2024 label 4 is the resection cavity, in BraTS 2018 to 2021 ET: set --et_label 3 or 4"
    elif et_label == 4 and unknown == [3.0]:
        remedy = "files of BraTS 2023 and later have ET as 3: set --et_label 3"
    else:
        remedy = "check the file"
    raise InputError(f"{name}: unexpected label {shown} beside 0, 1, 2, {et_label}; {remedy}.")
