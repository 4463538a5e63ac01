# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Folds are whole patients, equally many, and alike in grade, site and size of ET."""

import json
import logging
import re
from collections import Counter
from unittest import mock

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripts.data import splits
from scripts.data.datalist import labeled_items, split_datalist
from scripts.data.datalist_file import read_datalist, write_datalist
from scripts.data.splits import et_size, make_folds, patient_of
from scripts.data.tables import read_name_table
from scripts.utils.errors import InputError

QUICK = settings(max_examples=60, deadline=None, derandomize=True)
PATIENT = st.tuples(
    st.sampled_from(["HGG", "LGG", None]),
    st.sampled_from(["CBICA", "TCIA01", None]),
    st.integers(1, 3),
    st.one_of(st.none(), st.floats(0, 100)),
)
SEQUENCES = ("t1", "t2", "t1ce", "flair")
COLUMNS = "Grade,BraTS_2017_subject_ID,BraTS_2018_subject_ID,TCGA_TCIA_subject_ID,BraTS_2019_subject_ID"


def entries(patients):
    """Entries of patients by grade, site, number of visits and size of ET, and the sizes by the entry's label."""
    items, sizes = [], {}
    for number, (grade, site, visits, size) in enumerate(patients):
        described = {key: value for key, value in (("grade", grade), ("site", site)) if value}
        for visit in range(visits):
            name = f"BraTS-GLI-{number:05}-{100 + visit}"
            items.append({"case": name, "image": f"{name}.nii", "label": f"{name}_l.nii", "et_label": 3, **described})
            sizes[f"{name}_l.nii"] = size
    return items, sizes


def folds_of(items, sizes, count, seed):
    with mock.patch.object(splits, "et_size", lambda item: sizes[item["label"]]):
        return make_folds(items, count, seed, "/nowhere")


def within(counts, most):
    return max(counts) - min(counts) <= most


@QUICK
@given(
    patients=st.lists(PATIENT, min_size=5, max_size=40),
    count=st.integers(2, 5),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_folds_are_a_partition_into_whole_patients_whatever_the_order_of_the_entries(patients, count, seed, data):
    items, sizes = entries(patients)
    parts = folds_of(items, sizes, count, seed)
    assert sorted(item["case"] for part in parts for item in part) == [item["case"] for item in items]
    held = [{patient_of(item) for item in part} for part in parts]
    assert sum(map(len, held)) == len(patients)
    # The largest patient comes first, so the smallest one may fill up.
    assert within([len(part) for part in parts], max(visits for *_, visits, _ in patients))
    assert folds_of(data.draw(st.permutations(items)), sizes, count, seed) == parts


@QUICK
@given(patients=st.lists(PATIENT, min_size=5, max_size=60), count=st.integers(2, 5), seed=st.integers(0, 99))
def test_of_patients_with_one_case_each_stratum_is_spread_evenly(patients, count, seed):
    items, sizes = entries([(grade, site, 1, size) for grade, site, _, size in patients])
    parts = folds_of(items, sizes, count, seed)
    assert within([len(part) for part in parts], 1)
    strata = [Counter((item.get("grade"), item.get("site")) for item in part) for part in parts]
    for stratum in {(grade, site) for grade, site, *_ in patients}:
        assert within([counted[stratum] for counted in strata], 1)


@QUICK
@given(sizes=st.lists(st.floats(0, 100), min_size=5, max_size=40), count=st.integers(2, 5), seed=st.integers(0, 99))
def test_each_fold_gets_one_of_the_largest_and_one_of_the_next(sizes, count, seed):
    items, by_label = entries([("HGG", "CBICA", 1, size) for size in sizes])
    parts = folds_of(items, by_label, count, seed)
    ranked = sorted(sizes, reverse=True)
    for part in parts:
        mine = sorted((by_label[item["label"]] for item in part), reverse=True)
        for rank, size in enumerate(mine):
            block = ranked[rank * count : (rank + 1) * count]
            assert min(block) <= size <= max(block)


# From files.


def write_case(folder, et_voxels, sequences=SEQUENCES, spacing=(1, 1, 1), et_label=4):
    """Write a case with that many voxels of ET, in the format of BraTS 2017 to 2021. The images are not read."""
    folder.mkdir(parents=True)
    for sequence in sequences:
        (folder / f"{folder.name}_{sequence}.nii.gz").touch()
    labels = np.random.default_rng(list(folder.name.encode())).integers(0, 3, 2000).astype(np.uint8)
    labels[:et_voxels] = et_label
    image = nib.Nifti1Image(labels.reshape(10, 10, 20), np.diag([*spacing, 1]))
    nib.save(image, folder / f"{folder.name}_seg.nii.gz")


def held_out(root, folds=5, **arguments):
    return [
        [item["case"] for item in split_datalist(root, folds=folds, fold=n, **arguments)["validation"]]
        for n in range(folds)
    ]


def test_the_size_of_et_is_counted_in_the_label_map(tmp_path):
    write_case(tmp_path / "BraTS2021_00001", 300, spacing=(1, 1.5, 2))
    (item,) = labeled_items(tmp_path)
    assert et_size(item) == pytest.approx(0.9)
    # A value that is no ET by the user's word counts for nothing.
    assert et_size({**item, "et_label": 3}) == 0


def test_folds_have_closer_mean_sizes_of_et_than_random_parts(tmp_path):
    """Forty patients whose ETs grow steadily: by blocks of five, two means differ by less than one block."""
    voxels = {f"BraTS2021_{number:05}": 50 * number for number in range(40)}
    for name, count in voxels.items():
        write_case(tmp_path / name, count)
    spread, chance, found = [], [], set()
    for seed in range(5):
        parts = held_out(tmp_path, seed=seed)
        found.add(str(parts))
        spread.append(np.ptp([np.mean([voxels[case] for case in part]) for part in parts]))
        mixed = np.random.default_rng(seed).permutation(list(voxels.values())).reshape(5, 8)
        chance.append(np.ptp(mixed.mean(axis=1)))
    assert max(spread) < 5 * 50
    assert np.mean(spread) < np.mean(chance) / 10
    assert len(found) == 5


def test_many_sites_of_few_patients_still_give_similar_sizes_of_et():
    """Strata of one or two patients leave nothing to deal by size, so the best of many draws is taken."""
    rng = np.random.default_rng(0)
    items, sizes = entries([(None, f"site{rng.integers(13)}", 1, rng.gamma(1.5, 14)) for _ in range(30)])

    def spread(parts):
        return np.ptp([np.mean([sizes[item["label"]] for item in part]) for part in parts])

    drawn = [spread(folds_of(items, sizes, 5, seed)) for seed in range(10)]
    chance = [spread(np.reshape(np.random.default_rng(seed).permutation(items), (5, 6))) for seed in range(10)]
    assert np.mean(drawn) < np.mean(chance) / 2


def test_folders_tell_the_grade_and_names_tell_the_site(tmp_path):
    for number in range(9):
        write_case(tmp_path / "HGG" / f"Brats18_CBICA_A{number}_1", 100 * number)
        write_case(tmp_path / "HGG" / f"Brats18_TCIA01_{number}_1", 90 * number)
        if number < 6:
            write_case(tmp_path / "LGG" / f"Brats18_TCIA01_9{number}_1", 10 * number)
    sites = [Counter((len(case), case[8:12]) for case in part) for part in held_out(tmp_path, folds=3, seed=1)]
    # The two grades of one site have names of different length.
    assert sites == [{(18, "CBIC"): 3, (18, "TCIA"): 3, (19, "TCIA"): 2}] * 3


def test_a_table_tells_grade_and_site_of_brats_2020(tmp_path):
    root = tmp_path / "MICCAI_BraTS2020_TrainingData"
    lines = [f"{COLUMNS},BraTS_2020_subject_ID"]
    for number in range(1, 13):
        name = f"BraTS20_Training_{number:03}"
        write_case(root / name, 20 * number)
        grade, site = ("LGG", "TCIA09") if number > 8 else ("HGG", "CBICA" if number % 2 else "2013")
        lines.append(f"{grade},Brats17_TCIA_{number}_1,Brats18_{site}_{number}_1,NA,NA,{name}")
    (root / "name_mapping.csv").write_text("\n".join(lines) + "\n")
    # The table lies above the cases and below the cohort's folder.
    parts = held_out(tmp_path, folds=4, seed=3)
    kinds = [Counter("L" if int(case[-3:]) > 8 else case[-1] in "13579" for case in part) for part in parts]
    assert kinds == [{"L": 1, True: 1, False: 1}] * 4
    # The table of the validation cases has no grades. One table with another name of its own is read, too.
    (root / "name_mapping_validation_data.csv").write_text("BraTS_2020_subject_ID\nBraTS20_Validation_001\n")
    assert held_out(tmp_path, folds=4, seed=3) == parts


@pytest.mark.parametrize("form", ["csv", "json"])
def test_a_datalist_tells_grade_and_site(tmp_path, form):
    """Its word counts before the folder's."""
    rows = ["case,t1,t1ce,t2,flair,label,et_label,edema_label,grade,site"]
    for number in range(8):
        grade, site = ("4", "2")[number // 4], ("north", "south")[number % 2]
        rows.append(f"p{number},{number}a,{number}b,{number}c,{number}d,HGG/{number}.nii,4,2,{grade},{site}")
    path = tmp_path / "list.csv"
    path.write_text("\n".join(rows))
    if form == "json":
        items = read_datalist(path, tmp_path)["training"]
        for item in items:
            item["grade"] = int(item["grade"])
        path = tmp_path / "list.json"
        path.write_text(json.dumps({"sequences": SEQUENCES, "training": items[::-1]}))
    parts = held_out(tmp_path, folds=2, datalist_file=path, seed=2)
    assert [Counter((int(case[1]) // 4, int(case[1]) % 2) for case in part) for part in parts] == [
        {(0, 0): 1, (0, 1): 1, (1, 0): 1, (1, 1): 1}
    ] * 2


def test_a_description_that_is_no_text_is_refused(tmp_path):
    path = tmp_path / "list.json"
    entry = {"image": [f"a_{s}.nii" for s in SEQUENCES], "label": "a_seg.nii", "site": ["a", "b"]}
    path.write_text(json.dumps({"training": [entry]}))
    with pytest.raises(InputError, match=r"list\.json: 'site' is a text or a number: "):
        read_datalist(path, tmp_path)


def test_label_maps_that_cannot_be_read_are_of_unknown_size_and_left_to_the_checks(tmp_path, caplog):
    for number in range(6):
        write_case(tmp_path / f"BraTS19_UAB_{number}_1", 10 * number)
    (tmp_path / "BraTS19_UAB_3_1" / "BraTS19_UAB_3_1_seg.nii.gz").write_bytes(b"no image")
    caplog.set_level(logging.INFO, "scripts.data.splits")
    assert sorted(map(len, held_out(tmp_path, folds=3))) == [2, 2, 2]
    said = "Folds by grade (0 known), site (6 known) and size of ET (5 known), of 6 patients"
    assert caplog.messages[:2] == ["Reading 6 label maps, to make folds of similar ET sizes", said]


def test_a_table_that_contradicts_a_folder_is_refused_with_both(tmp_path):
    for number in range(2):
        write_case(tmp_path / "HGG" / f"Brats18_2013_{number}_1", 10 * number)
    table = tmp_path / "name_mapping.csv"
    table.write_text("Grade,BraTS_2018_subject_ID\nhgg,Brats18_2013_0_1\nLGG,Brats18_2013_1_1\n")
    with pytest.raises(InputError) as caught:
        split_datalist(tmp_path, folds=2, fold=0)
    label = tmp_path / "HGG" / "Brats18_2013_1_1" / "Brats18_2013_1_1_seg.nii.gz"
    assert str(caught.value) == f"{table}: Brats18_2013_1_1 is LGG here, but HGG by {label}; correct one of them."
    # A random split does not ask for the grade.
    assert len(split_datalist(tmp_path)["all"]) == 2


def test_two_tables_that_contradict_each_other_are_refused_with_both(tmp_path):
    for number in range(2):
        write_case(tmp_path / "cases" / f"BraTS20_Training_00{number}", 10 * number)
    first, second = tmp_path / "name_mapping.csv", tmp_path / "cases" / "name_mapping.csv"
    first.write_text("Grade,BraTS_2020_subject_ID\nHGG,BraTS20_Training_000\n")
    second.write_text("Grade,BraTS_2020_subject_ID\nLGG,BraTS20_Training_000\n")
    with pytest.raises(InputError, match=re.escape(f"{first}: BraTS20_Training_000 is HGG here, but LGG by {second}")):
        split_datalist(tmp_path, folds=2, fold=0)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no column of names, such as BraTS_2020_subject_ID; copy it again, or move it away"),
        (b"Grade,ID\nHGG,1\n", "no column of names"),
        ("Grade,Größe\n".encode("latin-1"), "not UTF-8"),
        (b"Grade,BraTS_2020_subject_ID\nHGG,p\nLGG,p\n", "p is LGG here, but HGG by "),
    ],
)
def test_a_faulty_table_is_named(tmp_path, content, said):
    path = tmp_path / "name_mapping.csv"
    path.write_bytes(content)
    with pytest.raises(InputError, match=re.escape(said)) as caught:
        read_name_table(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_the_latest_name_tells_the_site_and_every_name_leads_to_it(tmp_path):
    path = tmp_path / "name_mapping.csv"
    path.write_text(
        f"{COLUMNS},BraTS_2020_subject_ID\n"
        "HGG,Brats17_TCIA_5_1,Brats18_TCIA03_5_1,TCGA-02-0006,BraTS19_TCIA04_5_1,BraTS20_Training_005\n"
        "LGG,Brats17_2013_6_1,NA,NA,,BraTS20_Training_006\n"
        "NA,NA,NA,NA,NA,BraTS20_Training_007\n"
    )
    table = read_name_table(path)
    assert {name: (found.grade, found.site) for name, found in table.items()} == {
        **dict.fromkeys(
            ("Brats17_TCIA_5_1", "Brats18_TCIA03_5_1", "BraTS19_TCIA04_5_1", "BraTS20_Training_005"), ("HGG", "TCIA04")
        ),
        **dict.fromkeys(("Brats17_2013_6_1", "BraTS20_Training_006"), ("LGG", "2013")),
        "BraTS20_Training_007": ("", ""),
    }


def test_a_recorded_fold_is_known_without_its_label_maps(tmp_path):
    """A label map that was corrected after the training gives other folds; the training's own one still counts."""
    root, recorded = tmp_path / "data", tmp_path / "datalist.json"
    for number in range(8):
        write_case(root / f"BraTS2021_{number:05}", 100 * number)
    trained = split_datalist(root, folds=4, fold=1)
    assert {item["held_out_in"] for item in trained["validation"]} == {"fold 1 of 4"}
    assert {item["held_out_in"] for item in trained["training"]} == {f"fold {n} of 4" for n in (0, 2, 3)}
    write_datalist(trained, root, recorded)
    for file in root.rglob("*_seg.nii.gz"):
        file.write_bytes(b"")
    assert split_datalist(root, recorded=recorded, folds=4, fold=1) == trained
    for other in ({"folds": 4, "fold": 2}, {"folds": 5, "fold": 1}):
        with pytest.raises(InputError, match=r"datalist\.json: not the split of fold . of .; give that fold's"):
            split_datalist(root, recorded=recorded, **other)
