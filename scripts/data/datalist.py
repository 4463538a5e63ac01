# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""From a folder of BraTS cases to MONAI datalists: recognising releases, splitting, reading and writing splits.

A case is a folder that holds the four sequences under the names of its release; the case's name is what the files'
names begin with. Anything else (csv tables, hidden files, other folders) is ignored.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from monai.data import partition_dataset
from scripts.errors import InputError
from scripts.files import save_json
from scripts.transforms import ET_LABELS, check_et_label

logger = logging.getLogger(__name__)

# The network's input channels, in this order.
SEQUENCES = ("t1", "t1ce", "t2", "flair")
SELECTIONS = ("training", "validation", "all")


@dataclass(frozen=True)
class Release:
    """How a family of BraTS releases names its files.

    Attributes:
        name: shown to the user.
        separator: between the case's name and the sequence's.
        suffixes: the sequences' names in the order of ``SEQUENCES``.
        et_label: value of the enhancing tumour in its label maps.
    """

    name: str
    separator: str
    suffixes: tuple[str, str, str, str]
    et_label: int

    def file_pattern(self) -> re.Pattern[str]:
        """Match ``<case><separator><sequence>.nii[.gz]``; groups: case, sequence."""
        names = "|".join((*self.suffixes, "seg"))
        return re.compile(rf"(?P<case>[^.].*){re.escape(self.separator)}(?P<sequence>{names})\.nii(\.gz)?")


RELEASES = (
    Release("BraTS 2018 to 2021", "_", ("t1", "t1ce", "t2", "flair"), et_label=4),
    Release("BraTS 2023 and later", "-", ("t1n", "t1c", "t2w", "t2f"), et_label=3),
)
_PATTERNS = [(release, release.file_pattern()) for release in RELEASES]
# BraTS20_Training_355 ships its segmentation under the name it had before the release: W39_1998.09.19_Segm.nii.
_UNRELEASED_LABEL = re.compile(r"[^.].*_segm\.nii(\.gz)?", re.IGNORECASE)
LOOKED_FOR = (
    "case folders with <case>_{t1,t1ce,t2,flair}.nii.gz (BraTS 2018 to 2021) or "
    "<case>-{t1n,t1c,t2w,t2f}.nii.gz (2023 on)"
)


@dataclass
class Case:
    """One patient's files in one folder.

    Attributes:
        name: case name, as the BraTS portal expects it of the result.
        folder: where the files lie.
        release: whose names the files have.
        images: path by sequence, in the network's names.
        label: segmentation, None where there is none.
    """

    name: str
    folder: Path
    release: Release
    images: dict[str, Path] = field(default_factory=dict)
    label: Path | None = None

    @property
    def missing(self) -> list[str]:
        """Names of the files that are missing for the four sequences to be complete."""
        return [
            f"{self.name}{self.release.separator}{suffix}.nii.gz"
            for sequence, suffix in zip(SEQUENCES, self.release.suffixes, strict=True)
            if sequence not in self.images
        ]


def case_name(image: str | Path) -> str:
    """Name of the case that an image file belongs to; the file's stem where no release names files so."""
    name = Path(image).name
    for _, pattern in _PATTERNS:
        if found := pattern.fullmatch(name):
            return found["case"]
    return name.split(".")[0]


def _read_folder(folder: Path, files: Sequence[str]) -> Iterator[Case]:
    cases: dict[tuple[str, str], Case] = {}
    for file in sorted(files):
        for release, pattern in _PATTERNS:
            if (found := pattern.fullmatch(file)) is None:
                continue
            case = cases.setdefault((release.name, found["case"]), Case(found["case"], folder, release))
            path = folder / file
            if found["sequence"] == "seg":
                case.label = path
            else:
                case.images[SEQUENCES[release.suffixes.index(found["sequence"])]] = path
    # A lone segmentation is no case; a folder of predictions, for instance, holds such files.
    found_cases = [case for case in cases.values() if case.images]
    unreleased = [file for file in sorted(files) if _UNRELEASED_LABEL.fullmatch(file)]
    if len(found_cases) == 1 and found_cases[0].label is None and len(unreleased) == 1:
        found_cases[0].label = folder / unreleased[0]
    yield from found_cases


def find_cases(dataset_dir: str | Path) -> list[Case]:
    """All cases in ``dataset_dir`` and below, complete or not, ordered by name; none where the folder is absent.

    Hidden folders are passed over. ``dataset_dir`` may itself be the folder of one case.
    """
    cases: list[Case] = []
    seen: set[str] = set()
    # Datasets are often put together from links; a link that leads back up must not loop.
    for folder, folders, files in os.walk(dataset_dir, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        cases.extend(_read_folder(Path(folder), files))
    return sorted(cases, key=lambda case: (case.name, str(case.folder)))


def _item(case: Case, et_label: int | None, with_label: bool) -> dict[str, Any]:
    item: dict[str, Any] = {"case": case.name, "image": [str(case.images[s]) for s in SEQUENCES]}
    if with_label:
        item["label"] = str(case.label)
        item["et_label"] = case.release.et_label if et_label is None else et_label
        # Naming ET's label is the explicit choice that makes 4 beside 3 a resection cavity.
        item["resection_cavity"] = int(et_label == 3)
    return item


def unlabeled_items(dataset_dir: str | Path) -> list[dict[str, Any]]:
    """Datalist for inference: ``case`` and ``image`` (four paths in the network's order) of every complete case."""
    return [_item(case, None, False) for case in find_cases(dataset_dir) if not case.missing]


def labeled_items(dataset_dir: str | Path, et_label: int | None = None) -> list[dict[str, Any]]:
    """Datalist for training and evaluation: as for inference, plus ``label``, ``et_label``, ``resection_cavity``.

    Args:
        dataset_dir: folder of case folders; cases without segmentation are left out.
        et_label: the label value of ET, where it is not the release's own.
    """
    return [
        _item(case, et_label, True) for case in find_cases(dataset_dir) if not case.missing and case.label is not None
    ]


def split_datalist(
    dataset_dir: str | Path,
    datalist_file: str | Path | None = None,
    recorded: str | Path | None = None,
    validation_fraction: float = 0.2,
    seed: int = 0,
    et_label: int | None = None,
    folds: int = 5,
    fold: int | None = None,
) -> dict[str, list[dict[str, Any]]]:
    """Labelled cases as ``training``, ``validation`` and ``all``.

    Args:
        dataset_dir: folder of case folders; absent or empty gives three empty lists.
        datalist_file: JSON file with ``training`` and ``validation`` lists to take instead of a split made here;
            relative paths in it are relative to ``dataset_dir``.
        recorded: the split that an earlier training wrote; taken, where it exists, before a new split is made, so
            that no case trained on is ever held out.
        validation_fraction: share of cases held out, at random (Monte Carlo cross-validation, as the authors do).
        seed: seed of the split, one of its own.
        et_label: the label value of ET, where it is not the release's own.
        folds: number of equal parts for cross-validation.
        fold: hold out this part, from 0, instead of ``validation_fraction``.

    Raises:
        InputError: ``datalist_file`` is absent or is no such file, ``et_label`` is neither 3 nor 4, or there is no such
            fold.
    """
    if et_label is not None:
        check_et_label(et_label)
    if fold is not None and not (isinstance(fold, int) and 0 <= fold < folds):
        raise InputError(f"--fold {fold}: there are the folds 0 to {folds - 1}; choose one, or change --folds.")
    if fold is not None and datalist_file is not None:
        raise InputError(f"--fold {fold}: {datalist_file} holds a split already; give one or the other.")
    if datalist_file is None and recorded is not None and Path(recorded).is_file():
        datalist_file = recorded
        logger.info("Taking the split that the training wrote: %s", recorded)
    elif datalist_file is None and recorded is not None:
        logger.warning("No split in %s: a new one is made, of which the weights may have seen any case.", recorded)
    if datalist_file is not None:
        lists = read_datalist(datalist_file, dataset_dir)
        if fold is not None and (found := labeled_items(dataset_dir)):
            _, held_out = _fold(found, folds, fold, seed)
            if {item["case"] for item in held_out} != {item["case"] for item in lists["validation"]}:
                raise InputError(f"{recorded}: not the split of fold {fold} of {folds}; give that fold's --output_dir.")
        if et_label is not None:
            for item in lists["training"] + lists["validation"]:
                item.update(et_label=et_label, resection_cavity=int(et_label == 3))
    else:
        items = labeled_items(dataset_dir, et_label)
        training, validation = items, items[:0]
        if fold is not None and items:
            training, validation = _fold(items, folds, fold, seed)
        elif len(items) > 1:
            count = min(max(round(len(items) * validation_fraction), 1), len(items) - 1)
            parts = partition_dataset(items, ratios=[len(items) - count, count], shuffle=True, seed=seed)
            training, validation = (sorted(part, key=_by_name) for part in parts)
        lists = {"training": training, "validation": validation}
    return {**lists, "all": lists["training"] + lists["validation"]}


def _fold(items: list[dict[str, Any]], folds: int, fold: int, seed: int) -> tuple[list[Any], list[Any]]:
    if folds < 2 or folds > len(items):
        raise InputError(f"--folds {folds}: {len(items)} labelled cases make 2 to {len(items)} folds.")
    parts = partition_dataset(items, num_partitions=folds, shuffle=True, seed=seed)
    training = [item for number, part in enumerate(parts) if number != fold for item in part]
    return sorted(training, key=_by_name), sorted(parts[fold], key=_by_name)


def _by_name(item: Mapping[str, Any]) -> str:
    return str(item["case"])


def select(datalist: dict[str, list[dict[str, Any]]], cases: str) -> list[dict[str, Any]]:
    """The list named ``cases``.

    Raises:
        InputError: there is no such list.
    """
    if cases not in SELECTIONS:
        raise InputError(f"--cases {cases}: unknown; choose one of {', '.join(SELECTIONS)}.")
    return datalist[cases]


def read_datalist(path: str | Path, dataset_dir: str | Path) -> dict[str, list[dict[str, Any]]]:
    """Read a datalist file as ``write_datalist`` makes it.

    Raises:
        InputError: the file is absent, not JSON, or lacks a list or a key; the message names the file.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give an existing --datalist_file.") from error
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}); a datalist holds the lists training and validation.") from error
    lists: dict[str, list[dict[str, Any]]] = {}
    for name in ("training", "validation"):
        entries = content.get(name) if isinstance(content, dict) else None
        if not isinstance(entries, list):
            raise InputError(f"{path}: no list '{name}'; a datalist holds the lists training and validation.")
        lists[name] = [_resolve(entry, path, dataset_dir) for entry in entries]
    return lists


def _resolve(entry: Any, path: Path, dataset_dir: str | Path) -> dict[str, Any]:
    is_dict = isinstance(entry, dict)
    if not (is_dict and isinstance(entry.get("image"), list) and isinstance(entry.get("label"), str)):
        raise InputError(f"{path}: an entry lacks 'image' (list of four files) or 'label' (file): {entry}")
    if len(entry["image"]) != len(SEQUENCES) or not all(isinstance(file, str) for file in entry["image"]):
        raise InputError(f"{path}: 'image' must list {', '.join(SEQUENCES)}, in this order: {entry}")
    image = [str(Path(dataset_dir) / file) for file in entry["image"]]
    et_label = entry.get("et_label")
    if et_label is None:
        et_label = next((r.et_label for r, p in _PATTERNS if p.fullmatch(Path(image[0]).name)), None)
    if et_label is None:
        raise InputError(f"{path}: an entry says no 'et_label' (3 or 4) and its files' names tell no release: {entry}")
    if et_label not in ET_LABELS:
        raise InputError(f"{path}: 'et_label' is 3 or 4: {entry}")
    return {
        "case": entry.get("case", case_name(image[0])),
        "image": image,
        "label": str(Path(dataset_dir) / entry["label"]),
        "et_label": et_label,
        "resection_cavity": entry.get("resection_cavity", 0),
    }


def write_datalist(
    datalist: Mapping[str, Sequence[Mapping[str, Any]]], dataset_dir: str | Path, path: str | Path
) -> None:
    """Write ``training`` and ``validation`` as JSON, with paths relative to ``dataset_dir`` where they lie below it."""
    root = Path(dataset_dir).absolute()

    def relative(file: str) -> str:
        absolute = Path(file).absolute()
        return str(absolute.relative_to(root)) if absolute.is_relative_to(root) else str(absolute)

    lists = {
        name: [
            {**item, "image": [relative(file) for file in item["image"]], "label": relative(item["label"])}
            for item in datalist[name]
        ]
        for name in ("training", "validation")
    }
    save_json({"sequences": list(SEQUENCES), **lists}, path)
