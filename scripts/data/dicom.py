# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""DICOM series: which files belong together, and where their slices lie.

The path of any one file of a series stands for the whole series: all files in its folder with the same
SeriesInstanceUID. This module reads headers alone. ``scripts.data.dicom_choice`` tells which sequence a series shows,
and ``scripts.data.images`` reads the voxels.
"""

import importlib.util
import io
import os
import re
import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scripts.brats import IMAGE_SUFFIXES
from scripts.utils.errors import InputError, one_line

# A DICOM file has these bytes after 128 others. Some archives leave out the 128, or both, and the first element comes:
# one of group 2 or 8 with a type of two letters, or with a short length.
MAGIC = b"DICM"
MAGIC_OFFSET = 128
_FIRST_ELEMENT = re.compile(rb"[\x02\x08]\0[\0-\x20]\0(?:[A-Z]{2}|[\0-\x40]\0\0\0)", re.DOTALL)

# Kinds of files (SOPClassUID).
DIRECTORY = "1.2.840.10008.1.3.10"
MR_IMAGE = "1.2.840.10008.5.1.4.1.1.4"
# Enhanced MR images, those of color, and older ones that were converted.
MULTI_FRAME = tuple(f"{MR_IMAGE}.{number}" for number in (1, 3, 4))

# Compressions (TransferSyntaxUID), and those among them that GDCM reads: JPEG, JPEG-LS and JPEG 2000.
COMPRESSED = "1.2.840.10008.1.2.4."
READ_COMPRESSED = tuple(f"{COMPRESSED}{number}" for number in (50, 51, 57, 70, 80, 81, 90, 91))

# DICOM's names of what is read from a header, by the fields of ``Header``. What ``OTHERS`` names is read by hand.
TEXTS = {
    "kind": "SOPClassUID",
    "modality": "Modality",
    "patient": "PatientID",
    "study": "StudyInstanceUID",
    "series": "SeriesInstanceUID",
    "description": "SeriesDescription",
    "protocol": "ProtocolName",
    "agent": "ContrastBolusAgent",
    "technique": "ScanningSequence",
    "date": "AcquisitionDate",
    "time": "AcquisitionTime",
    "photometric": "PhotometricInterpretation",
}
NUMBERS = {
    "number": "SeriesNumber",
    "instance": "InstanceNumber",
    "echo": "EchoTime",
    "repetition": "RepetitionTime",
    "inversion": "InversionTime",
    "thickness": "SliceThickness",
    "intercept": "RescaleIntercept",
}
LISTS = {"spacing": "PixelSpacing", "orientation": "ImageOrientationPatient", "position": "ImagePositionPatient"}
OTHERS = ("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "BitsAllocated", "PixelData")

# Errors that pydicom raises for a file that ends too early or is no DICOM file after its first bytes.
FAULTS = (OSError, EOFError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, struct.error, zlib.error)

# Elements of more bytes are not read: the voxels, of which the length is enough. Compressed ones have no length.
LARGE = 2**16
UNDEFINED_LENGTH = 2**32 - 1

# Slices lie evenly if no gap between two of them departs from the others by more than a share of it, or by more mm.
EVEN_SHARE, EVEN_MM = 0.01, 0.01
# Numbers of a header are rounded, such as 0.333333.
ROUNDING = 1e-4


class Header(NamedTuple):
    """What the header of one file says, in ms and mm. A missing number is None, a missing text or list is empty.

    ``patient`` is only compared, and written nowhere.
    """

    file: str
    kind: str
    modality: str
    study: str
    series: str
    number: float | None
    instance: float | None
    description: str
    protocol: str
    agent: str
    technique: str
    date: str
    time: str
    photometric: str
    echo: float | None
    repetition: float | None
    inversion: float | None
    size: tuple[int, int]
    spacing: tuple[float, ...]
    orientation: tuple[float, ...]
    position: tuple[float, ...]
    thickness: float | None
    intercept: float | None
    several_frames: bool
    color: bool
    syntax: str = ""
    patient: str = ""
    lacks_voxels: bool = False

    @property
    def is_placed(self) -> bool:
        """Whether the header says where the slice lies."""
        return (len(self.spacing), len(self.orientation), len(self.position)) == (2, 6, 3)


@dataclass(frozen=True)
class Series:
    """The headers of the files of one series in one folder, in the order of their names."""

    headers: list[Header]

    @property
    def first(self) -> Header:
        """The header of the file whose path stands for the series."""
        return self.headers[0]

    @property
    def time(self) -> str:
        """When the first of the slices was acquired: year to second, 14 digits and a fraction; empty if not all say."""
        times = [(header.date or "0" * 8) + header.time for header in self.headers]
        return min(times) if all(header.time for header in self.headers) else ""

    @property
    def inverted(self) -> bool:
        """Whether the highest value is black."""
        return self.first.photometric == "MONOCHROME1"

    def __str__(self) -> str:
        number = "without a number" if self.first.number is None else f"{self.first.number:.0f}"
        return f"series {number} '{self.first.description or self.first.protocol}'"


def packages_are_installed(*names: str) -> bool:
    """Whether these packages can be imported. An import of itk itself takes seconds."""
    return all(importlib.util.find_spec(name) is not None for name in names)


def is_dicom(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a DICOM file by its content. Files with the names of other images are not opened."""
    file = Path(path)
    if file.name.lower().endswith(IMAGE_SUFFIXES) or not file.is_file():
        return False
    try:
        with file.open("rb") as stream:
            return _preamble(stream.read(MAGIC_OFFSET + len(MAGIC))) is not None
    except OSError as error:
        told = f"{path}: not readable ({error.strerror}); change its permissions."
        raise InputError(told, "unreadable file") from error


def _preamble(start: bytes) -> bytes | None:
    """What the first bytes of a DICOM file lack before its first element; None if it is none."""
    if start[MAGIC_OFFSET:] == MAGIC:
        return b""
    if start.startswith(MAGIC):
        return bytes(MAGIC_OFFSET)
    return bytes(MAGIC_OFFSET) + MAGIC if _FIRST_ELEMENT.match(start) else None


def complete_file(path: str | os.PathLike[str]) -> bytes | None:
    """The content of a DICOM file with the 128 bytes and the mark that it lacks; None if it lacks nothing."""
    with Path(path).open("rb") as stream:
        start = stream.read(MAGIC_OFFSET + len(MAGIC))
        missing = _preamble(start)
        return missing + start + stream.read() if missing else None


def read_dataset(path: str | os.PathLike[str], **options: Any) -> Any:
    """``pydicom.dcmread`` with these options, also for a file without its first 128 bytes."""
    import pydicom

    content = complete_file(path)
    return pydicom.dcmread(path if content is None else io.BytesIO(content), **options)


def _numbers(dataset: Any, name: str) -> tuple[float, ...]:
    try:
        values = np.atleast_1d(np.asarray(dataset.get(name), dtype=float))
    except (ValueError, TypeError, OverflowError):  # a text where a number belongs
        return ()
    return tuple(values.tolist()) if np.isfinite(values).all() else ()


def _number(dataset: Any, name: str) -> float | None:
    return next(iter(_numbers(dataset, name)), None)


def _text(dataset: Any, name: str) -> str:
    value = dataset.get(name)
    words = "" if value is None else str(value)
    return " ".join("".join(sign if sign.isprintable() else " " for sign in words).split())


# A header takes about 1 kB of memory, so those of some dozens of cases are kept.
@lru_cache(50_000)
def _header(path: str, *state: int) -> Header | None:
    # None if the file is no image. ``state`` tells versions of the file apart; ctime also where mtime was set back.
    if not is_dicom(path):
        return None
    if not packages_are_installed("pydicom", "itk"):
        raise InputError(f"{path}: DICOM files need pydicom and itk; install both (pip install pydicom itk).")
    import pydicom
    from pydicom.errors import BytesLengthException, InvalidDicomError

    try:
        # Values of odd form are common, and pydicom would warn of each in every file.
        with pydicom.config.disable_value_validation():
            tags = [*TEXTS.values(), *NUMBERS.values(), *LISTS.values(), *OTHERS]
            header = _header_of(path, read_dataset(path, defer_size=LARGE, specific_tags=tags))
    except (*FAULTS, BytesLengthException, InvalidDicomError) as error:
        raise _damaged(path, one_line(error)) from error
    if header is not None and not (header.series and header.study and min(header.size)):
        raise _damaged(path, "its header is incomplete")
    return header


def _header_of(path: str, data: Any) -> Header | None:
    fields: dict[str, Any] = {field: _text(data, name) for field, name in TEXTS.items()}
    fields |= {field: _number(data, name) for field, name in NUMBERS.items()}
    fields |= {field: _numbers(data, name) for field, name in LISTS.items()}
    rows, columns = _number(data, "Rows"), _number(data, "Columns")
    if _text(data.file_meta, "MediaStorageSOPClassUID") == DIRECTORY:
        return None
    if rows is None and fields["kind"] not in ("", MR_IMAGE):  # a report, for instance
        return None
    return Header(
        file=path,
        size=(int(columns or 0), int(rows or 0)),
        several_frames=(_number(data, "NumberOfFrames") or 1) > 1 or fields["kind"] in MULTI_FRAME,
        color=(_number(data, "SamplesPerPixel") or 1) > 1 or fields["photometric"][:7] == "PALETTE",
        syntax=_text(data.file_meta, "TransferSyntaxUID"),
        lacks_voxels="PixelData" in data and _lacks_voxels(data),
        **fields,
    )


def _lacks_voxels(data: Any) -> bool:
    # ITK would fill a slice that is too short with what is in memory.
    from pydicom.pixels.utils import get_expected_length

    length = data.get_item("PixelData", keep_deferred=True).length
    return length != UNDEFINED_LENGTH and length < get_expected_length(data)


def _damaged(path: str, why: str) -> InputError:
    return InputError(f"{path}: damaged ({why}); copy it again.", "damaged file")


def series_in(folder: str | Path, names: Iterable[str], complete: bool = False) -> list[Series]:
    """The series of images among some files of a folder, by their names; hidden files and other images are left out.

    Damaged files are left out, too, and are found when one of the series is read. If the series must be ``complete``,
    they raise an InputError, since each may be a slice. Another one says that pydicom or itk is not installed.
    """
    series: dict[tuple[str, str], list[Header]] = {}
    for name in sorted(names):
        path = os.path.join(folder, name)
        if name.startswith(".") or name.lower().endswith(IMAGE_SUFFIXES) or not os.path.isfile(path):
            continue
        found = os.stat(path)
        try:
            if header := _header(path, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns):
                series.setdefault((header.study, header.series), []).append(header)
        except InputError as error:
            if complete or not error.kind:
                raise
    return [Series(headers) for headers in series.values()]


def series_of(path: str | Path) -> Series:
    """The complete series that a file belongs to.

    Raises:
        InputError: the file is no image, or it or another DICOM file of its folder is damaged or cannot be read.
    """
    folder, name = os.path.split(path)
    for series in series_in(folder, os.listdir(folder or "."), complete=True):
        if any(header.file == os.path.join(folder, name) for header in series.headers):
            return series
    raise InputError(f"{path}: a DICOM file without an image; give a file of a series of images.", "not an image")


def series_files(path: str | Path) -> list[str]:
    """All files of the image that a path means: those of a series for a DICOM file, else the file itself."""
    return [header.file for header in series_of(path).headers] if is_dicom(path) else [str(path)]


def series_file(path: str | Path) -> str:
    """The path of an image, which is the first file of a series if ``path`` is a folder with this series alone."""
    series = series_in(path, os.listdir(path)) if os.path.isdir(path) else []
    return series[0].first.file if len(series) == 1 else str(path)


def arranged(series: Series) -> tuple[list[str], np.ndarray]:
    """The files of a series in the order of their slices, and the affine of the volume, (4, 4).

    Axes run along the columns of a slice, along its rows and along its normal. Places are in mm to the right, to the
    front and up, as in nibabel.

    Raises:
        InputError: the series is not one volume of gray values with evenly spaced slices, or a slice lacks voxels.
    """
    first, where = series.first, f"{series.first.file}, {series}"
    kind = ""
    if any(header.several_frames for header in series.headers):
        kind = "multi-frame DICOM"
        fault = "an enhanced file, which holds several slices; convert the series to NIfTI by dcm2niix."
    elif any(header.color for header in series.headers):
        kind = "no plain numbers"
        fault = "its voxels are colors, not plain numbers; export the sequence again, as gray values."
    elif not all(header.is_placed for header in series.headers):
        kind = "slice without a place"
        fault = "a header lacks ImagePositionPatient, ImageOrientationPatient or PixelSpacing; export the series again."
    elif unread := {
        header.syntax
        for header in series.headers
        if header.syntax.startswith(COMPRESSED) and header.syntax not in READ_COMPRESSED
    }:
        kind = "other format"
        fault = f"compressed in a way that is not read ({_syntax_name(min(unread))}); export it without compression."
    if kind:
        raise InputError(f"{where}: {fault}", kind)
    for header in series.headers:
        if header.lacks_voxels:
            raise _damaged(header.file, "it has fewer voxels than its header says")
        refuse_two_patients(first, header)
        same = np.allclose(header.orientation + header.spacing, first.orientation + first.spacing, atol=ROUNDING)
        if header.size != first.size or not same:
            told = f"its size or orientation differs from that of {first.file}; keep the slices of one volume."
            raise InputError(f"{header.file}, {series}: {told}", "mixed series")
    along_row, along_column = np.reshape(first.orientation, (2, 3))
    normal = np.cross(along_row, along_column)
    headers = sorted(series.headers, key=lambda header: float(normal @ header.position))
    positions = np.array([header.position for header in headers])
    _check_gaps(headers, positions, normal, where)
    lps = np.eye(4)
    lps[:3, 0], lps[:3, 1] = along_row * first.spacing[1], along_column * first.spacing[0]
    lps[:3, 2], lps[:3, 3] = (positions[-1] - positions[0]) / (len(headers) - 1), positions[0]
    return [header.file for header in headers], np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps


def _syntax_name(syntax: str) -> str:
    from pydicom.uid import UID

    return UID(syntax).name


def slice_numbers(path: str | Path) -> list[int]:
    """The numbers (InstanceNumber) of the slices of a series in the order of ``arranged``; empty if one is missing."""
    series = series_of(path)
    numbers = {header.file: header.instance for header in series.headers}
    found = [numbers[file] for file in arranged(series)[0]]
    return [] if None in found else [int(number) for number in found if number is not None]


def refuse_two_patients(first: Header, other: Header) -> None:
    """Refuse two files of one case, or of one study, that are of two patients."""
    if first.patient != other.patient:
        raise InputError(
            f"{first.file} and {other.file}: two patients, by PatientID; keep the files of one patient together, and "
            "correct a wrong PatientID.",
            "several patients",
        )


def check_patient(paths: Sequence[str]) -> None:
    """Refuse DICOM series among the files of a case that are of two patients."""
    series = [series_of(path) for path in paths if is_dicom(path)]
    for other in series[1:]:
        refuse_two_patients(series[0].first, other.first)


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
    allowed = max(EVEN_SHARE * usual, EVEN_MM)
    usual_step = np.median(steps, axis=0)
    if off.min() > allowed and np.linalg.norm(steps - usual_step, axis=1).max() <= allowed:
        aside = float(np.linalg.norm(usual_step - usual * normal))
        raise InputError(
            f"{where}: each slice lies {aside:.3g} mm beside the one before, as with a tilted gantry; resample the "
            "series to slices straight above each other.",
            "missing slice",
        )
    if off.max() > allowed:
        at = int(off.argmax())
        raise InputError(
            f"{where}: the step from {headers[at].file} to {headers[at + 1].file} is "
            f"{np.linalg.norm(steps[at]):.3g} mm and not {usual:.3g} mm straight on as elsewhere, so a slice is "
            "missing or slices are uneven; copy the whole series, or resample it.",
            "missing slice",
        )
