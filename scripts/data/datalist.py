# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""MONAI datalists: the entries of cases, and the lists of a run.

An entry is a dict. It holds ``case`` (the name of the case) and ``image`` (four files in the network's order, or one
four-dimensional file). ``NO_FILE`` stands for a sequence that the case lacks, and a file of a DICOM series for the
series. An entry with a segmentation also holds ``label`` and what the values of the label map mean (``et_label``,
``edema_label``, ``label_release``: see ``scripts.data.transforms.CheckLabelsd``). In entries from a user or another
program, ``image`` may also be a folder, or four files in another order, or folders of one DICOM series each.
``complete_item`` and ``scripts.data.datalist_file.read_datalist`` resolve such an ``image`` once.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.brats import EDEMA_LABEL, LABEL_RELEASES, SEQUENCES, check_et_label, sequences_told
from scripts.data.cases import find_cases, image_files, image_name, missing_sequences, resolve_image
from scripts.data.datalist_file import HELD_OUT_IN, read_datalist
from scripts.data.splits import make_folds, patient_of, random_split
from scripts.utils.errors import InputError

logger = logging.getLogger(__name__)


def every_item(
    dataset_dir: str | Path, et_label: int | None = None, label_release: int | None = None
) -> list[dict[str, Any]]:
    """An entry of every case, complete or not, with its label map if there is one.

    ``et_label`` and ``label_release`` say what label values mean; None takes what each case's release says.
    """
    items = []
    for case in find_cases(dataset_dir):
        # A study of DICOM series may have none that fits a sequence.
        if not image_files(case.image):
            continue
        item: dict[str, Any] = {"case": case.name, "image": case.image}
        if case.label is not None:
            item |= {"label": str(case.label), "et_label": case.release.et_label}
            item |= {"edema_label": case.release.edema_label, "label_release": 0}
            set_et_label([item], et_label, label_release)
        items.append(item)
    return items


def set_et_label(items: Sequence[dict[str, Any]], et_label: int | None, label_release: int | None = None) -> None:
    """Give entries the value of ET, or the release of ``LABEL_RELEASES``, that the user has set.

    Raises:
        InputError: there is no such release, or its ET has another value.
    """
    if label_release is not None:
        if label_release not in LABEL_RELEASES:
            known = " or ".join(map(str, LABEL_RELEASES))
            raise InputError(f"--label_release {label_release}: 3 and 4 have a meaning together in {known} only.")
        if et_label not in (None, LABEL_RELEASES[label_release]):
            raise InputError(f"--et_label {et_label}: not that of --label_release {label_release}; leave one out.")
        et_label = LABEL_RELEASES[label_release]
    if et_label is not None:
        for item in items:
            item.update(et_label=et_label, label_release=label_release or 0)


def labeled_items(
    dataset_dir: str | Path, et_label: int | None = None, incomplete: bool = False, label_release: int | None = None
) -> list[dict[str, Any]]:
    """Datalist for training and evaluation: the entries of cases with a label map (``every_item``).

    Cases that lack a sequence are left out, unless ``incomplete`` is true.
    """
    items = [item for item in every_item(dataset_dir, et_label, label_release) if "label" in item]
    return [item for item in items if incomplete or not missing_sequences(item["image"])]


def unlabeled_items(dataset_dir: str | Path, datalist_file: str | Path | None = None) -> list[dict[str, Any]]:
    """Datalist for inference: ``case`` and ``image`` of every case in ``dataset_dir``.

    A ``datalist_file`` (JSON or CSV) names the cases instead: its list ``testing``, or all its lists if it has none.
    """
    if datalist_file is None:
        return [{"case": item["case"], "image": item["image"]} for item in every_item(dataset_dir)]
    lists = read_datalist(datalist_file, dataset_dir, with_labels=False)
    taken = ["testing"] if "testing" in lists else list(lists)
    logger.info("%s: cases of %s", datalist_file, " and ".join(taken))
    return [item for name in taken for item in lists[name]]


def complete_item(item: Mapping[str, Any], et_label: int) -> dict[str, Any]:
    """Complete an entry that holds only ``image`` and perhaps ``label``. Values that the entry has are kept.

    MONAI Label passes such entries, with ``image`` in any form that ``resolve_image`` takes. Their label maps have the
    values that this bundle saves, with ``et_label`` for ET. If nothing tells which sequence each of the four images of
    such an entry is, it is refused by an InputError.
    """
    image = item["image"]
    if "case" not in item and not isinstance(image, str) and len(image) > 1 and sequences_told(image) is None:
        raise InputError(
            f"{', '.join(map(str, image))}: these names do not say which sequence each file is; let them end in "
            f"{', '.join(f'_{sequence}' for sequence in SEQUENCES)}, or give a --datalist_file that holds 'sequences'."
        )
    files = resolve_image(image)
    reading = {"et_label": et_label, "edema_label": EDEMA_LABEL, "label_release": 0} if "label" in item else {}
    return {"case": image_name(files), **reading, **item, "image": files}


@dataclass(frozen=True)
class Cohort:
    """The cases of a run and their origin.

    Attributes:
        lists: lists of entries, by name: ``training`` and ``validation``, or ``cases``.
        datalist_file: file with the user's own lists, or None.
        channel_order: the sequences in the order of the channels of four-dimensional files.
        et_label: value of ET in label maps that this bundle saves.
    """

    lists: Mapping[str, Sequence[Mapping[str, Any]]]
    dataset_dir: str
    datalist_file: str | None
    channel_order: Sequence[str]
    et_label: int

    def completed(self) -> dict[str, list[dict[str, Any]]]:
        """The lists, with entries that ``complete_item`` has completed."""
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
    label_release: int | None = None,
) -> dict[str, list[dict[str, Any]]]:
    """Labeled cases as ``training``, ``validation`` and ``all``. Cases of a patient stay together.

    Args:
        dataset_dir: folder of case folders. If it is absent or empty, the three lists are empty.
        datalist_file: JSON or CSV file with the lists ``training`` and ``validation``, which are used instead of a new
            split. If it has no list ``validation``, its list ``training`` is split as the cases of a folder are.
        recorded: file of the split that an earlier training wrote. If it exists, its split is used instead of a new
            one, so that no case of the training is held out.
        validation_fraction: share of cases to hold out at random (Monte Carlo cross-validation, as the authors do).
        seed: seed of the split. It is independent of other seeds.
        et_label: the label value of ET, or None for the value of each case's release.
        folds: number of parts for cross-validation (``scripts.data.splits.make_folds``).
        fold: number of the part to hold out instead of ``validation_fraction``, from 0.
        incomplete: also take cases that lack a sequence.
        cases: the list that is wanted. For ``all`` no new split is made; without a given or recorded one, all cases are
            in the list ``training``.
        label_release: the release of ``LABEL_RELEASES`` that label maps with 3 and 4 are from, or None.

    Raises:
        InputError: a file or a table of names is faulty, ``et_label`` is neither 3 nor 4, there is no such fold, or a
            fold is given together with a split that is not the split of this fold.
    """
    if et_label is not None:
        check_et_label(et_label)
    if fold is not None and not (isinstance(fold, int) and 0 <= fold < folds):
        raise InputError(f"--fold {fold}: there are the folds 0 to {folds - 1}; choose one, or change --folds.")
    given = None if datalist_file is None else read_datalist(datalist_file, dataset_dir)
    if given is not None and "training" not in given:
        raise InputError(f"{datalist_file}: no list 'training'; a training or an evaluation needs one.")
    lists: Mapping[str, list[dict[str, Any]]]
    if given is not None and "validation" in given:
        if fold is not None:
            raise InputError(f"--fold {fold}: {datalist_file} holds a split; leave out --fold or --datalist_file.")
        lists = given
        warn_of_shared_patients(lists["training"], lists["validation"], str(datalist_file))
    elif recorded is not None and Path(recorded).is_file():
        lists = _recorded_split(recorded, dataset_dir, folds, fold)
    else:
        if recorded is not None and cases != "all":
            logger.warning(
                "%s: there is no split, so a new one is made; the weights may have seen its cases.", recorded
            )
        items = labeled_items(dataset_dir, et_label, incomplete, label_release) if given is None else given["training"]
        training, validation = items, items[:0]
        if cases != "all" and fold is not None and items:
            set_et_label(items, et_label, label_release)  # folds measure ET
            parts = make_folds(items, folds, seed, dataset_dir)
            for number, part in enumerate(parts):
                for item in part:
                    item[HELD_OUT_IN] = _fold_name(number, folds)
            validation = parts.pop(fold)
            training = [item for part in parts for item in part]
        elif cases != "all" and validation_fraction and len(items) > 1:
            training, validation = random_split(items, validation_fraction, seed)
        lists = {"training": training, "validation": validation}
        for entries in lists.values():
            entries.sort(key=lambda item: str(item["case"]))
    training, validation = lists["training"], lists["validation"]
    set_et_label(training + validation, et_label, label_release)
    return {"training": training, "validation": validation, "all": training + validation}


def _recorded_split(
    recorded: str | Path, dataset_dir: str | Path, folds: int, fold: int | None
) -> dict[str, list[dict[str, Any]]]:
    logger.info("Using the split that the training wrote: %s", recorded)
    lists = read_datalist(recorded, dataset_dir)
    if not {"training", "validation"} <= set(lists):
        raise InputError(f"{recorded}: no split into training and validation; give the --output_dir of a training.")
    if fold is not None:
        trained, held = ({item.get(HELD_OUT_IN) for item in lists[name]} for name in ("training", "validation"))
        others = {_fold_name(number, folds) for number in range(folds) if number != fold}
        # A training that validates nothing has an empty list.
        if trained != others or held - {_fold_name(fold, folds)}:
            raise InputError(
                f"{recorded}: not the split of {_fold_name(fold, folds)}; give that fold's --output_dir, "
                "or leave out --fold to take this split."
            )
    warn_of_shared_patients(lists["training"], lists["validation"], recorded)
    return lists


def _fold_name(fold: int, folds: int) -> str:
    return f"fold {fold} of {folds}"


def warn_of_shared_patients(
    training: Sequence[Mapping[str, Any]], validation: Sequence[Mapping[str, Any]], source: str | Path
) -> None:
    """Warn of patients with cases in both lists, which come from ``source``."""
    first, second = ({patient_of(item) for item in items} for items in (training, validation))
    if shared := sorted(first & second):
        logger.warning(
            "%s: %s in training and in validation; the validation scores then say nothing about new patients: %s",
            source,
            "a patient is" if len(shared) == 1 else f"{len(shared)} patients are",
            ", ".join(shared),
        )


def select(datalist: Mapping[str, list[dict[str, Any]]], cases: str) -> list[dict[str, Any]]:
    """The list named ``cases``: training, validation or all. Another name raises an InputError."""
    if cases not in datalist:
        raise InputError(f"--cases {cases}: unknown; choose one of {', '.join(datalist)}.")
    return datalist[cases]
