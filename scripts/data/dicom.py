# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""DICOM series: which files belong together, which sequence a series shows, and where its slices lie.

The path of any one file of a series stands for the whole series: all files in its folder with the same
SeriesInstanceUID. This module reads headers alone, and ``scripts.data.images`` reads the voxels.
"""

from __future__ import annotations

import importlib.util
import os
import re
import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scripts.brats import IMAGE_SUFFIXES, SEQUENCE_TITLES, SEQUENCES
from scripts.utils.errors import InputError, one_line

# A DICOM file has these bytes after 128 others.
MAGIC = b"DICM"
MAGIC_OFFSET = 128

# Kinds of files (SOPClassUID).
DIRECTORY = "1.2.840.10008.1.3.10"
MR_IMAGE = "1.2.840.10008.5.1.4.1.1.4"
# Enhanced MR images, those of color, and older ones that were converted.
MULTI_FRAME = tuple(f"{MR_IMAGE}.{number}" for number in (1, 3, 4))

TAGS = (
    "SOPClassUID",
    "Modality",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SeriesNumber",
    "SeriesDescription",
    "ProtocolName",
    "ContrastBolusAgent",
    "ScanningSequence",
    "EchoTime",
    "RepetitionTime",
    "InversionTime",
    "Rows",
    "Columns",
    "PixelSpacing",
    "ImageOrientationPatient",
    "ImagePositionPatient",
    "SliceThickness",
    "NumberOfFrames",
    "SamplesPerPixel",
    "PhotometricInterpretation",
)
# Errors that pydicom raises for a file that ends too early or is no DICOM file after its first bytes.
UNREADABLE_HEADER = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    NotImplementedError,
    RecursionError,
    struct.error,
    zlib.error,
)
# Headers that are kept in memory, at about 1 kB each: those of some dozens of cases.
KEPT_HEADERS = 50_000

# Slices lie evenly if no gap between two of them departs from the others by more than a share of it, or by more mm.
EVEN_SHARE, EVEN_MM = 0.01, 0.01
# Numbers of a header are rounded, such as 0.333333.
ROUNDING = 1e-4

NO_AGENT = ("", "no", "none", "0", "n", "n/a", "na", "without")


class Header(NamedTuple):
    """What the header of one file says, in ms and mm.

    A number that is missing is None, and a missing text or list is empty.
    """

    file: str
    kind: str
    modality: str
    study: str
    series: str
    number: int | None
    description: str
    protocol: str
    agent: str
    technique: str
    echo: float | None
    repetition: float | None
    inversion: float | None
    size: tuple[int, int]
    spacing: tuple[float, ...]
    orientation: tuple[float, ...]
    position: tuple[float, ...]
    thickness: float | None
    several_frames: bool
    color: bool

    @property
    def is_placed(self) -> bool:
        """Whether the header says where the slice lies."""
        return (len(self.spacing), len(self.orientation), len(self.position)) == (2, 6, 3)


@dataclass(frozen=True)
class Series:
    """The files of one series in one folder.

    Attributes:
        headers: their headers, in the order of their names.
    """

    headers: list[Header]

    @property
    def first(self) -> Header:
        """The header of the first file, whose path stands for the series."""
        return self.headers[0]

    def __str__(self) -> str:
        number = "without a number" if self.first.number is None else str(self.first.number)
        return f"series {number} '{self.first.description or self.first.protocol}'"


def packages_are_installed() -> bool:
    """Whether the packages pydicom and itk can be imported."""
    return all(importlib.util.find_spec(name) is not None for name in ("pydicom", "itk"))


def is_dicom(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a DICOM file by its content. Files with the names of other images are not opened.

    Raises:
        InputError: the file cannot be read.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "IM0001").write_bytes(bytes(128) + b"DICM")
        ...     is_dicom(Path(folder, "IM0001")), is_dicom(Path(folder, "p1_t1.nii")), is_dicom(folder)
        (True, False, False)
    """
    file = Path(path)
    if file.name.lower().endswith(IMAGE_SUFFIXES) or not file.is_file():
        return False
    try:
        with file.open("rb") as stream:
            return stream.read(MAGIC_OFFSET + len(MAGIC))[MAGIC_OFFSET:] == MAGIC
    except OSError as error:
        raise InputError(
            f"{path}: not readable ({error.strerror}); change its permissions.", "unreadable file"
        ) from error


def _number(dataset: Any, name: str) -> float | None:
    values = _numbers(dataset, name)
    return values[0] if values else None


def _numbers(dataset: Any, name: str) -> tuple[float, ...]:
    try:
        value = dataset.get(name)
        if value is None or value == "":
            return ()
        values = tuple(map(float, value if isinstance(value, Iterable) and not isinstance(value, str) else [value]))
    except (ValueError, TypeError, OverflowError):  # a text where a number belongs
        return ()
    return values if np.isfinite(values).all() else ()


def _text(dataset: Any, name: str) -> str:
    value = dataset.get(name)
    words = "" if value is None else str(value)
    return " ".join("".join(sign if sign.isprintable() else " " for sign in words).split())


@lru_cache(KEPT_HEADERS)
def _header(path: str, size: int, changed: int) -> Header | None:
    """The header of a file, or None if it is no image. Size and time of change tell versions of the file apart."""
    if not is_dicom(path):
        return None
    if not packages_are_installed():
        raise InputError(
            f"{path}: DICOM files need the packages pydicom and itk; install both (pip install pydicom itk)."
        )
    import pydicom
    from pydicom.errors import BytesLengthException, InvalidDicomError

    try:
        # Values of odd form are common, and pydicom would warn of each in every file.
        with pydicom.config.disable_value_validation():
            header = _header_of(path, pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(TAGS)))
    except (*UNREADABLE_HEADER, BytesLengthException, InvalidDicomError) as error:
        raise _damaged(path, one_line(error)) from error
    if header is not None and not (header.series and header.study and min(header.size)):
        raise _damaged(path, "its header is incomplete")
    return header


def _header_of(path: str, data: Any) -> Header | None:
    kind, rows = _text(data, "SOPClassUID"), _number(data, "Rows")
    if _text(data.file_meta, "MediaStorageSOPClassUID") == DIRECTORY:
        return None
    if rows is None and kind not in ("", MR_IMAGE):  # a report, for instance
        return None
    number = _number(data, "SeriesNumber")
    return Header(
        file=path,
        kind=kind,
        modality=_text(data, "Modality"),
        study=_text(data, "StudyInstanceUID"),
        series=_text(data, "SeriesInstanceUID"),
        number=None if number is None else int(number),
        description=_text(data, "SeriesDescription"),
        protocol=_text(data, "ProtocolName"),
        agent=_text(data, "ContrastBolusAgent"),
        technique=_text(data, "ScanningSequence"),
        echo=_number(data, "EchoTime"),
        repetition=_number(data, "RepetitionTime"),
        inversion=_number(data, "InversionTime"),
        size=(int(_number(data, "Columns") or 0), int(rows or 0)),
        spacing=_numbers(data, "PixelSpacing"),
        orientation=_numbers(data, "ImageOrientationPatient"),
        position=_numbers(data, "ImagePositionPatient"),
        thickness=_number(data, "SliceThickness"),
        several_frames=(_number(data, "NumberOfFrames") or 1) > 1 or kind in MULTI_FRAME,
        color=(_number(data, "SamplesPerPixel") or 1) > 1 or _text(data, "PhotometricInterpretation")[:7] == "PALETTE",
    )


def _damaged(path: str, why: str) -> InputError:
    return InputError(f"{path}: damaged ({why}); copy it again.", "damaged file")


def _read_headers(folder: str | Path, names: Iterable[str]) -> tuple[list[Header], list[InputError]]:
    """The headers of the images among some files of a folder, and what is wrong with files that have none."""
    headers: list[Header] = []
    faults: list[InputError] = []
    for name in sorted(names):
        path = os.path.join(folder, name)
        if name.startswith(".") or name.lower().endswith(IMAGE_SUFFIXES) or not os.path.isfile(path):
            continue
        found = os.stat(path)
        try:
            if header := _header(path, found.st_size, found.st_mtime_ns):
                headers.append(header)
        except InputError as error:
            if not error.kind:
                raise
            faults.append(error)
    return headers, faults


def _by_series(headers: Iterable[Header]) -> list[Series]:
    series: dict[tuple[str, str], list[Header]] = {}
    for header in headers:
        series.setdefault((header.study, header.series), []).append(header)
    return [Series(found) for found in series.values()]


def series_in(folder: str | Path, names: Iterable[str]) -> list[Series]:
    """The series of images among some files of a folder. Damaged files are found when one of the series is read.

    Args:
        folder: the folder.
        names: names of files in it. Hidden files, and files named as other images, are left out.

    Raises:
        InputError: there is a DICOM file, and pydicom or itk is not installed.
    """
    return _by_series(_read_headers(folder, names)[0])


def series_of(path: str | Path) -> Series:
    """The series that a file belongs to.

    Raises:
        InputError: the file is no image, or it or another DICOM file of its folder is damaged or cannot be read: each
            may be a slice of the series.
    """
    folder, name = os.path.split(path)
    headers, faults = _read_headers(folder, os.listdir(folder or "."))
    if faults:
        raise faults[0]
    own = next(
        (series for series in _by_series(headers) if any(h.file == os.path.join(folder, name) for h in series.headers)),
        None,
    )
    if own is None:
        raise InputError(f"{path}: a DICOM file without an image; give a file of a series of images.", "not an image")
    return own


def series_files(path: str | Path) -> list[str]:
    """All files of the image that a path means: those of a series for a DICOM file, else the file itself.

    Raises:
        InputError: as in ``series_of``.

    Example:
        >>> series_files("p1_t1.nii.gz")
        ['p1_t1.nii.gz']
    """
    return [header.file for header in series_of(path).headers] if is_dicom(path) else [str(path)]


def series_file(path: str | Path) -> str:
    """The path of an image, which is the first file of a series if ``path`` is a folder with this series alone.

    Example:
        >>> series_file("p1_t1.nii.gz")
        'p1_t1.nii.gz'
    """
    series = series_in(path, os.listdir(path)) if os.path.isdir(path) else []
    return series[0].first.file if len(series) == 1 else str(path)


def arranged(series: Series) -> tuple[list[str], np.ndarray]:
    """The files of a series in the order of their slices, and the affine of the volume.

    The affine, (4, 4), is in nibabel's convention: axes run along the columns of a slice, along its rows, and along its
    normal, in mm to the right, to the front and up.

    Raises:
        InputError: the series is not one volume of gray values with evenly spaced slices.
    """
    first, where = series.first, f"{series.first.file}, {series}"
    if any(header.several_frames for header in series.headers):
        raise InputError(
            f"{where}: an enhanced file, which holds several slices; convert the series to NIfTI by dcm2niix.",
            "multi-frame DICOM",
        )
    if any(header.color for header in series.headers):
        raise InputError(
            f"{where}: its voxels are colors, not plain numbers; export the sequence again, as gray values.",
            "no plain numbers",
        )
    if not all(header.is_placed for header in series.headers):
        raise InputError(
            f"{where}: a header does not say where its slice lies (ImagePositionPatient, ImageOrientationPatient, "
            "PixelSpacing); export the original series.",
            "slice without a place",
        )
    for header in series.headers:
        same = np.allclose(header.orientation + header.spacing, first.orientation + first.spacing, atol=ROUNDING)
        if header.size != first.size or not same:
            raise InputError(
                f"{header.file}, {series}: its size or orientation differs from that of {first.file}; keep the slices "
                "of one volume.",
                "mixed series",
            )
    along_row, along_column = np.reshape(first.orientation, (2, 3))
    normal = np.cross(along_row, along_column)
    headers = sorted(series.headers, key=lambda header: float(normal @ header.position))
    positions = np.array([header.position for header in headers])
    _check_gaps(headers, positions, normal, where)
    lps = np.eye(4)
    lps[:3, 0], lps[:3, 1] = along_row * first.spacing[1], along_column * first.spacing[0]
    lps[:3, 2], lps[:3, 3] = (positions[-1] - positions[0]) / (len(headers) - 1), positions[0]
    return [header.file for header in headers], np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps


def _check_gaps(headers: Sequence[Header], positions: np.ndarray, normal: np.ndarray, where: str) -> None:
    if len(headers) < 2:
        raise InputError(f"{where}: one slice, which is no volume; copy the other slices too.", "missing slice")
    steps = np.diff(positions, axis=0)
    gaps = steps @ normal
    if gaps.min() < EVEN_MM:
        at = int(gaps.argmin())
        raise InputError(
            f"{where}: {headers[at].file} and {headers[at + 1].file} lie at one position, so the series holds several "
            "volumes, or a file twice; keep the slices of one volume.",
            "several volumes in a series",
        )
    usual = float(np.median(gaps))
    off = np.linalg.norm(steps - usual * normal, axis=1)
    if off.max() > max(EVEN_SHARE * usual, EVEN_MM):
        at = int(off.argmax())
        raise InputError(
            f"{where}: the step from {headers[at].file} to {headers[at + 1].file} is "
            f"{np.linalg.norm(steps[at]):.3g} mm and not {usual:.3g} mm straight on as elsewhere, so a slice is "
            "missing or slices are uneven; copy the whole series, or resample it.",
            "missing slice",
        )


# Words in descriptions, which are looked for in small letters.
_T = r"(?<![a-z])(?:ax|sag|cor|tra|s|c)?"
_WEIGHTING = {
    "t1": re.compile(rf"{_T}t1(?!\d)|mp-?rage|bravo|f?spgr"),
    "t2": re.compile(rf"{_T}t2(?!\d)"),
    "flair": re.compile(r"flair|dark[ _-]?fl|tirm"),
}
_OTHER = re.compile(
    r"t2[ _-]?(?:\*|star)|t2s(?![a-z])|"
    r"(?<![a-z])(?:hemo|swi|swip|swan|venbold|mag|pha|phase|min-?ip|mip|mpr_range|"
    r"dwi|dti|diff\w*|adc|trace\w*|tensor|b\d{3,4}|ep2d\w*|epi|hardi|dki|noddi|"
    r"perf\w*|pwi|dsc|dce|dyn\w*|twist|cbf|r?cbv|mtt|ttp|tmax|asl|p?casl|bold|fmri|rest|resting\w*|"
    r"loc|loc\w*r|scout|aahscout|survey|pilot|(?:3|three)[ _-]?pl(?:ane)?|cal|calibration|asset|smartbrain|"
    r"tof|mra|mrv|angio\w*|veno\w*|mrs|spectro\w*|svs|csi|press|"
    r"field|fieldmap|b0|map|maps|mapit|sub|subtr\w*|ciss|fiesta|stir|pd|"
    r"screen\w*|report\w*|summary|fused?|fusion)(?![a-z])"
)
# With T1 in the description they are T1 images, without it T2*.
_GRADIENT_ECHO = re.compile(r"(?<![a-z])(?:gre|ffe|fl2d|merge|medic)(?![a-z])")
_WITH_AGENT = re.compile(
    r"(?<![a-z])(?:gd|gad[a-z]*|ce|post(?![ _-]?op)(?:gd|gad[a-z]*|con[a-z]*)?|[ck]ontrast|enhanced|km|mdc|"
    r"dotarem|magnevist|multihance|prohance|omniscan|clariscan|eovist|t1w?(?:ce?|gd|gad|km|post|con))(?![a-z])|"
    r"\+ ?(?:c|k|gd|km)(?![a-z])|(?<![a-z])t?1?c ?\+|t1w?[ _-]c(?![a-z])"
)
_WITHOUT_AGENT = re.compile(
    r"(?<![a-z])(?:pre(?:gd|gad[a-z]*|con[a-z]*)?|without|w/?o|non?[ _-]?(?:contrast|gd|gad|ce|enhanced)|ohne|nativ|"
    r"native|plain|unenhanced)(?![a-z])"
)


def described(text: str) -> tuple[str, bool | None] | None:
    """What a description says of a series.

    Returns:
        The weighting (t1, t2 or flair, or an empty text for something else, such as diffusion), and whether there is a
        contrast agent, or None if the text does not say that. None if the text does not tell the weighting.

    Example:
        >>> described("AX T1 POST GD"), described("t1_mprage_sag pre"), described("SAG 3D T1")
        (('t1', True), ('t1', False), ('t1', None))
        >>> described("t2_tirm_tra_dark-fluid"), described("AX T2* GRE"), described("3-plane loc"), described("Brain")
        (('flair', None), ('', None), ('', None), None)
    """
    words = text.lower()
    said = {name for name, pattern in _WEIGHTING.items() if pattern.search(words)}
    if _OTHER.search(words) or (_GRADIENT_ECHO.search(words) and "t1" not in said):
        return "", None
    # T1 FLAIR is a T1 image with an inversion, and T2 FLAIR is what is called FLAIR.
    weighting = (
        "t1" if said in ({"t1"}, {"t1", "flair"}) else "flair" if "flair" in said else "t2" if "t2" in said else ""
    )
    if not weighting or said == {"t1", "t2"}:
        return None
    agent = False if _WITHOUT_AGENT.search(words) else True if _WITH_AGENT.search(words) else None
    return weighting, agent


def weighting_by_times(header: Header) -> str | None:
    """The weighting that the times of a pulse sequence give, or None if they are missing or of another sequence."""
    echo, repetition, inversion = header.echo, header.repetition, header.inversion or 0.0
    if echo is None or repetition is None or "EP" in header.technique:
        return None
    gradient = "GR" in header.technique
    if echo >= 60 and inversion >= 1400:
        return "flair"
    if echo >= 60 and repetition >= 2000 and not inversion and not gradient:
        return "t2"
    # A gradient echo that is late shows T2*.
    if echo <= (10 if gradient else 30) and (repetition <= 1000 or 400 <= inversion <= 1300):
        return "t1"
    return None


@dataclass(frozen=True)
class Fit:
    """A series and the sequence that it shows.

    Attributes:
        series: the series.
        sequence: one of ``SEQUENCES``.
        why: what tells this.
        doubt: what contradicts it, or an empty text.
        agent_is_described: whether the description speaks of a contrast agent, or of none.
    """

    series: Series
    sequence: str
    why: str
    doubt: str = ""
    agent_is_described: bool = False


@dataclass(frozen=True)
class Choice:
    """The series of a study that are taken for the sequences.

    Attributes:
        chosen: for each sequence that was found, its series.
        left_out: the other series of the study.
        several: the sequences for which there was more than one series.
    """

    chosen: dict[str, Fit] = field(default_factory=dict)
    left_out: list[Series] = field(default_factory=list)
    several: list[str] = field(default_factory=list)

    @property
    def scattered(self) -> list[tuple[Series, Series]]:
        """The chosen series of which another folder holds files, too, each with those files."""
        return [
            (fit.series, other)
            for fit in self.chosen.values()
            for other in self.left_out
            if other.first.series == fit.series.first.series
        ]

    def __str__(self) -> str:
        taken = [
            (
                f"{SEQUENCE_TITLES[name]}: {self.chosen[name].series} ({self.chosen[name].why})"
                if name in self.chosen
                else f"{SEQUENCE_TITLES[name]}: none"
            )
            for name in SEQUENCES
        ]
        return "; ".join([*taken, f"left out: {', '.join(map(str, self.left_out)) or 'none'}"])


def _fit(series: Series) -> Fit | None:
    header = series.first
    if header.modality not in ("", "MR"):
        return None
    told, why = described(header.description), "by its description"
    if told is None:
        # The name of a protocol may be that of the whole examination, and it then says nothing of the series.
        told, why = described(header.protocol), "by its protocol's name"
    if told is None or (not told[0] and why != "by its description"):
        times = weighting_by_times(header)
        told = (times, None) if times else None
        inversion = f", TI {header.inversion:g}" if header.inversion else ""
        why = f"by TE {header.echo:g}, TR {header.repetition:g}{inversion} ms" if times else ""
    if told is None or not told[0]:
        return None
    weighting, agent = told
    if weighting != "t1":
        return Fit(series, weighting, why)
    recorded = header.agent.lower() not in NO_AGENT
    if agent is None:
        return Fit(series, "t1ce" if recorded else "t1", f"{why}, {'an' if recorded else 'no'} agent is recorded")
    doubt = ""
    if agent != recorded:
        doubt = f"{series}: its description says that there is {'a' if agent else 'no'} contrast agent, but "
        doubt += f"ContrastBolusAgent is '{header.agent}'"
    return Fit(series, "t1ce" if agent else "t1", why, doubt, True)


def _worth(series: Series) -> tuple[bool, int, float]:
    header = series.first
    is_volume = header.is_placed and not header.several_frames and not header.color
    return is_volume, len(series.headers), -(header.thickness or np.inf)


def choose(study: Sequence[Series]) -> Choice:
    """Choose a series of a study for each sequence.

    Descriptions decide before times of the pulse sequence. If several series fit a sequence, the one with the most
    slices is taken, then the one with the thinnest, and then the one with the lowest number.
    """
    fits = [fit for fit in map(_fit, study) if fit]
    enhanced = [fit for fit in fits if fit.sequence == "t1ce"]
    if all(fit.sequence != "t1" for fit in fits) and any(fit.agent_is_described for fit in enhanced):
        # Some scanners record the agent for the whole examination. A plain "T1" beside a "T1 post" is then the T1.
        fits = [_before_agent(fit) if fit in enhanced and not fit.agent_is_described else fit for fit in fits]
    chosen: dict[str, Fit] = {}
    several: list[str] = []
    for sequence in SEQUENCES:
        found = [fit for fit in fits if fit.sequence == sequence]
        # The sort keeps the order of equal ones.
        found.sort(key=lambda fit: np.inf if fit.series.first.number is None else fit.series.first.number)
        found.sort(key=lambda fit: _worth(fit.series), reverse=True)
        if not found:
            continue
        best = chosen[sequence] = found[0]
        if len({fit.series.first.series for fit in found}) > 1:
            several.append(sequence)
            first, second = (_worth(fit.series) for fit in found[:2])
            names = ("a volume of gray values", f"most slices of {len(found)}", f"thinnest of {len(found)}")
            rule = next((name for name, a, b in zip(names, first, second, strict=True) if a != b), "lowest number")
            chosen[sequence] = Fit(best.series, sequence, f"{best.why}, {rule}", best.doubt, best.agent_is_described)
    taken = [fit.series for fit in chosen.values()]
    return Choice(chosen, [series for series in study if series not in taken], several)


def _before_agent(fit: Fit) -> Fit:
    doubt = (
        f"{fit.series}: another series is described as the one with a contrast agent, so this one is taken as T1, but "
    )
    doubt += f"ContrastBolusAgent is '{fit.series.first.agent}'"
    return Fit(fit.series, "t1", "by the description of the series with the agent", doubt)
