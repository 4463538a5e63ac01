# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""MONAI datalists from cases: entries, lists of entries, and files of lists.

An entry is a dict. It holds ``case`` (the name of the case) and ``image`` (four files in the network's order, or one
four-dimensional file). A file of a DICOM series stands for the series. An entry with a segmentation also holds
``label`` and the values of the label map. In entries from a user or another program, ``image`` may also be a folder,
or four files in another order, or folders of one DICOM series each. ``complete_item`` and ``read_datalist`` resolve
such an ``image`` once.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.brats import (
    CHANNEL_ORDER,
    DECATHLON,
    EDEMA_LABEL,
    ET_LABELS,
    FORMER_EDEMA_KEY,
    SEQUENCES,
    Release,
    check_et_label,
    in_network_order,
    released_file,
    sequence_named,
    sequences_told,
)
from scripts.data.cases import DECATHLON_IMAGES, NO_FILE, Case, find_cases, image_files, image_name, resolve_image
from scripts.data.dicom import series_file
from scripts.data.splits import make_folds, patient_of, random_split
from scripts.data.tables import DESCRIPTIONS, LISTS, read_table
from scripts.utils.errors import InputError
from scripts.utils.files import save_json

logger = logging.getLogger(__name__)

SELECTIONS = ("training", "validation", "all")
# Bytes of a case's name.
LONGEST_NAME = 200
# The Decathlon has another name for cases without label maps.
FORMER_LISTS = {"test": "testing"}
# Key of the fold that an entry belongs to, in a split by folds. A later run knows by it which fold a folder has.
HELD_OUT_IN = "held_out_in"


def warn_of_shared_patients(
    training: Sequence[Mapping[str, Any]], validation: Sequence[Mapping[str, Any]], source: str | Path
) -> None:
    """Warn of patients with cases in both lists.

    Args:
        training, validation: the lists of entries.
        source: file of the lists, for the warning.
    """
    first, second = ({patient_of(item) for item in items} for items in (training, validation))
    if shared := sorted(first & second):
        logger.warning(
            "%s: %s in training and in validation; the validation scores then say nothing about new patients: %s",
            source,
            "a patient is" if len(shared) == 1 else f"{len(shared)} patients are",
            ", ".join(shared),
        )


def _item(case: Case, et_label: int | None, with_label: bool) -> dict[str, Any]:
    image = [str(case.images.get(s, NO_FILE)) for s in SEQUENCES] if case.file is None else str(case.file)
    item: dict[str, Any] = {"case": case.name, "image": image}
    if with_label:
        item["label"] = str(case.label)
        item |= {"et_label": case.release.et_label, "edema_label": case.release.edema_label, "resection_cavity": 0}
        set_et_label([item], et_label)
    return item


def set_et_label(items: Sequence[dict[str, Any]], et_label: int | None) -> None:
    """Give entries the value of ET that the user has set; None leaves them as they are.

    Example:
        >>> items = [{"et_label": 4, "resection_cavity": 0}]
        >>> set_et_label(items, 3)
        >>> items
        [{'et_label': 3, 'resection_cavity': 1}]
    """
    if et_label is not None:
        for item in items:
            # A user who sets ET's label to 3 says explicitly that a 4 beside it is a resection cavity.
            item.update(et_label=et_label, resection_cavity=int(et_label == 3))


def unlabeled_items(dataset_dir: str | Path, datalist_file: str | Path | None = None) -> list[dict[str, Any]]:
    """Datalist for inference: ``case`` and ``image`` of every case.

    ``image`` holds four paths in the network's order, or it is the path of a four-dimensional file. ``NO_FILE`` stands
    for a sequence that a case lacks.

    Args:
        dataset_dir: folder of case folders.
        datalist_file: JSON or CSV file of the cases, which are used instead of those in the folder. Its list
            ``testing`` is taken; if it has none, its other lists are taken.

    Raises:
        InputError: ``datalist_file`` cannot be read or is no datalist.
    """
    if datalist_file is None:
        return [_item(case, None, False) for case in find_cases(dataset_dir) if case.images or case.file]
    lists = read_datalist(datalist_file, dataset_dir, with_labels=False)
    taken = ["testing"] if "testing" in lists else list(lists)
    logger.info("%s: cases of %s", datalist_file, " and ".join(taken))
    return [item for name in taken for item in lists[name]]


def labeled_items(
    dataset_dir: str | Path, et_label: int | None = None, incomplete: bool = False
) -> list[dict[str, Any]]:
    """Datalist for training and evaluation: the entries for inference, plus ``label`` and the values of the label map.

    The keys of the values are ``et_label``, ``edema_label`` and ``resection_cavity``. They are explained in
    ``scripts.data.transforms.LabelsToRegionsd``.

    Args:
        dataset_dir: folder of case folders. Cases without a segmentation are left out.
        et_label: the label value of ET, or None for the value of each case's release.
        incomplete: also take cases that lack a sequence, for which ``NO_FILE`` stands.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for sequence in ("t1n", "t1c", "t2w", "t2f", "seg"):
        ...         Path(folder, f"BraTS-GLI-00005-101-{sequence}.nii.gz").touch()
        ...     [(item["case"], item["et_label"], item["edema_label"]) for item in labeled_items(folder)]
        [('BraTS-GLI-00005-101', 3, 2)]
    """
    return [
        _item(case, et_label, True)
        for case in find_cases(dataset_dir)
        if case.label is not None and (incomplete or not case.missing)
    ]


def every_item(dataset_dir: str | Path, et_label: int | None = None) -> list[dict[str, Any]]:
    """An entry of every case, complete or not, with its label map if there is one.

    Args:
        dataset_dir: folder of case folders.
        et_label: as in ``labeled_items``.
    """
    return [
        _item(case, et_label, case.label is not None) for case in find_cases(dataset_dir) if case.images or case.file
    ]


def complete_item(item: Mapping[str, Any], et_label: int) -> dict[str, Any]:
    """Complete an entry that holds only ``image`` and perhaps ``label``.

    MONAI Label passes such entries, with ``image`` in any form that ``resolve_image`` takes. The function assumes that
    their label maps have the values that this bundle saves.

    Args:
        item: the entry. Its own values are kept.
        et_label: value of ET in label maps that this bundle saves.

    Raises:
        InputError: nothing tells which sequence each of four images is, in an entry that this module did not make.

    Example:
        >>> complete_item({"image": "BRATS_001.nii.gz", "label": "BRATS_001_seg.nii.gz"}, et_label=4)["case"]
        'BRATS_001'
        >>> complete_item({"image": ["p1_flair.nii", "p1_t1.nii", "p1_t1ce.nii", "p1_t2.nii"]}, et_label=4)["image"]
        ['p1_t1.nii', 'p1_t2.nii', 'p1_t1ce.nii', 'p1_flair.nii']
    """
    image = item["image"]
    if FORMER_EDEMA_KEY in item:
        item = {"edema_label": item[FORMER_EDEMA_KEY], **{k: v for k, v in item.items() if k != FORMER_EDEMA_KEY}}
    if "case" not in item and not isinstance(image, str) and len(image) > 1 and sequences_told(image) is None:
        raise InputError(
            f"{', '.join(map(str, image))}: these names do not say which sequence each file is; let them end in "
            f"{', '.join(f'_{sequence}' for sequence in SEQUENCES)}, or give a --datalist_file that holds 'sequences'."
        )
    files = resolve_image(image)
    reading = {"et_label": et_label, "edema_label": EDEMA_LABEL, "resection_cavity": 0} if "label" in item else {}
    return {"case": image_name(files), **reading, **item, "image": files}


@dataclass(frozen=True)
class Cohort:
    """The cases of a run and their origin.

    Attributes:
        lists: lists of entries, by name. The names are ``training`` and ``validation``, or ``cases``.
        dataset_dir: folder of the cases.
        datalist_file: file with the user's own lists, or None.
        channel_order: the sequences in the order of the channels of four-dimensional files.
        et_label: value of ET in label maps that this bundle saves.
        needed: names of the lists that must not be empty.
    """

    lists: Mapping[str, Sequence[Mapping[str, Any]]]
    dataset_dir: str
    datalist_file: str | None = None
    channel_order: Sequence[str] = CHANNEL_ORDER
    et_label: int = ET_LABELS[-1]
    needed: Sequence[str] = ()

    def completed(self) -> dict[str, list[dict[str, Any]]]:
        """The lists, with entries that ``complete_item`` has completed.

        Raises:
            InputError: an entry cannot be completed.
        """
        return {name: [complete_item(item, self.et_label) for item in items] for name, items in self.lists.items()}


def split_datalist(
    dataset_dir: str | Path,
    datalist_file: str | Path | None = None,
    recorded: str | Path | None = None,
    validation_fraction: float = 0.2,
    seed: int = 0,
    et_label: int | None = None,
    folds: int = 5,
    fold: int | None = None,
    incomplete: bool = False,
    cases: str | None = None,
) -> dict[str, list[dict[str, Any]]]:
    """Labeled cases as ``training``, ``validation`` and ``all``.

    Args:
        dataset_dir: folder of case folders. If it is absent or empty, the three lists are empty.
        datalist_file: JSON or CSV file with the lists ``training`` and ``validation``, which are used instead of a new
            split. If it has no list ``validation``, its list ``training`` is split as the cases of a folder are.
            Relative paths in it are relative to ``dataset_dir``.
        recorded: file of the split that an earlier training wrote. If it exists, its split is used instead of a new
            one, so that no case of the training is held out.
        validation_fraction: share of cases to hold out at random (Monte Carlo cross-validation, as the authors do). All
            cases of a patient (``patient_name``) stay together.
        seed: seed of the split. It is independent of other seeds.
        et_label: the label value of ET, or None for the value of each case's release.
        folds: number of parts for cross-validation (``scripts.data.splits.make_folds``). The parts are as equal as
            whole patients allow, and alike in grade, site and size of ET. Entries say in ``held_out_in`` which part
            they belong to.
        fold: number of the part to hold out instead of ``validation_fraction``, from 0.
        incomplete: also take cases that lack a sequence.
        cases: the list that is wanted. For ``all`` no new split is made; without a given or recorded one, all cases
            are in the list ``training``.

    Raises:
        InputError: ``datalist_file`` is absent or is no datalist, ``et_label`` is neither 3 nor 4, there is no such
            fold, a table of names is faulty, or a fold is given together with a split that is not the split of this
            fold.
    """
    if et_label is not None:
        check_et_label(et_label)
    if fold is not None and not (isinstance(fold, int) and 0 <= fold < folds):
        raise InputError(f"--fold {fold}: there are the folds 0 to {folds - 1}; choose one, or change --folds.")
    given = None if datalist_file is None else read_datalist(datalist_file, dataset_dir)
    if given is not None and "training" not in given:
        raise InputError(f"{datalist_file}: no list 'training'; a training or an evaluation needs one.")
    if fold is not None and given is not None and "validation" in given:
        raise InputError(f"--fold {fold}: {datalist_file} already holds a split; leave out --fold or --datalist_file.")
    splits = cases != "all"
    items = labeled_items(dataset_dir, et_label, incomplete) if given is None else given["training"]
    set_et_label(items, et_label)
    source, lists = datalist_file, given or {}
    if "validation" not in lists and recorded is not None:
        if Path(recorded).is_file():
            logger.info("Using the split that the training wrote: %s", recorded)
            source, lists = recorded, read_datalist(recorded, dataset_dir)
            trained, held = ({i.get(HELD_OUT_IN) for i in lists.get(name, [])} for name in ("training", "validation"))
            others = {_fold_name(number, folds) for number in range(folds)} - {_fold_name(fold or 0, folds)}
            # A training that validates nothing has an empty list.
            if fold is not None and (trained != others or held - {_fold_name(fold, folds)}):
                raise InputError(
                    f"{recorded}: not the split of {_fold_name(fold, folds)}; give that fold's --output_dir, "
                    "or leave out --fold to take this split."
                )
        elif splits:
            logger.warning(
                "%s: there is no split, so a new one is made; the weights may have seen its cases.", recorded
            )
    if "validation" in lists:
        warn_of_shared_patients(lists["training"], lists["validation"], str(source))
    else:
        training, validation = items, items[:0]
        if splits and fold is not None and items:
            parts = make_folds(items, folds, seed, dataset_dir)
            for number, part in enumerate(parts):
                part[:] = [{**item, HELD_OUT_IN: _fold_name(number, folds)} for item in part]
            training = [item for number, part in enumerate(parts) if number != fold for item in part]
            validation = parts[fold]
        elif splits and len(items) > 1:
            training, validation = random_split(items, validation_fraction, seed)
        lists = {"training": sorted(training, key=_by_name), "validation": sorted(validation, key=_by_name)}
    lists = {name: lists[name] for name in ("training", "validation")}
    set_et_label(lists["training"] + lists["validation"], et_label)
    return {**lists, "all": lists["training"] + lists["validation"]}


def _fold_name(fold: int, folds: int) -> str:
    return f"fold {fold} of {folds}"


def _by_name(item: Mapping[str, Any]) -> str:
    return str(item["case"])


def select(datalist: dict[str, list[dict[str, Any]]], cases: str) -> list[dict[str, Any]]:
    """The list named ``cases``.

    Raises:
        InputError: there is no such list.

    Example:
        >>> select({"training": [{"case": "a"}], "validation": [], "all": [{"case": "a"}]}, "training")
        [{'case': 'a'}]
        >>> select({}, "test")
        Traceback (most recent call last):
        scripts.utils.errors.InputError: --cases test: unknown; choose one of training, validation, all.
    """
    if cases not in SELECTIONS:
        raise InputError(f"--cases {cases}: unknown; choose one of {', '.join(SELECTIONS)}.")
    return datalist[cases]


def read_datalist(
    path: str | Path, dataset_dir: str | Path, with_labels: bool = True
) -> dict[str, list[dict[str, Any]]]:
    """Read a datalist file: JSON of the form that ``write_datalist`` makes, or a table (``scripts.data.tables``).

    The lists are ``training``, ``validation`` and ``testing`` (or ``test``, as in the Decathlon). At least one of them
    is there. An entry of ``testing`` may be the path of an image alone.

    ``sequences`` at the top of the file says which sequence each of an entry's four images is. Without it the names of
    the images must say so. The result has the four images in the network's order.

    Args:
        path: the file.
        dataset_dir: folder to which relative paths in the file are relative.
        with_labels: whether training and validation need label maps. Without them, entries hold case and image only.

    Raises:
        InputError: the file is absent, is not JSON, or lacks a key or all lists. Other causes are that nothing says
            which sequence an image is, and that ``sequences`` and a name disagree. The message names the file.

    Example:
        >>> import tempfile
        >>> entry = {"image": ["p1_t1ce.nii", "p1_t1.nii", "p1_t2.nii", "p1_flair.nii"], "label": "p1_seg.nii"}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "datalist.json")
        ...     _ = path.write_text(json.dumps({"training": [entry], "validation": []}))
        ...     [Path(file).name for file in read_datalist(path, folder)["training"][0]["image"]]
        ['p1_t1.nii', 'p1_t2.nii', 'p1_t1ce.nii', 'p1_flair.nii']
    """
    path = Path(path)
    content = read_table(path) if path.suffix.lower() == ".csv" else _json_content(path)
    sequences = _stated_sequences(content, path)
    lists: dict[str, list[dict[str, Any]]] = {}
    for key in [key for key in (*LISTS, *FORMER_LISTS) if key in content]:
        entries, name = content[key], FORMER_LISTS.get(key, key)
        if not isinstance(entries, list):
            raise InputError(f"{path}: '{key}' is no list; a datalist holds the lists {', '.join(LISTS)}.")
        labeled = with_labels and name != "testing"
        lists[name] = [_resolve(entry, path, dataset_dir, sequences, labeled) for entry in entries]
    if not lists:
        raise InputError(f"{path}: no list 'training'; a datalist holds the lists {', '.join(LISTS)}.")
    return lists


def _json_content(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give an existing --datalist_file.") from error
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}); a datalist holds the lists {', '.join(LISTS)}.") from error
    return content if isinstance(content, dict) else {}


def _stated_sequences(content: Mapping[str, Any], path: Path) -> list[str] | None:
    stated = content.get("sequences")
    if stated is None:
        return None
    known = [sequence_named(str(name)) for name in stated] if isinstance(stated, list) else []
    if sorted(map(str, known)) != sorted(SEQUENCES):
        raise InputError(
            f"{path}: 'sequences' is {json.dumps(stated)}; list each of {', '.join(SEQUENCES)} once, "
            "in the order of every entry's four images."
        )
    return [str(sequence) for sequence in known]


def _four_images(image: list[str], path: Path, sequences: list[str] | None) -> list[str]:
    if sequences is None:
        if (told := sequences_told(image)) is None:
            raise InputError(
                f"{path}: neither 'sequences' nor the names of these files say which sequence each file is; "
                f'add "sequences": {json.dumps(list(SEQUENCES))}, in the order of the files, to {path.name}: {image}'
            )
        return in_network_order(image, told)
    for file, sequence, name in misnamed(image, sequences):
        raise InputError(
            f"{path}: 'sequences' says that {file} is {sequence}, but its name says {name}; "
            "correct 'sequences' or the name."
        )
    return in_network_order(image, sequences)


def misnamed(image: Sequence[str], sequences: Sequence[str]) -> list[tuple[str, str, str | None]]:
    """The files of ``image`` whose names say another sequence: file, its sequence, and the sequence of its name.

    Example:
        >>> misnamed(["p1_t2.nii", "b.nii", "missing", "d.nii"], ["t1", "t2", "t1ce", "flair"])
        [('p1_t2.nii', 't1', 't2')]
    """
    released = [released_file(file) for file in image]
    named: Sequence[str | None] = sequences_told(image) or [found.sequence if found else None for found in released]
    return [row for row in zip(image, sequences, named, strict=True) if row[2] not in (None, row[1])]


def _resolve(
    entry: Any, path: Path, dataset_dir: str | Path, sequences: list[str] | None, labeled: bool
) -> dict[str, Any]:
    if isinstance(entry, str) and not labeled:
        entry = {"image": entry}
    is_dict = isinstance(entry, dict)
    if is_dict and FORMER_EDEMA_KEY in entry:
        if entry.get("edema_label", entry[FORMER_EDEMA_KEY]) != entry[FORMER_EDEMA_KEY]:
            raise InputError(
                f"{path}: 'edema_label' and '{FORMER_EDEMA_KEY}' differ; leave out '{FORMER_EDEMA_KEY}': {entry}"
            )
        entry = {**entry, "edema_label": entry[FORMER_EDEMA_KEY]}
    if not (is_dict and isinstance(entry.get("image"), list | str)):
        raise InputError(f"{path}: an entry lacks 'image' (four files, or one): {entry}")
    if labeled and not isinstance(entry.get("label"), str):
        raise InputError(f"{path}: an entry lacks 'label' (file): {entry}")
    if isinstance(entry["image"], str):
        image = resolve_image(str(Path(dataset_dir) / entry["image"]))
    else:
        files = [NO_FILE if file is None else file for file in entry["image"]]
        if len(files) != len(SEQUENCES) or not all(isinstance(file, str) for file in files):
            raise InputError(f"{path}: 'image' must list four files, {', '.join(SEQUENCES)}: {entry}")
        if not image_files(files):
            raise InputError(f"{path}: 'image' has no file: {entry}")
        image = [
            file if file == NO_FILE else series_file(Path(dataset_dir) / file)
            for file in _four_images(files, path, sequences)
        ]
    if not labeled:
        return {"case": _plain_name(entry, path, image_name(image)), "image": image}
    release = _release_of(entry, image, Path(image_files(image)[0]).name)
    et_label, edema_label = (
        getattr(release, key, None) if entry.get(key) is None else entry[key] for key in ("et_label", "edema_label")
    )
    if et_label is None:
        raise InputError(f"{path}: an entry has no 'et_label' (3 or 4) and its files' names tell no release: {entry}")
    if et_label not in ET_LABELS:
        raise InputError(f"{path}: 'et_label' is 3 or 4: {entry}")
    if edema_label is None:
        # A default would be risky, because the Decathlon swaps the labels of core and edema.
        raise InputError(
            f"{path}: an entry has no 'edema_label' (2 as in BraTS, 1 as in the Decathlon; core has the other value) "
            f"and its files' names tell no release: {entry}"
        )
    if edema_label not in (1, 2):
        raise InputError(f"{path}: 'edema_label' is 2 or 1: {entry}")
    described = {key: entry[key] for key in (*DESCRIPTIONS, HELD_OUT_IN) if entry.get(key) is not None}
    for key, value in described.items():
        if not isinstance(value, str | int):
            raise InputError(f"{path}: '{key}' is a text or a number: {entry}")
    return {
        "case": _plain_name(entry, path, image_name(image)),
        "image": image,
        "label": str(Path(dataset_dir) / entry["label"]),
        "et_label": et_label,
        "edema_label": edema_label,
        "resection_cavity": entry.get("resection_cavity", 0),
        **described,
    }


def _release_of(entry: Mapping[str, Any], image: str | Sequence[str], first: str) -> Release | None:
    """The release whose label values apply to an entry without its own, or None if the file names do not tell."""
    found = released_file(first)
    if found is None and isinstance(image, str) and Path(image).parent.name in DECATHLON_IMAGES:
        # Another value of ET shows that the label maps were converted, so the value of edema is unknown.
        return DECATHLON if entry.get("et_label") in (None, DECATHLON.et_label) else None
    return found.release if found else None


def is_plain_name(name: str) -> bool:
    """Whether a case may have this name. Results are named after it, and a path would let them leave their folder.

    A file's name has at most 255 bytes, and a result's name is longer than its case's.

    Example:
        >>> is_plain_name("p.1"), is_plain_name("../p1"), is_plain_name(".."), is_plain_name("p" * 201)
        (True, False, False, False)
    """
    plain = name not in ("", ".", "..") and name == Path(name).name and "\0" not in name
    return plain and len(os.fsencode(name)) <= LONGEST_NAME


def _plain_name(entry: Mapping[str, Any], path: Path, default: str) -> str:
    name = entry.get("case", default)
    if not isinstance(name, str) or not is_plain_name(name):
        raise InputError(f"{path}: 'case' must be a plain name of at most {LONGEST_NAME} bytes: {entry}")
    return name


def write_datalist(
    datalist: Mapping[str, Sequence[Mapping[str, Any]]], dataset_dir: str | Path, path: str | Path
) -> None:
    """Write lists of entries as JSON.

    Paths below ``dataset_dir`` are written relative to it. Other paths are absolute.

    Args:
        datalist: the lists of entries. Those named in ``scripts.data.tables.LISTS`` are written.
        dataset_dir: folder of the cases.
        path: file to write.
    """
    root = Path(dataset_dir).absolute()

    def relative(file: str | Sequence[str]) -> str | list[str]:
        if not isinstance(file, str):
            return [one if one == NO_FILE else str(relative(one)) for one in file]
        absolute = Path(file).absolute()
        return str(absolute.relative_to(root)) if absolute.is_relative_to(root) else str(absolute)

    lists = {
        name: [{**item, **{key: relative(item[key]) for key in ("image", "label") if key in item}} for item in items]
        for name, items in datalist.items()
        if name in LISTS
    }
    save_json({"sequences": list(SEQUENCES), **lists}, path)
