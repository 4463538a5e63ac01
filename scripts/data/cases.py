# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Cases in folders.

A case is a folder that holds the four sequences under the file names of its release. The file names begin with the name
of the case. Other content (csv tables, hidden files, other folders) is ignored. In the layout of the Medical
Segmentation Decathlon's Task01 a case is one four-dimensional file in ``imagesTr`` or ``imagesTs``. No name there says
which channel is which sequence, so the setting ``channel_order`` says it. A patient's study of DICOM series is a case
too, under the name of the deepest folder that holds all of its series (``scripts.data.dicom``).
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from scripts.brats import (
    ANY_NAME,
    DECATHLON,
    DICOM,
    RELEASES,
    SEQUENCE_TITLES,
    SEQUENCES,
    Release,
    case_name,
    in_network_order,
    released_file,
    sequences_told,
)
from scripts.data.dicom import Series, is_dicom, refuse_two_patients, series_file, series_in
from scripts.data.dicom_choice import Choice, choose
from scripts.utils.errors import InputError

# Folders of images in the Decathlon's layout, with the folders of their label maps.
DECATHLON_IMAGES = {"imagesTr": "labelsTr", "imagesTs": None}
_NIFTI = re.compile(r"[^.].*\.nii(\.gz)?", re.DOTALL)
# The segmentation of BraTS20_Training_355 still has its name from before the release: W39_1998.09.19_Segm.nii.
_UNRELEASED_LABEL = re.compile(r"[^.].*_segm\.nii(\.gz)?", re.IGNORECASE)
# It is in an entry's ``image`` for a sequence that the case lacks. No image has such a name.
NO_FILE = "missing"
LOOKED_FOR = (
    f"case folders with {' or '.join(f'{release.file_names} ({release.name})' for release in RELEASES)}, or "
    f"four-dimensional files in {' or '.join(DECATHLON_IMAGES)} ({DECATHLON.name}), or folders of DICOM series"
)


@dataclass
class Case:
    """One patient's files in one folder.

    Attributes:
        images: path of each sequence that the case has; of a DICOM series, its first file.
        label: path of the segmentation.
        file: the one file that holds all four sequences, instead of ``images``.
        doubled: further files of a sequence, or of the segmentation, that the case has already.
        choice: which DICOM series are taken for the sequences; None for other files.
    """

    name: str
    folder: Path
    release: Release
    images: dict[str, Path] = field(default_factory=dict)
    label: Path | None = None
    file: Path | None = None
    doubled: list[Path] = field(default_factory=list)
    choice: Choice | None = None

    @property
    def image(self) -> str | list[str]:
        """The ``image`` of the case's entry: four paths in the network's order, or one path of a file of all four.

        ``NO_FILE`` is in the place of a sequence that the case lacks.
        """
        return [str(self.images.get(s, NO_FILE)) for s in SEQUENCES] if self.file is None else str(self.file)

    @property
    def missing(self) -> list[str]:
        """Names of the files, or titles of the series, that the case lacks of its four sequences."""
        absent = missing_sequences(self.image)
        if self.choice is not None:
            return [f"series of {SEQUENCE_TITLES[sequence]}" for sequence in absent]
        if self.release is ANY_NAME:
            return [f"file whose name says {SEQUENCE_TITLES[sequence]}" for sequence in absent]
        names = dict(zip(SEQUENCES, self.release.suffixes, strict=True))
        return [f"{self.name}{self.release.separator}{names[sequence]}.nii.gz" for sequence in absent]


def _read_folder(folder: Path, files: Sequence[str]) -> Iterator[Case]:
    cases: dict[tuple[str, str], Case] = {}
    for file in sorted(files):
        if (found := released_file(file)) is None:
            continue
        case = cases.setdefault((found.release.name, found.case), Case(found.case, folder, found.release))
        if found.sequence in case.images or (found.sequence is None and case.label is not None):
            case.doubled.append(folder / file)
        elif found.sequence is None:
            case.label = folder / file
        else:
            case.images[found.sequence] = folder / file
    if folder.name in DECATHLON_IMAGES:
        own = [file for file in sorted(files) if _NIFTI.fullmatch(file) and not released_file(file)]
        yield from (_decathlon_case(folder / file) for file in own)
    # A segmentation without images is no case. A folder of predictions, for instance, holds such files.
    found_cases = [case for case in cases.values() if case.images]
    unreleased = [file for file in sorted(files) if _UNRELEASED_LABEL.fullmatch(file)]
    if len(found_cases) == 1 and found_cases[0].label is None and len(unreleased) == 1:
        found_cases[0].label = folder / unreleased[0]
    yield from found_cases


def _decathlon_case(file: Path) -> Case:
    labels = DECATHLON_IMAGES.get(file.parent.name)
    label = file.parent.parent / labels / file.name if labels else None
    return Case(case_name(file), file.parent, DECATHLON, file=file, label=label if label and label.is_file() else None)


def _common_folder(files: Iterable[str]) -> Path:
    return Path(os.path.commonpath([os.path.dirname(os.path.abspath(file)) for file in files]))


def _dicom_cases(found: Sequence[Series], given: Mapping[str, str]) -> Iterator[Case]:
    studies: dict[tuple[str, str], list[Series]] = {}
    # Reports and images of other machines may lie beside a study, or be one.
    for series in found:
        if series.first.modality in ("", "MR"):
            studies.setdefault((series.first.patient, series.first.study), []).append(series)
    if given and len(studies) != 1:
        raise InputError(
            f"--{next(iter(given))}: names a series of one DICOM study, and CASE holds {len(studies)}; give the folder "
            "of one, or files of all sequences without CASE."
        )
    cases: dict[Path, tuple[Case, Series]] = {}
    for key, study in studies.items():
        folder, first = _common_folder(series.first.file for series in study), study[0]
        if folder in cases:
            _, other = cases[folder]
            raise InputError(
                f"{folder}: holds the DICOM series of several studies or patients ({other.first.file} and "
                f"{first.first.file}); give each study of a patient a folder of its own, or name the series of each "
                "case in a --datalist_file."
            )
        choice = choose([series for series in found if (series.first.patient, series.first.study) == key], given)
        images = {sequence: Path(fit.series.first.file) for sequence, fit in choice.chosen.items()}
        cases[folder] = Case(folder.name, folder, DICOM, images, choice=choice), first
    # An incomplete study with two patients is one whose PatientID is wrong in a part of it, or whose parts were mixed.
    for case, series in cases.values():
        for _, other in cases.values():
            if other.first.study == series.first.study and case.missing:
                refuse_two_patients(series.first, other.first)
    yield from (case for case, _ in cases.values())


def _refuse_unreadable(error: OSError) -> None:
    # A folder that is absent, or was removed in the meantime, has no cases.
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        remedy = "so its cases would be missing; make it readable, or move it out of --dataset_dir."
        raise InputError(f"{error.filename}: cannot be read ({error.strerror}), {remedy}") from error


def find_cases(dataset_dir: str | Path, given: Mapping[str, str] | None = None) -> list[Case]:
    """All cases in ``dataset_dir`` and below, complete or not, ordered by name.

    Hidden folders are skipped, and an absent folder has no cases. ``dataset_dir`` may also be the folder of one case,
    or one four-dimensional file. A study of DICOM series in which nothing fits a sequence is a case without images.
    ``given`` are numbers or folders of series of the one study there, by sequence.

    Raises:
        InputError: a folder cannot be read, several studies share one, ``given`` fits no series, or pydicom or itk is
            missing.
    """
    if Path(dataset_dir).is_file() and not given:
        return [_decathlon_case(Path(dataset_dir))]
    cases: list[Case] = []
    series: list[Series] = []
    seen: set[str] = set()
    # Datasets often consist of links. A link that leads back up must not cause an endless loop.
    for folder, folders, files in os.walk(dataset_dir, onerror=_refuse_unreadable, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        # Some programs unpack x.nii.gz to a folder of this name. It is in the place of the file.
        decathlon = Path(folder).name in DECATHLON_IMAGES  # also where a path ends in a slash
        unpacked = [name for name in folders if released_file(name) or (decathlon and _NIFTI.fullmatch(name))]
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in unpacked)
        cases.extend(_read_folder(Path(folder), [*files, *unpacked]))
        series.extend(series_in(folder, files))
    cases.extend(_dicom_cases(series, given or {}))
    return sorted(cases, key=lambda case: (case.name, str(case.folder)))


def image_files(image: str | Path | Sequence[str]) -> list[str]:
    """The files of an entry's ``image``: those of its sequences, in their order, or a four-dimensional file."""
    return [str(image)] if isinstance(image, (str, Path)) else [str(path) for path in image if path != NO_FILE]


def image_name(image: str | Path | Sequence[str]) -> str:
    """Name of the case of a resolved ``image``: by the name of its first file, or for DICOM series by their folder."""
    files = image_files(image)
    return _common_folder(files).name if is_dicom(files[0]) else case_name(files[0])


def missing_sequences(image: str | Path | Sequence[str]) -> list[str]:
    """The sequences that a resolved ``image`` lacks."""
    if isinstance(image, (str, Path)):
        return []
    return [sequence for sequence, path in zip(SEQUENCES, image, strict=True) if path == NO_FILE]


def resolve_image(image: str | Path | Sequence[str]) -> str | list[str]:
    """The files that an entry's ``image`` means: four in the network's order, or a single four-dimensional file.

    ``image`` is four paths, or one path of a four-dimensional file or of the folder of one case. Four paths are put
    into the network's order if their names tell the sequences. Otherwise they are taken to be in this order, and
    ``NO_FILE`` may be in the place of a sequence. One of the four may be the folder of one DICOM series.

    Raises:
        InputError: the folder does not hold exactly one complete case.
    """
    paths = [str(image)] if isinstance(image, (str, Path)) else [str(path) for path in image]
    if len(paths) > 1:
        told = sequences_told(paths) if len(paths) == len(SEQUENCES) else None
        return [series_file(path) for path in (in_network_order(paths, told) if told else paths)]
    if not Path(paths[0]).is_dir():
        return paths[0]
    folder = Path(paths[0])
    own = list(_read_folder(folder, os.listdir(folder))) or [case for case in find_cases(folder) if case.choice]
    if doubtful := [case.choice.doubt for case in own if case.choice and case.choice.doubt]:
        raise InputError(
            f"{folder}: {doubtful[0]}; name the series of each sequence in a --datalist_file.",
            "contradicting contrast agent",
        )
    cases = [case for case in own if not case.missing and case.file is None]
    if len(cases) != 1:
        raise InputError(f"{folder}: {len(cases)} complete cases; the folder of an image holds one, {LOOKED_FOR}.")
    return cases[0].image
