# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The rules of BraTS: sequences, releases and their file names, label values, regions and their colors.

The regions are channels in the order background, ET, TC, WT. They overlap: ET (enhancing tumor) lies in TC (tumor core:
ET and the necrotic or non-enhancing core), and TC in WT (whole tumor: TC and edema).
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from scripts.utils.errors import InputError

# The input channels. Their order is the order in the PANet authors' program, so the authors' weights fit as they are.
SEQUENCES = ("t1", "t2", "t1ce", "flair")
# Scans as the scanner made them are registered to it: the brain is seen best, and ET in it alone.
REFERENCE = "t1ce"
SEQUENCE_TITLES = {"t1": "T1", "t2": "T2", "t1ce": "T1 contrast-enhanced", "flair": "FLAIR"}
# The channels of a four-dimensional file in Task01. The setting channel_order can name another order.
CHANNEL_ORDER = ("flair", "t1", "t1ce", "t2")
# Spellings of the sequences beside those of the releases, in Task01's dataset.json and elsewhere, in small letters.
SPELLINGS = {"t1": ("t1w",), "t1ce": ("t1gd", "t1wce", "t1wgd"), "t2": (), "flair": ("t2flair", "fla")}

REGIONS = ("ET", "TC", "WT")
BACKGROUND_CHANNEL, ET_CHANNEL, TC_CHANNEL, WT_CHANNEL = range(4)

# Values in a label map. The value of ET depends on the release.
CORE_LABEL, EDEMA_LABEL = 1, 2
ET_LABELS = (3, 4)
# Releases in which both occur, by year, with the value of ET. Only a user can tell them apart. In 2013 and 2015, 3 is
# non-enhancing core; in 2024, 4 is the resection cavity, which counts as background.
LABEL_RELEASES = {2015: 4, 2024: 3}
NONENHANCING_LABEL = 3


@dataclass(frozen=True)
class SubRegion:
    """A part of the tumor that one value of a label map means: its name, and its color in pictures."""

    name: str
    color: str


# Color-blind people can tell these colors apart (Okabe and Ito).
CORE = SubRegion("necrotic and non-enhancing core", "#0072B2")
EDEMA = SubRegion("edema", "#009E73")
ENHANCING = SubRegion("enhancing tumor", "#E69F00")

# Formats of images: NIfTI, FreeSurfer's MGH, and by ITK NRRD and MetaImage. DICOM files are known by their content.
NIFTI_SUFFIXES = (".nii", ".nii.gz")
MGH_SUFFIXES = (".mgh", ".mgz")
ITK_SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd")
IMAGE_SUFFIXES = (*NIFTI_SUFFIXES, *MGH_SUFFIXES, *ITK_SUFFIXES)
IMAGE_SUFFIX = "(?:" + "|".join(map(re.escape, IMAGE_SUFFIXES)) + ")"


@dataclass(frozen=True)
class Release:
    """File names and label values of a family of BraTS releases.

    Attributes:
        separator: text between the name of the case and the name of the sequence.
        suffixes: names of the sequences, in the order of ``SEQUENCES``.
        edema_label: value of edema, 2 or 1. The necrotic and non-enhancing core has the other value of the two.
        case_pattern: pattern of a case's name that ends in the number of the visit. The group ``patient`` is what comes
            before it, and a group ``site`` says where the images come from. None if the names tell neither.
    """

    name: str
    separator: str
    suffixes: tuple[str, str, str, str]
    et_label: int
    edema_label: int = EDEMA_LABEL
    case_pattern: str | None = None

    @cached_property
    def file_pattern(self) -> re.Pattern[str]:
        """Pattern of ``<case><separator><sequence><suffix>``, with the groups ``case`` and ``sequence``."""
        names = "|".join((*self.suffixes, "seg"))
        pattern = rf"(?P<case>[^.].*){re.escape(self.separator)}(?P<sequence>{names}){IMAGE_SUFFIX}"
        return re.compile(pattern, re.DOTALL)  # a name may hold a line break

    @property
    def file_names(self) -> str:
        """The names of a case's images, for the user: ``<case>-{t1n,t2w,t1c,t2f}.nii.gz``."""
        return f"<case>{self.separator}{{{','.join(self.suffixes)}}}.nii.gz"


# Their names are such as Brats18_TCIA01_378_1 up to 2019. From 2020 on the names tell neither patient nor site.
BRATS_2020 = Release(
    "BraTS 2017 to 2021", "_", SEQUENCES, et_label=4, case_pattern=r"(?P<patient>BraTS1[789]_(?P<site>[^_]+)_.+)_\d+"
)
BRATS_2023 = Release(
    "BraTS 2023 and later",
    "-",
    ("t1n", "t2w", "t1c", "t2f"),
    et_label=3,
    case_pattern=r"(?P<patient>BraTS(-[a-z]+)+-\d+)-\d+",
)
# In these releases the name of a file says which sequence it is.
RELEASES = (BRATS_2020, BRATS_2023)
# A case is one four-dimensional file. The labels of core and edema are swapped.
DECATHLON = Release("Medical Segmentation Decathlon, Task01", "", SEQUENCES, et_label=3, edema_label=3 - EDEMA_LABEL)
# Cases of DICOM series are of no release; their label maps are named in a datalist, with the meaning of their values.
DICOM = Release("DICOM", "", SEQUENCES, et_label=ET_LABELS[-1])
# Nor are cases of files of any name (``scripts.patients.file_names``).
ANY_NAME = Release("any name", "", SEQUENCES, et_label=ET_LABELS[-1])

# Releases of other tumors use the file names of 2023, but their label values have other meanings.
OTHER_TUMORS = {"PED": "pediatric tumors", "MEN": "meningiomas", "MET": "metastases"}

_EXTENSION = re.compile(f"{IMAGE_SUFFIX}$", re.IGNORECASE)
_OTHER_TUMOR = re.compile(rf"BraTS-(?P<kind>{'|'.join(OTHER_TUMORS)})-.*", re.IGNORECASE)


@dataclass(frozen=True)
class ReleasedFile:
    """The parts of a file name that follows the rule of a BraTS release. The sequence of a label map is None."""

    release: Release
    case: str
    sequence: str | None


def released_file(file: str | Path) -> ReleasedFile | None:
    """The parts of a file's name, or None if the name follows the rule of no release.

    Example:
        >>> found = released_file("BraTS-GLI-00005-101-t1c.nii.gz")
        >>> found.case, found.sequence, found.release.et_label
        ('BraTS-GLI-00005-101', 't1ce', 3)
    """
    for release in RELEASES:
        if found := release.file_pattern.fullmatch(Path(file).name):
            suffix = found["sequence"]
            sequence = None if suffix == "seg" else SEQUENCES[release.suffixes.index(suffix)]
            return ReleasedFile(release, found["case"], sequence)
    return None


def case_name(image: str | Path) -> str:
    """Name of the case that an image file belongs to. It is the file's stem if the name follows no release's rule.

    Example:
        >>> case_name("folder/BraTS20_Training_001_t1ce.nii.gz"), case_name("p.1.nii.gz")
        ('BraTS20_Training_001', 'p.1')
    """
    if found := released_file(image):
        return found.case
    # Path.stem alone would leave .nii in the name of p.1.nii.gz.
    name = Path(image).name
    stem = _EXTENSION.sub("", name)
    return stem if stem != name else Path(name).stem


def _parts_of_case(case: str) -> dict[str, str | None]:
    for release in RELEASES:
        if release.case_pattern and (found := re.fullmatch(release.case_pattern, case, re.IGNORECASE)):
            return found.groupdict()
    return {}


def patient_name(case: str) -> str:
    """Name of a case's patient: the name of the case without the number of the visit, if it has one.

    Example:
        >>> patient_name("BraTS-GLI-00005-101"), patient_name("BraTS20_Training_001")
        ('BraTS-GLI-00005', 'BraTS20_Training_001')
    """
    return _parts_of_case(case).get("patient") or case


def site_named(case: str) -> str | None:
    """The site that a case comes from, such as TCIA01, or None if the case's name does not tell it."""
    return _parts_of_case(case).get("site")


def other_tumor(case: str) -> str | None:
    """The key of ``OTHER_TUMORS`` that a case's name holds, or None."""
    found = _OTHER_TUMOR.fullmatch(case)
    return found["kind"].upper() if found else None


def sequence_named(name: str) -> str | None:
    """The sequence that the name of a channel means, in any capitals and punctuation, or None if the name is unknown.

    Example:
        >>> sequence_named("T1-Gd"), sequence_named("FLAIR"), sequence_named("T1n")
        ('t1ce', 'flair', 't1')
    """
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    for sequence, *released in zip(SEQUENCES, *(release.suffixes for release in RELEASES), strict=True):
        if plain in (*released, *SPELLINGS[sequence]):
            return sequence
    return None


def sequences_told(files: Sequence[str]) -> list[str] | None:
    """The sequences of four files by their names, or None unless the names give each of the four sequences once.

    Example:
        >>> sequences_told(["p1_FLAIR.nii.gz", "p1_T1.nii.gz", "p1_T1-Gd.nii.gz", "p1_T2.nii.gz"])
        ['flair', 't1', 't1ce', 't2']
    """
    released = [released_file(file) for file in files]
    told = [found.sequence if found else None for found in released]
    if None in told:
        # Names outside the releases often end in the sequence, such as p1_T1-Gd.nii.gz.
        parts = [re.split(r"[^A-Za-z0-9]+", _EXTENSION.sub("", Path(file).name)) for file in files]
        told = [sequence_named("".join(part[-2:])) or sequence_named(part[-1]) for part in parts]
    return [str(sequence) for sequence in told] if sorted(map(str, told)) == sorted(SEQUENCES) else None


def in_network_order(files: Sequence[str], sequences: Sequence[str]) -> list[str]:
    """The four files, of which ``sequences`` says what each is, in the order of the network's channels."""
    return [files[sequences.index(sequence)] for sequence in SEQUENCES]


def check_et_label(et_label: int) -> int:
    """Return ``et_label``, or raise an InputError if no BraTS release uses it for the enhancing tumor."""
    if et_label not in ET_LABELS:
        known = " or ".join(f"{release.et_label} ({release.name})" for release in RELEASES)
        raise InputError(f"ET label {et_label!r}: the enhancing tumor is {known}.")
    return et_label


def check_label_values(values: Iterable[float], et_label: int, name: str, label_release: int = 0) -> None:
    """Refuse values in the label map ``name`` that a release with this ET label does not use.

    A ``label_release`` of ``LABEL_RELEASES`` accepts 3 and 4 together.

    Example:
        >>> check_label_values([0, 1, 7], et_label=4, name="seg.nii.gz")
        Traceback (most recent call last):
        scripts.utils.errors.InputError: seg.nii.gz: unexpected label 7 beside 0, 1, 2, 4; check the file.
    """
    held = {float(v) for v in values}
    own = ET_LABELS if LABEL_RELEASES.get(label_release) == et_label else [et_label]
    used = {0.0, float(CORE_LABEL), float(EDEMA_LABEL), *map(float, own)}
    unknown = sorted(held - used)
    if not unknown:
        return
    shown = ", ".join(f"{v:g}" for v in unknown)
    cavity = "in BraTS 2024 label 4 is the resection cavity: set --label_release 2024"
    core = "in BraTS 2013 and 2015 label 3 is non-enhancing core: set --label_release 2015"
    if unknown in ([3.0], [4.0]) and held.issuperset(ET_LABELS):
        remedy = f"{cavity}; {core}"
    elif unknown == [4.0]:
        remedy = f"{cavity}; in {BRATS_2020.name} it is ET: set --et_label 4"
    elif unknown == [3.0]:
        remedy = f"in {BRATS_2023.name} it is ET: set --et_label 3; {core}"
    else:
        remedy = "check the file"
    raise InputError(f"{name}: unexpected label {shown} beside 0, 1, 2, {et_label}; {remedy}.", "unexpected label")
