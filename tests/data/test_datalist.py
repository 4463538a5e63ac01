# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Cases are found in every release's layout and split without loss, and the recorded split can be used again."""

import errno
import itertools
import json
import logging
import os
import re
from pathlib import Path

import pytest
from monai.data import partition_dataset
from scripts.brats import case_name, patient_name, sequence_named
from scripts.data.cases import find_cases, missing_sequences, resolve_image
from scripts.data.datalist import (
    complete_item,
    labeled_items,
    select,
    split_datalist,
    unlabeled_items,
    warn_of_shared_patients,
)
from scripts.data.datalist_file import read_datalist, write_datalist
from scripts.utils.errors import InputError

OLD = ("t1", "t2", "t1ce", "flair")
NEW = ("t1n", "t2w", "t1c", "t2f")


def make_case(folder, old=True, label=True, extension=".nii.gz", leave_out=()):
    """Make a case folder of empty files, because the search for cases must not read them."""
    separator, suffixes = ("_", OLD) if old else ("-", NEW)
    folder.mkdir(parents=True)
    for suffix in (*suffixes, *(["seg"] if label else [])):
        if suffix not in leave_out:
            (folder / f"{folder.name}{separator}{suffix}{extension}").touch()
    return folder


def cohort(root, count, **arguments):
    for index in range(1, count + 1):
        make_case(root / f"BraTS20_Training_{index:03}", **arguments)
    return root


def found(root):
    return [case.name for case in find_cases(root)]


def contents(path):
    return json.loads(path.read_text())


# Layouts.


def test_brats_2020_beside_tables_and_hidden_files(tmp_path):
    root = cohort(tmp_path / "MICCAI_BraTS2020_TrainingData", 2)
    make_case(root / "BraTS20_Training_003", extension=".nii")
    for stray in ("name_mapping.csv", "survival_info.csv", ".DS_Store", "README_t1.txt", "notes_t1.nii.gz.part"):
        (root / stray).touch()
    inside = root / "BraTS20_Training_001"
    for stray in (
        "._BraTS20_Training_001_t1.nii.gz",
        ".BraTS20_Training_009_t1.nii.gz",
        "BraTS20_Training_001_t1.json",
    ):
        (inside / stray).touch()
    make_case(root / ".trash" / "BraTS20_Training_004")
    (root / "empty").mkdir()
    assert found(tmp_path) == ["BraTS20_Training_001", "BraTS20_Training_002", "BraTS20_Training_003"]
    items = labeled_items(tmp_path)
    assert [Path(p).name for p in items[2]["image"]] == [f"BraTS20_Training_003_{s}.nii" for s in OLD]
    assert {item["et_label"] for item in items} == {4}


def test_brats_2020_case_355_has_its_segmentation_under_an_older_name(tmp_path):
    folder = make_case(tmp_path / "BraTS20_Training_355", label=False, extension=".nii")
    (folder / "W39_1998.09.19_Segm.nii").touch()
    (folder / "._W39_1998.09.19_Segm.nii").touch()
    (item,) = labeled_items(tmp_path)
    assert item["case"] == "BraTS20_Training_355"
    assert item["label"] == str(folder / "W39_1998.09.19_Segm.nii")
    assert [Path(p).name for p in item["image"]] == [f"BraTS20_Training_355_{s}.nii" for s in OLD]


def test_the_older_name_does_not_overrule_the_released_one_and_is_not_guessed_between_two(tmp_path):
    released = make_case(tmp_path / "BraTS20_Training_001")
    (released / "W1_Segm.nii").touch()
    ambiguous = make_case(tmp_path / "BraTS20_Training_002", label=False)
    for name in ("W1_Segm.nii", "W2_Segm.nii"):
        (ambiguous / name).touch()
    (item,) = labeled_items(tmp_path)
    assert item["label"] == str(released / "BraTS20_Training_001_seg.nii.gz")


def test_visits_of_one_patient_are_cases_of_their_own(tmp_path):
    for visit in ("BraTS-GLI-00005-100", "BraTS-GLI-00005-101"):
        make_case(tmp_path / visit, old=False)
    assert found(tmp_path) == ["BraTS-GLI-00005-100", "BraTS-GLI-00005-101"]


def test_cases_of_one_flat_folder_are_told_apart_by_their_names(tmp_path):
    for name in ("BraTS2021_00000", "BraTS2021_00001"):
        for suffix in (*OLD, "seg"):
            (tmp_path / f"{name}_{suffix}.nii.gz").touch()
    items = labeled_items(tmp_path)
    assert [item["case"] for item in items] == ["BraTS2021_00000", "BraTS2021_00001"]
    assert all(Path(p).name.startswith(item["case"]) for item in items for p in [*item["image"], item["label"]])


def test_the_folder_of_one_case_is_a_dataset_too(tmp_path):
    folder = make_case(tmp_path / "BraTS20_Training_007")
    assert found(folder) == ["BraTS20_Training_007"]
    assert labeled_items(folder) == labeled_items(tmp_path)


def test_unlabeled_cases_serve_inference_only(tmp_path):
    make_case(tmp_path / "BraTS20_Validation_001", label=False)
    make_case(tmp_path / "BraTS20_Validation_002")
    items = unlabeled_items(tmp_path)
    assert [item["case"] for item in items] == ["BraTS20_Validation_001", "BraTS20_Validation_002"]
    assert all(sorted(item) == ["case", "image"] for item in items)
    assert [item["case"] for item in labeled_items(tmp_path)] == ["BraTS20_Validation_002"]


def test_incomplete_cases_are_found_with_what_they_lack_and_not_listed_for_training(tmp_path):
    make_case(tmp_path / "BraTS20_Training_001", leave_out=("t1ce", "flair"))
    make_case(tmp_path / "BraTS-GLI-00001-000", old=False, leave_out=("t2w",))
    missing = {case.name: case.missing for case in find_cases(tmp_path)}
    assert missing == {
        "BraTS20_Training_001": ["BraTS20_Training_001_t1ce.nii.gz", "BraTS20_Training_001_flair.nii.gz"],
        "BraTS-GLI-00001-000": ["BraTS-GLI-00001-000-t2w.nii.gz"],
    }
    assert labeled_items(tmp_path) == []
    assert labeled_items(tmp_path, incomplete=True) != []
    lists = (unlabeled_items(tmp_path), labeled_items(tmp_path, incomplete=True))
    assert [[missing_sequences(item["image"]) for item in items] for items in lists] == [
        [["t2"], ["t1ce", "flair"]]
    ] * 2


def test_predictions_below_the_cases_are_no_cases(tmp_path):
    cohort(tmp_path, 1)
    predictions = tmp_path / "predictions"
    predictions.mkdir()
    for name in ("BraTS20_Training_001.nii.gz", "BraTS20_Training_001_seg.nii.gz", "BraTS20_Training_002_seg.nii"):
        (predictions / name).touch()
    assert [str(case.folder) for case in find_cases(tmp_path)] == [str(tmp_path / "BraTS20_Training_001")]


def test_links_are_followed_once_and_never_in_a_circle(tmp_path):
    elsewhere = make_case(tmp_path / "disk2" / "BraTS20_Training_002")
    root = cohort(tmp_path / "cohort", 1)
    (root / "BraTS20_Training_002").symlink_to(elsewhere)
    (root / "again").symlink_to(elsewhere)
    (root / "BraTS20_Training_001" / "up").symlink_to(root)
    (root / "self").symlink_to(root / "self")
    (root / "dangling").symlink_to(tmp_path / "absent")
    assert found(root) == ["BraTS20_Training_001", "BraTS20_Training_002"]


def test_an_absent_or_empty_folder_has_no_cases(tmp_path):
    for root in (tmp_path, tmp_path / "absent"):
        assert find_cases(root) == labeled_items(root) == unlabeled_items(root) == []
        assert split_datalist(root) == {"training": [], "validation": [], "all": []}


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    make_case(tmp_path / "BraTS20_Training_001")
    closed = make_case(tmp_path / "BraTS20_Training_002")
    scandir = os.scandir

    def refusing(path):
        if Path(path) == closed:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(InputError) as caught:
        labeled_items(tmp_path)
    assert str(caught.value) == (
        f"{closed}: cannot be read (Permission denied), so its cases would be missing; "
        "make it readable, or move it out of --dataset_dir."
    )


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("/d/BraTS20_Training_001/BraTS20_Training_001_t1ce.nii.gz", "BraTS20_Training_001"),
        ("BraTS20_Training_001_flair.nii", "BraTS20_Training_001"),
        ("BraTS-GLI-00000-000-t2f.nii.gz", "BraTS-GLI-00000-000"),
        ("patient_t1_t1.nii.gz", "patient_t1"),
        ("scan.nii.gz", "scan"),
        ("BraTS20_Training_001.nii.gz", "BraTS20_Training_001"),
        ("BraTS-GLI-00000-000-t1n.nii.gz", "BraTS-GLI-00000-000"),
        ("p.1.nii.gz", "p.1"),
        ("p.2.nii", "p.2"),
        ("p.1_t1.nii.gz", "p.1"),
        ("W39_1998.09.19.nii.gz", "W39_1998.09.19"),
        ("p.1.NII.GZ", "p.1"),
        ("p.1.mha", "p.1"),
    ],
)
def test_case_names_come_from_file_names(file, name):
    assert case_name(file) == case_name(Path(file)) == name


# The ET label.


@pytest.mark.parametrize(("et_label", "release"), [(3, None), (4, None), (3, 2024), (4, 2015)])
def test_an_explicit_choice_of_values_counts_for_all(tmp_path, et_label, release):
    make_case(tmp_path / "BraTS2021_00000")
    make_case(tmp_path / "BraTS-GLI-00000-000", old=False)
    choice = {"label_release": release} if release else {"et_label": et_label}
    for items in (labeled_items(tmp_path, **choice), split_datalist(tmp_path, **choice)["all"]):
        assert [(i["et_label"], i["label_release"]) for i in items] == [(et_label, release or 0)] * 2


# The split.


@pytest.mark.parametrize(
    ("count", "fraction", "held_out"),
    [
        (10, 0.2, 2),
        (10, 0, 0),
        (11, 0.2, 2),
        (13, 0.2, 3),
        (2, 0.2, 1),
        (3, 0.01, 1),
        (4, 0.99, 3),
        (5, 0.4, 2),
        (369, 0.2, 74),
    ],
)
def test_split_has_the_share_asked_for_and_at_least_one_each_unless_it_is_0(tmp_path, count, fraction, held_out):
    split = split_datalist(cohort(tmp_path, count), validation_fraction=fraction)
    assert len(split["validation"]) == held_out
    assert len(split["training"]) == count - held_out


@pytest.mark.parametrize("seed", range(4))
def test_split_is_disjoint_complete_and_repeatable(tmp_path, seed):
    cohort(tmp_path, 20)
    split = split_datalist(tmp_path, seed=seed)
    assert split == split_datalist(tmp_path, seed=seed)
    assert split["all"] == split["training"] + split["validation"]
    everything = sorted(split["all"], key=lambda item: item["case"])
    assert everything == labeled_items(tmp_path)
    for part in ("training", "validation"):
        cases = [item["case"] for item in split[part]]
        assert cases == sorted(cases)


def test_seeds_give_different_splits_that_hold_out_every_case_at_some_time(tmp_path):
    cohort(tmp_path, 10)
    held_out = [tuple(i["case"] for i in split_datalist(tmp_path, seed=s)["validation"]) for s in range(40)]
    assert len(set(held_out)) > 10
    assert {case for cases in held_out for case in cases} == set(found(tmp_path))


def test_split_does_not_depend_on_where_the_cohort_lies(tmp_path):
    splits = [split_datalist(cohort(tmp_path / place, 10)) for place in ("a", "b/c")]
    names = [[item["case"] for item in split["validation"]] for split in splits]
    assert names[0] == names[1]


# Patients with several visits.


@pytest.mark.parametrize(
    ("case", "patient"),
    [
        ("BraTS-GLI-00005-100", "BraTS-GLI-00005"),
        ("BraTS-GLI-00005-101", "BraTS-GLI-00005"),
        ("BraTS-MEN-RT-0001-1", "BraTS-MEN-RT-0001"),
        ("brats-ped-00002-000", "brats-ped-00002"),
        ("BraTS-GoAT-00005", "BraTS-GoAT-00005"),
        ("Brats17_TCIA_105_1", "Brats17_TCIA_105"),
        ("Brats18_TCIA01_378_1", "Brats18_TCIA01_378"),
        ("Brats18_2013_0_1", "Brats18_2013_0"),
        ("Brats18_CBICA_AAM_1", "Brats18_CBICA_AAM"),
        ("BraTS19_TMC_06290_1", "BraTS19_TMC_06290"),
        ("BraTS20_Training_001", "BraTS20_Training_001"),
        ("BraTS20_Validation_001", "BraTS20_Validation_001"),
        ("BraTS2021_00000", "BraTS2021_00000"),
        ("BRATS_001", "BRATS_001"),
        ("TCGA-DU-7294", "TCGA-DU-7294"),
        ("scan_2", "scan_2"),
    ],
)
def test_patients_are_known_by_names_without_the_visit(case, patient):
    assert patient_name(case) == patient


def visits(root, *counts):
    """Make patients with the given numbers of visits, with the names of BraTS 2024."""
    for patient, count in enumerate(counts):
        for visit in range(count):
            make_case(root / f"BraTS-GLI-{patient:05}-{100 + visit}", old=False)
    return root


def names(items):
    return [item["case"] for item in items]


def patients(items):
    return {item["case"][:15] for item in items}


@pytest.mark.parametrize("seed", range(8))
def test_visits_of_one_patient_stay_together(tmp_path, seed):
    root = visits(tmp_path, 1, 3, 2, 1, 4, 1, 2, 2, 1, 3)
    split = split_datalist(root, seed=seed)
    assert not patients(split["training"]) & patients(split["validation"])
    assert (len(split["training"]), len(split["validation"])) == (16, 4)
    held_out = []
    for fold in range(5):
        split = split_datalist(root, seed=seed, fold=fold)
        assert not patients(split["training"]) & patients(split["validation"])
        assert len(split["validation"]) == 4
        assert sorted(names(split["all"])) == found(root)
        held_out += names(split["validation"])
    assert sorted(held_out) == found(root)


@pytest.mark.parametrize(
    ("counts", "fraction", "held_out"),
    # The share is as near as whole patients allow. At least one patient is held out, and never all of them.
    [((3, 3, 3), 0.2, 3), ((2, 2, 2, 2), 0.3, 2), ((4, 4, 4), 0.6, 8), ((5, 1), 0.2, 1), ((2, 2, 2), 0.5, 2)],
)
def test_the_share_held_out_is_as_near_as_whole_patients_allow(tmp_path, counts, fraction, held_out):
    for seed in range(4):
        split = split_datalist(visits(tmp_path / str(seed), *counts), validation_fraction=fraction, seed=seed)
        assert len(split["validation"]) == held_out
        assert len(split["all"]) == sum(counts)


def test_visits_of_one_patient_alone_are_for_training(tmp_path, caplog):
    split = split_datalist(visits(tmp_path, 3))
    assert (len(split["training"]), len(split["validation"])) == (3, 0)
    assert caplog.messages == ["All 3 labeled cases are of one patient, so none is held out."]


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ((2, 2, 2), "--folds 5: 6 labeled cases of 3 patients make 2 to 3 folds."),
        ((6,), "--folds 5: 6 labeled cases of 1 patient make no folds."),
        ((1, 1), "--folds 5: 2 labeled cases make 2 to 2 folds."),
    ],
)
def test_fewer_patients_than_folds_are_refused(tmp_path, counts, said):
    with pytest.raises(InputError) as caught:
        split_datalist(visits(tmp_path, *counts), fold=0)
    assert str(caught.value) == said


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("count", [5, 11, 16, 29])
def test_where_each_case_is_a_patient_the_split_is_monais(tmp_path, count, seed):
    """An earlier version split cases without regard to patients; its splits are made again."""
    items = labeled_items(cohort(tmp_path, count))
    held_out = round(count * 0.2)
    parts = partition_dataset(items, ratios=[count - held_out, held_out], shuffle=True, seed=seed)
    split = split_datalist(tmp_path, seed=seed)
    assert [names(split[part]) for part in ("training", "validation")] == [sorted(names(part)) for part in parts]
    parts = partition_dataset(items, num_partitions=5, shuffle=True, seed=seed)
    for fold in range(5):
        split = split_datalist(tmp_path, seed=seed, fold=fold)
        assert names(split["validation"]) == sorted(names(parts[fold]))
        assert names(split["training"]) == sorted(set(names(items)) - set(names(parts[fold])))


@pytest.mark.parametrize("given", ["datalist_file", "recorded"])
def test_a_given_split_that_shares_a_patient_is_warned_of_and_taken(tmp_path, given, caplog):
    items = labeled_items(visits(tmp_path / "data", 2, 1, 2))
    caplog.set_level(logging.WARNING)
    file = tmp_path / "list.json"
    where = "in training and in validation; the validation scores then say nothing about new patients"
    for training, validation, said in (
        (items[:2], items[2:], None),
        (items[:1], items[1:], f"{file}: a patient is {where}: BraTS-GLI-00000"),
        # The same case may be on both sides, to see whether a network can learn it.
        (items, items[1:], f"{file}: 3 patients are {where}: BraTS-GLI-00000, BraTS-GLI-00001, BraTS-GLI-00002"),
    ):
        caplog.clear()
        write_datalist({"training": training, "validation": validation}, tmp_path / "data", file)
        split = split_datalist(tmp_path / "data", **{given: file})
        assert (split["training"], split["validation"]) == (training, validation)
        assert caplog.messages == ([said] if said else [])


def test_patients_are_known_by_their_images_whatever_the_case_is_called(tmp_path, caplog):
    """This holds for a caller's own lists, too."""
    caplog.set_level(logging.WARNING)
    items = labeled_items(visits(tmp_path / "data", 2, 1))
    renamed = [{**item, "case": f"p{number}"} for number, item in enumerate(items)]
    warn_of_shared_patients(renamed[:1], renamed[1:], "mine")
    (message,) = caplog.messages
    assert message.startswith("mine: a patient is in training and in validation") and message.endswith(
        " BraTS-GLI-00000"
    )
    caplog.clear()
    warn_of_shared_patients(renamed[:2], renamed[2:], "mine")
    assert caplog.messages == []


def test_a_single_case_is_for_training(tmp_path):
    split = split_datalist(cohort(tmp_path, 1))
    assert (len(split["training"]), len(split["validation"]), len(split["all"])) == (1, 0, 1)


def test_lists_are_selected_by_name(tmp_path):
    split = split_datalist(cohort(tmp_path, 5))
    for name in ("training", "validation", "all"):
        assert select(split, name) is split[name]
    with pytest.raises(InputError, match="--cases test: unknown; choose one of training, validation, all"):
        select(split, "test")


# Datalist files.


def test_a_written_split_is_read_back_as_it_was(tmp_path):
    root = cohort(tmp_path / "data", 6)
    split = split_datalist(root, seed=3, et_label=3)
    write_datalist(split, root, tmp_path / "out" / "datalist.json")
    assert read_datalist(tmp_path / "out" / "datalist.json", root) == {
        "training": split["training"],
        "validation": split["validation"],
    }
    # A run that finds its own datalist ignores a new seed and a new share.
    again = split_datalist(root, tmp_path / "out" / "datalist.json", validation_fraction=0.5, seed=9)
    assert again == split


def test_a_datalist_names_the_order_of_channels_and_relative_paths(tmp_path):
    root = cohort(tmp_path / "data", 2)
    write_datalist(split_datalist(root), root, tmp_path / "datalist.json")
    written = contents(tmp_path / "datalist.json")
    assert written["sequences"] == ["t1", "t2", "t1ce", "flair"]
    files = [p for name in ("training", "validation") for i in written[name] for p in [*i["image"], i["label"]]]
    assert len(files) == 10 and not any(os.path.isabs(p) for p in files)


def test_a_datalist_survives_moving_the_cohort(tmp_path):
    root = cohort(tmp_path / "data", 4)
    split = split_datalist(root)
    write_datalist(split, root, tmp_path / "datalist.json")
    moved = root.rename(tmp_path / "moved")
    lists = read_datalist(tmp_path / "datalist.json", moved)
    for name in ("training", "validation"):
        assert [i["case"] for i in lists[name]] == [i["case"] for i in split[name]]
        assert all(Path(p).is_file() and Path(p).is_relative_to(moved) for i in lists[name] for p in i["image"])


def test_a_relative_dataset_folder_gives_the_same_datalist(tmp_path, monkeypatch):
    root = cohort(tmp_path / "data", 3)
    monkeypatch.chdir(tmp_path)
    write_datalist(split_datalist(root), root, tmp_path / "a.json")
    write_datalist(split_datalist("data"), "./data", tmp_path / "b.json")
    assert contents(tmp_path / "a.json") == contents(tmp_path / "b.json")


def test_files_outside_the_dataset_folder_keep_their_full_path(tmp_path):
    split = split_datalist(cohort(tmp_path / "data", 2))
    write_datalist(split, tmp_path / "other", tmp_path / "datalist.json")
    assert read_datalist(tmp_path / "datalist.json", tmp_path / "third")["training"] == split["training"]


def minimal(**changes):
    return {"image": [f"a/a_{s}.nii.gz" for s in OLD], "label": "a/a_seg.nii.gz", **changes}


def test_a_datalist_by_hand_needs_images_and_label_only(tmp_path):
    new = {"image": [f"b/b-{s}.nii.gz" for s in NEW], "label": "b/b-seg.nii.gz"}
    files = ["x_T2 FLAIR.nii", "T1-Gd.nii", "z_t1w.nii", "w-T2.nii"]
    other = minimal(image=files, et_label=3, edema_label=1, case="mine", fold=2)
    other["label_release"] = 2024
    path = tmp_path / "list.json"
    path.write_text(json.dumps({"training": [minimal(), new], "validation": [other]}))
    lists = read_datalist(path, "/data")
    assert lists["training"] == [
        {
            "case": "a",
            "image": [f"/data/a/a_{s}.nii.gz" for s in OLD],
            "label": "/data/a/a_seg.nii.gz",
            "et_label": 4,
            "edema_label": 2,
            "label_release": 0,
        },
        {
            "case": "b",
            "image": [f"/data/b/b-{s}.nii.gz" for s in NEW],
            "label": "/data/b/b-seg.nii.gz",
            "et_label": 3,
            "edema_label": 2,
            "label_release": 0,
        },
    ]
    (item,) = lists["validation"]
    assert (item["case"], item["et_label"], item["edema_label"], item["label_release"]) == ("mine", 3, 1, 2024)
    assert item["image"] == [f"/data/{files[number]}" for number in (2, 3, 1, 0)]


@pytest.mark.parametrize("names", [("x", "y", "z", "w"), OLD])
def test_a_datalist_that_says_its_sequences_is_obeyed(tmp_path, names):
    """The datalist may say any order; the images are put into the network's order."""
    for order in (("t1", "t1ce", "t2", "flair"), ("FLAIR", "T1w", "T1Gd", "T2w"), ("T2", "t1c", "T2-FLAIR", "t1")):
        known = [sequence_named(name) for name in order]
        by_sequence = dict(zip(OLD, names, strict=True))
        image = [f"p_{by_sequence[s]}.nii" for s in known]
        entry = {"image": image, "label": "p_seg.nii", "et_label": 4, "edema_label": 2, "case": "p"}
        path = tmp_path / "list.json"
        path.write_text(json.dumps({"sequences": order, "training": [entry], "validation": []}))
        (item,) = read_datalist(path, "/data")["training"]
        assert item["image"] == [f"/data/p_{name}.nii" for name in names]
        # Writing the datalist again does not change it.
        write_datalist({"training": [item], "validation": []}, "/data", tmp_path / "again.json")
        assert read_datalist(tmp_path / "again.json", "/data")["training"] == [item]


@pytest.mark.parametrize("order", itertools.permutations(OLD))
def test_files_that_tell_their_sequences_are_put_in_order(tmp_path, order):
    """This holds for a datalist that does not say its sequences, and for a caller's own list."""
    image = [f"a/a_{sequence}.nii.gz" for sequence in order]
    (tmp_path / "list.json").write_text(json.dumps({"training": [minimal(image=image)], "validation": []}))
    (item,) = read_datalist(tmp_path / "list.json", "/data")["training"]
    wanted = [f"a/a_{sequence}.nii.gz" for sequence in OLD]
    assert item["image"] == [f"/data/{file}" for file in wanted]
    assert resolve_image(image) == wanted
    assert resolve_image(["d.nii", "c.nii", "b.nii", "a.nii"]) == ["d.nii", "c.nii", "b.nii", "a.nii"]


def test_names_by_other_conventions_do_not_overrule_the_list(tmp_path):
    """In BIDS, T1 with and without contrast agent end alike, because the agent has a part of the name of its own."""
    image = ["s_T1w.nii.gz", "s_ce-gadolinium_T1w.nii.gz", "s_T2w.nii.gz", "s_FLAIR.nii.gz"]
    entry = {"image": image, "label": "s_seg.nii.gz", "et_label": 4, "edema_label": 2}
    lists = {"training": [entry], "validation": []}
    path = tmp_path / "list.json"
    path.write_text(json.dumps({"sequences": ["t1", "t1ce", "t2", "flair"], **lists}))
    (item,) = read_datalist(path, "/data")["training"]
    assert item["image"] == [f"/data/{image[number]}" for number in (0, 2, 1, 3)]
    path.write_text(json.dumps(lists))
    with pytest.raises(InputError, match="neither 'sequences' nor the names of these files say"):
        read_datalist(path, "/data")


def test_a_callers_own_images_must_tell_their_sequences():
    entry = {"image": ["x.nii.gz", "y.nii.gz", "z.nii.gz", "w.nii.gz"], "label": "l.nii.gz"}
    with pytest.raises(InputError, match="which sequence each file is; let them end in _t1, _t2, _t1ce, _flair"):
        complete_item(entry, 4)
    # Images that a datalist has already put into order are not reordered.
    assert complete_item({**entry, "case": "p"}, 4)["image"] == entry["image"]
    told = [f"p_{sequence}.nii.gz" for sequence in ("flair", "t1", "t1ce", "t2")]
    assert complete_item({"image": told}, 4)["case"] == "p"


@pytest.mark.parametrize(
    ("sequences", "image", "said"),
    [
        (
            None,
            ["x.nii", "y.nii", "z.nii", "w.nii"],
            "neither 'sequences' nor the names of these files say which sequence",
        ),
        (
            None,
            ["a_t1.nii", "b_t1.nii", "c_t2.nii", "d_flair.nii"],
            "neither 'sequences' nor the names of these files say",
        ),
        (["t1", "t2"], list("xyzw"), '\'sequences\' is ["t1", "t2"]; list each of t1, t2, t1ce, flair once'),
        (["t1", "t1", "t2", "flair"], list("xyzw"), "list each of t1, t2, t1ce, flair once"),
        ("t1 t2 t1ce flair", list("xyzw"), "list each of t1, t2, t1ce, flair once"),
        (list(OLD), ["a_t1.nii", "a_t1ce.nii", "a_t2.nii", "a_flair.nii"], "a_t1ce.nii is t2, but its name says t1ce"),
    ],
)
def test_a_datalist_of_which_nothing_tells_the_sequences_is_refused(tmp_path, sequences, image, said):
    entry = {"image": image, "label": "seg.nii", "et_label": 4}
    stated = {} if sequences is None else {"sequences": sequences}
    path = tmp_path / "list.json"
    path.write_text(json.dumps({**stated, "training": [], "validation": [entry]}))
    with pytest.raises(InputError, match=re.escape(said)) as caught:
        read_datalist(path, tmp_path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_an_explicit_et_label_overrules_the_datalists(tmp_path):
    path = tmp_path / "list.json"
    path.write_text(json.dumps({"training": [minimal()], "validation": [minimal(case="b", et_label=4)]}))
    split = split_datalist("/data", path, et_label=3)
    assert [(i["et_label"], i["label_release"]) for i in split["all"]] == [(3, 0), (3, 0)]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "not JSON"),
        ("training: []", "not JSON"),
        ("\xff\xfe", "not JSON"),
        ("[]", "no list 'training'"),
        ("3", "no list 'training'"),
        ('{"validation": []}', "no list 'training'; a training or an evaluation needs one"),
        ('{"testing": []}', "no list 'training'; a training or an evaluation needs one"),
        ('{"training": {}, "validation": []}', "'training' is no list"),
        ('{"training": ["a"], "validation": []}', "lacks 'image'"),
        ('{"training": [{"image": 1, "label": "b"}], "validation": []}', "lacks 'image'"),
        ('{"training": [], "validation": [{"image": ["a", "b", "c", "d"]}]}', "'label' (file)"),
        (
            '{"training": [{"image": ["a_t1.nii"], "label": "b"}], "validation": []}',
            "'image' must list four files, t1, t2, t1ce, flair",
        ),
        (
            '{"training": [{"image": ["a_t1", "b_t2", "c_t1gd", "d_flair"], "label": "b"}], "validation": []}',
            "'et_label' (3 or 4)",
        ),
        ('{"training": [{"image": [1, 2, 3, 4], "label": "b"}], "validation": []}', "'image' must list"),
        (
            '{"training": [{"image": ["a_t1", "b_t2", "c_t1gd", "d_flair"], "label": "b", "et_label": 7}],'
            ' "validation": []}',
            "'et_label' is 3 or 4",
        ),
        (
            '{"training": [{"image": ["a_t1", "b_t2", "c_t1gd", "d_flair"], "label": "b", "et_label": 4}],'
            ' "validation": []}',
            "an entry has no 'edema_label' (2 as in BraTS, 1 as in the Decathlon; core has the other value)",
        ),
        ('{"training": [{"image": "a.nii", "label": "b", "et_label": 4}], "validation": []}', "has no 'edema_label'"),
        (
            '{"training": [{"image": "imagesTr/a.nii", "label": "b", "et_label": 4}], "validation": []}',
            "has no 'edema_label'",
        ),
        (
            '{"training": [{"image": "a.nii", "label": "b", "et_label": 3, "edema_label": 3}], "validation": []}',
            "'edema_label' is 1 or 2",
        ),
    ],
)
def test_a_malformed_datalist_is_refused_by_name(tmp_path, content, said):
    path = tmp_path / "list.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError, match=re.escape(said)) as caught:
        split_datalist(tmp_path, path)
    assert str(caught.value).startswith(f"{path}: ")


def test_an_absent_datalist_is_refused_by_name(tmp_path):
    for path in (tmp_path / "absent.json", tmp_path):
        with pytest.raises(InputError, match="give an existing --datalist_file") as caught:
            split_datalist(tmp_path, path)
        assert str(caught.value).startswith(f"{path}: cannot be read")


def test_the_trainings_split_is_taken_before_a_new_one_but_not_before_a_chosen_one(tmp_path):
    root = cohort(tmp_path / "data", 10)
    trained, chosen = split_datalist(root, seed=1), split_datalist(root, seed=2)
    fresh = split_datalist(root, seed=3)
    assert len({str(s["validation"]) for s in (trained, chosen, fresh)}) == 3
    recorded, file = tmp_path / "datalist.json", tmp_path / "chosen.json"
    # There is no recorded split yet.
    assert split_datalist(root, recorded=recorded, seed=3) == fresh
    write_datalist(trained, root, recorded)
    write_datalist(chosen, root, file)
    assert split_datalist(root, recorded=recorded, seed=3) == trained
    assert split_datalist(root, file, recorded, seed=3) == chosen
    # Cases that were added later stay out of the split, so that none of them joins the held-out cases.
    make_case(root / "BraTS20_Training_999")
    assert split_datalist(root, recorded=recorded, seed=3) == trained


def test_for_all_cases_nothing_is_split_anew(tmp_path, caplog):
    root = cohort(tmp_path / "data", 10)
    items, recorded = labeled_items(root), tmp_path / "datalist.json"
    for fold in (None, 1):
        split = split_datalist(root, recorded=recorded, fold=fold, cases="all")
        assert split == {"training": items, "validation": [], "all": items}
    assert caplog.messages == []
    # A list without a split need not be split either, and a recorded split is taken as it is.
    write_datalist({"training": items[:4]}, root, tmp_path / "given.json")
    assert split_datalist(root, tmp_path / "given.json", recorded, cases="all")["all"] == items[:4]
    trained = split_datalist(root, seed=1)
    write_datalist(trained, root, recorded)
    assert split_datalist(root, recorded=recorded, cases="all") == trained


def test_a_list_for_inference_is_no_recorded_split(tmp_path):
    root, recorded = cohort(tmp_path / "data", 3), tmp_path / "datalist.json"
    write_datalist({"testing": unlabeled_items(root)}, root, recorded)
    with pytest.raises(InputError, match="no split into training and validation; give the --output_dir of a training"):
        split_datalist(root, recorded=recorded)


@pytest.mark.parametrize("name", ["../evil", "a/b", "", 3, "..", "n" * 201])
def test_a_case_is_a_plain_name(tmp_path, name):
    """Results are named after the case."""
    entry = {"case": name, "image": [f"p_{s}.nii.gz" for s in OLD], "label": "p_seg.nii.gz"}
    path = tmp_path / "list.json"
    path.write_text(json.dumps({"training": [entry], "validation": []}))
    with pytest.raises(InputError, match="'case' must be a plain name"):
        read_datalist(path, tmp_path)
