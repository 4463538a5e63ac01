# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Splits of entries by patient: a random share, and folds that are alike in grade, site and size of ET."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from monai.data import partition_dataset
from nibabel.affines import voxel_sizes
from scripts.brats import case_name, patient_name, site_named
from scripts.data.cases import image_files
from scripts.data.images import read_image, voxels_of
from scripts.data.tables import NAME_TABLES, Described, check_grades, read_name_table
from scripts.utils.errors import InputError
from scripts.utils.machine import processors

logger = logging.getLogger(__name__)

# Folders of BraTS 2017 to 2019, for gliomas of high and of low grade.
GRADES = ("HGG", "LGG")
# In simulated cohorts of 30 to 285 patients, the means of ET differ a third as much as after one draw.
DEALS = 50
NOT_DESCRIBED = Described("", "", "")


def patient_of(item: Mapping[str, Any]) -> str:
    """The patient of an entry, by the name of the image if its release numbers visits, else by ``case``."""
    by_image = case_name(image_files(item["image"])[0])
    patient = patient_name(by_image)
    return patient if patient != by_image else patient_name(str(item["case"]))


def by_patient(items: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The items in lists, one list for each patient, in the order of their first items."""
    patients: dict[str, list[dict[str, Any]]] = {}
    for item in items:
        patients.setdefault(patient_of(item), []).append(item)
    return list(patients.values())


def _shuffled_patients(items: Sequence[dict[str, Any]], seed: int) -> list[list[dict[str, Any]]]:
    (patients,) = partition_dataset(by_patient(items), num_partitions=1, shuffle=True, seed=seed)
    return list(patients)


def random_split(items: list[dict[str, Any]], fraction: float, seed: int) -> tuple[list[Any], list[Any]]:
    """Hold out whole patients from the end of the shuffled list, as near to the share of cases as they allow.

    There are two entries or more. Returns the entries to train on, and those that are held out.
    """
    wanted = min(max(round(len(items) * fraction), 1), len(items) - 1)
    training = _shuffled_patients(items, seed)
    if len(training) == 1:
        logger.warning("All %d labeled cases are of one patient, so none is held out.", len(items))
    validation: list[dict[str, Any]] = []
    for patient in reversed(training[1:]):
        if len(validation) + len(patient) <= wanted:
            training.remove(patient)
            validation += patient
    # Each remaining patient has more cases than are still wanted. The smallest one may still come nearer to the share.
    smallest = min(training, key=len)
    short = wanted - len(validation)
    if len(training) > 1 and (not validation or len(smallest) < 2 * short):
        training.remove(smallest)
        validation += smallest
    return [item for patient in training for item in patient], validation


def make_folds(
    items: Sequence[dict[str, Any]], folds: int, seed: int, dataset_dir: str | Path
) -> list[list[dict[str, Any]]]:
    """Entries in parts that are as equal as whole patients allow, and alike in grade, site and size of ET.

    Patients of one grade and site are a stratum. If each patient has one case, the numbers of a stratum's cases in two
    parts differ by one at most. Within a stratum, each part gets one of the largest ETs, one of the next largest, and
    so on. What this leaves open is drawn many times, and the parts with the most similar mean sizes of ET are taken. A
    patient of several cases counts as its first one, with the mean of their ETs. The order of the entries does not
    matter.

    The grade is an entry's ``grade``, or that of a table of names, or a folder HGG or LGG. The site is an entry's
    ``site``, or that of a table of names or of the name of the case. Tables of names lie in ``dataset_dir``, or in a
    folder between it and a case. What nothing tells is unknown, and the unknown is a stratum, too.

    Raises:
        InputError: there are fewer patients than parts, or a table of names is faulty or contradicts a folder.
    """
    items = sorted(items, key=lambda item: (str(item["case"]), image_files(item["image"])))
    patients = _shuffled_patients(items, seed)
    if folds < 2 or folds > len(patients):
        of = f" of {len(patients)} patient{'s' * (len(patients) > 1)}" if len(patients) < len(items) else ""
        possible = f"2 to {len(patients)}" if len(patients) > 1 else "no"
        raise InputError(f"--folds {folds}: {len(items)} labeled cases{of} make {possible} folds.")
    sizes = _et_sizes(patients)
    tables = _read_name_tables(items, dataset_dir)
    # Numbers of patients, in their shuffled order. The patients with most cases come first.
    strata: dict[tuple[int, str, str], list[int]] = {}
    for number, patient in enumerate(patients):
        strata.setdefault((-len(patient), *_described(patient[0], tables)), []).append(number)
    logger.info(
        "Folds by grade (%d known), site (%d known) and size of ET (%d known), of %d patients",
        *(sum(len(stratum) for key, stratum in strata.items() if key[position]) for position in (1, 2)),
        sum(size >= 0 for size in sizes),
        len(patients),
    )
    # Where little is known, chance decides most. Of many deals, the one with the most similar ETs is taken.
    chance = np.random.RandomState(seed)
    orders = [np.arange(len(patients)), *(chance.permutation(len(patients)) for _ in range(DEALS - 1))]
    deals = [_deal(patients, strata, sizes, folds, order) for order in orders]
    best = min(deals, key=lambda deal: _spread(deal, sizes))
    return [[item for number in part for item in patients[number]] for part in best]


def _deal(
    patients: Sequence[Sequence[Any]],
    strata: Mapping[tuple[int, str, str], Sequence[int]],
    sizes: Sequence[float],
    folds: int,
    order: np.ndarray,
) -> list[list[int]]:
    """Numbers of patients in parts; ``order`` ranks patients of similar ET, and so chooses who gets which part."""
    parts: list[list[int]] = [[] for _ in range(folds)]
    dealt: list[Counter[tuple[str, ...]]] = [Counter() for _ in range(folds)]
    for (_, grade, site), stratum in sorted(strata.items()):
        # Equal parts come first, then equal numbers of the stratum, and then of the grade.
        counted = ((), (grade, site), (grade,))
        by_size = sorted(stratum, key=lambda number: (-sizes[number], order[number]))
        for start in range(0, len(by_size), folds):
            for number in sorted(by_size[start : start + folds], key=lambda number: order[number]):
                part = min(range(folds), key=lambda n: [dealt[n][which] for which in counted])
                parts[part].append(number)
                for which in counted:
                    dealt[part][which] += len(patients[number])
    return parts


def _spread(parts: Sequence[Sequence[int]], sizes: Sequence[float]) -> float:
    """Largest difference between the mean sizes of ET in two parts, in ml."""
    known = [[sizes[number] for number in part if sizes[number] >= 0] for part in parts]
    means = [float(np.mean(mine)) for mine in known if mine]
    return max(means, default=0.0) - min(means, default=0.0)


def _described(item: Mapping[str, Any], tables: Mapping[str, Described]) -> tuple[str, str]:
    """Grade and site of an entry, in small letters; an empty text for what is unknown."""
    name = case_name(image_files(item["image"])[0])
    table = tables.get(name) or tables.get(str(item["case"]), NOT_DESCRIBED)
    folder = next((part for part in reversed(Path(str(item["label"])).parts[:-1]) if part in GRADES), "")
    if "grade" not in item:
        check_grades(name, Described(folder, "", str(item["label"])), table)
    grade = item.get("grade") or table.grade or folder
    site = item.get("site") or table.site or site_named(name) or site_named(str(item["case"])) or ""
    return str(grade).lower(), str(site).lower()


def _read_name_tables(items: Sequence[Mapping[str, Any]], dataset_dir: str | Path) -> dict[str, Described]:
    root = Path(dataset_dir)
    above = {folder for item in items for folder in Path(str(item["label"])).parents if folder.is_relative_to(root)}
    merged: dict[str, Described] = {}
    for path in sorted(path for folder in {root, *above} for path in folder.glob(NAME_TABLES)):
        for name, described in read_name_table(path).items():
            check_grades(name, merged.setdefault(name, described), described)
    return merged


def _et_sizes(patients: Sequence[Sequence[Mapping[str, Any]]]) -> list[float]:
    """Mean size of the ET of each patient's cases in ml; -1 where no label map can be read."""
    items = [item for patient in patients for item in patient]
    logger.info("Reading %d label maps, to make folds of similar ET sizes", len(items))
    # Decompression releases the interpreter's lock, so threads use all cores.
    with ThreadPoolExecutor(processors()) as pool:
        sizes = iter(list(pool.map(et_size, items)))
    known = [[size for _ in patient if (size := next(sizes)) is not None] for patient in patients]
    return [float(np.mean(mine)) if mine else -1.0 for mine in known]


def et_size(item: Mapping[str, Any]) -> float | None:
    """Volume of an entry's ET in ml, or None if its label map cannot be read."""
    path = str(item["label"])
    try:
        image = read_image(path)
        voxels = voxels_of(image, path)
    except InputError:
        # The checks before the run report the file.
        return None
    return float(np.count_nonzero(voxels == item["et_label"]) * voxel_sizes(image.affine).prod() / 1000)
