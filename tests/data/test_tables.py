# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Lists of cases in CSV tables, and lists without a split or without labels, in every workflow."""

import json
import re

import numpy as np
import pytest
from scripts.data.cases import NO_FILE
from scripts.data.datalist import labeled_items, split_datalist, unlabeled_items
from scripts.data.datalist_file import read_datalist, write_datalist
from scripts.data.inspection import check_files
from scripts.data.tables import read_table
from scripts.utils.errors import InputError
from workflows import SIZE, bundle_run, voxels

HEADER = "case,t1,t1ce,t2,flair,label,et_label,edema_label"


def table(folder, *rows, header=HEADER, encoding="utf-8"):
    path = folder / "cases.csv"
    path.write_text("\n".join([header, *rows]) + "\n", encoding=encoding)
    return path


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_separators_marks_and_other_names_of_columns(tmp_path, separator, encoding):
    header = "Case,T2-FLAIR,T1w,T1Gd,T2,seg,ET_label".replace(",", separator)
    row = "änn,f.nii,a.nii,c.nii,b.nii,s.nii,4".replace(",", separator)
    content = read_table(table(tmp_path, row, "", header=header, encoding=encoding))
    entry = {"case": "änn", "image": ["a.nii", "b.nii", "c.nii", "f.nii"], "label": "s.nii", "et_label": 4}
    assert content == {"sequences": ["t1", "t2", "t1ce", "flair"], "training": [entry]}


def test_a_cell_with_a_separator_is_quoted(tmp_path):
    content = read_table(table(tmp_path, '"Smith, J",a,c,b,d,s,4,2'))
    assert content["training"][0]["case"] == "Smith, J"


def test_a_line_that_names_the_separator_and_a_quoted_line_break_are_read(tmp_path):
    """As Excel writes and reads them."""
    path = table(tmp_path, '"An\nna";a,1;c;b;d;s;4;2', header=f"sep=;\n{HEADER.replace(',', ';')}")
    (entry,) = read_table(path)["training"]
    assert (entry["case"], entry["image"]) == ("An\nna", ["a,1", "b", "c", "d"])


def test_rows_are_in_the_lists_that_they_name_or_by_their_label(tmp_path):
    named = table(tmp_path, "a,1,2,3,4,5,4,2,training", "b,1,2,3,4,5,4,2,validation", header=f"{HEADER},list")
    assert {name: [e["case"] for e in rows] for name, rows in read_table(named).items() if name != "sequences"} == {
        "training": ["a"],
        "validation": ["b"],
    }
    mixed = read_table(table(tmp_path, "a,1,2,3,4,5,4,2", "b,1,2,3,4,,,"))
    assert [e["case"] for e in mixed["training"]] == ["a"] and [e["case"] for e in mixed["testing"]] == ["b"]


@pytest.mark.parametrize(
    ("header", "row", "said"),
    [
        (HEADER.replace(",flair", ""), "a,1,2,3,5,4,2", "no column flair; name a column for each of t1, t2, t1ce"),
        (HEADER + ",age", "a,1,2,3,4,5,4,2,60", "unknown column 'age'; columns are t1, t2, t1ce, flair, case"),
        (HEADER + ",t1w", "a,1,2,3,4,5,4,2,9", "two columns are 't1'; keep one of them"),
        (HEADER, "a,,,,,5,4,2", "row 2: no image; fill in the cells of t1, t2, t1ce, flair, or remove the row"),
        (HEADER, "a", "row 2: no image"),
        (HEADER, "a,1,2,3,4,5,four,2", "row 2: et_label is 'four', which is no whole number"),
        (HEADER + ",list", "a,1,2,3,4,5,4,2,train", "row 2: list is 'train'; it is one of training, validation"),
        (HEADER, "", "no case; a row is a case"),
        ("", "", "no column t1, t2, t1ce, flair"),
    ],
)
def test_a_faulty_table_is_refused_by_file_and_row(tmp_path, header, row, said):
    path = table(tmp_path, row, header=header)
    with pytest.raises(InputError, match=re.escape(said)) as caught:
        read_table(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_a_row_with_more_cells_than_columns_is_refused(tmp_path):
    """A comma in a name would move the other cells, and the last would be lost."""
    path = table(tmp_path, "a,1.nii,2.nii,3.nii,4.nii,s.nii,4,2", "b,1,5.nii,2.nii,3.nii,4.nii,s.nii,4,2")
    with pytest.raises(InputError, match=r"row 3: 9 cells under 8 columns; quote cells with a separator"):
        read_table(path)


def test_an_unreadable_table_is_named(tmp_path):
    with pytest.raises(InputError, match=r"absent\.csv: cannot be read .* give an existing --datalist_file"):
        read_table(tmp_path / "absent.csv")
    (tmp_path / "latin.csv").write_bytes("case,t1\näöü,1".encode("latin-1"))
    with pytest.raises(InputError, match=r"latin\.csv: not UTF-8 .* save the table as CSV in UTF-8"):
        read_table(tmp_path / "latin.csv")


def test_an_empty_cell_is_a_missing_sequence(tmp_path):
    path = table(tmp_path, "a,1.nii,,3.nii,4.nii,s.nii,4,2", "b,1.nii,2.nii,3.nii,4.nii,s.nii,4,2")
    first = ["/data/1.nii", "/data/3.nii", NO_FILE, "/data/4.nii"]
    split = split_datalist("/data", path)
    assert [item["image"] for item in split["all"] if item["case"] == "a"] == [first]
    write_datalist(split, "/data", tmp_path / "again.json")
    assert split_datalist("/data", tmp_path / "again.json") == split
    (finding,) = check_files(split["all"], "/data", datalist_file=path)
    assert finding.kind == "missing sequence"
    assert finding.message == "/data/1.nii: a lacks t1ce; add it, or leave the case out."


def labeled_table(folder, count):
    return table(folder, *(f"p{n},{n}_a.nii,{n}_b.nii,{n}_c.nii,{n}_d.nii,{n}_s.nii,4,2" for n in range(count)))


def test_a_list_without_validation_is_split_as_a_folder_is(tmp_path):
    path = labeled_table(tmp_path, 10)
    split = split_datalist("/data", path, seed=3)
    assert (len(split["training"]), len(split["validation"])) == (8, 2)
    assert split["training"][0]["image"][0].startswith("/data/")
    folds = [split_datalist("/data", path, seed=3, folds=5, fold=fold) for fold in range(5)]
    held_out = [item["case"] for fold in folds for item in fold["validation"]]
    assert sorted(held_out) == sorted(f"p{n}" for n in range(10))
    # As JSON, the same list is split in the same way.
    content = read_table(path)
    (tmp_path / "list.json").write_text(json.dumps(content))
    assert split_datalist("/data", tmp_path / "list.json", seed=3) == split


def test_the_split_that_a_training_wrote_is_kept_before_the_list_is_split_anew(tmp_path):
    path = labeled_table(tmp_path, 10)
    split = split_datalist("/data", path, seed=3)
    recorded = tmp_path / "datalist.json"
    recorded.write_text(
        json.dumps({"sequences": ["t1", "t2", "t1ce", "flair"], **{k: split[k] for k in ("training", "validation")}})
    )
    assert split_datalist("/data", path, recorded, seed=4) == split
    assert split_datalist("/data", path, seed=4) != split


def test_cases_for_inference_need_no_labels(tmp_path):
    path = table(tmp_path, "a,1.nii,2.nii,3.nii,4.nii,,,", "b,1.nii,2.nii,3.nii,4.nii,s.nii,4,2")
    assert unlabeled_items("/data", path) == [
        {"case": "a", "image": ["/data/1.nii", "/data/3.nii", "/data/2.nii", "/data/4.nii"]}
    ]
    lists = {"training": [{"image": ["p_t1.nii", "p_t2.nii", "p_t1ce.nii", "p_flair.nii"]}], "validation": []}
    (tmp_path / "list.json").write_text(json.dumps(lists))
    assert [item["case"] for item in unlabeled_items("/data", tmp_path / "list.json")] == ["p"]
    with pytest.raises(InputError, match=r"lacks 'label' \(file\)"):
        read_datalist(tmp_path / "list.json", "/data")


def test_the_decathlons_own_list_is_read(tmp_path):
    content = {
        "training": [{"image": "./imagesTr/BRATS_001.nii.gz", "label": "./labelsTr/BRATS_001.nii.gz"}],
        "test": ["./imagesTs/BRATS_485.nii.gz"],
    }
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    (item,) = split_datalist("/data", tmp_path / "dataset.json")["training"]
    assert (item["case"], item["et_label"], item["edema_label"]) == ("BRATS_001", 3, 1)
    assert unlabeled_items("/data", tmp_path / "dataset.json") == [
        {"case": "BRATS_485", "image": "/data/imagesTs/BRATS_485.nii.gz"}
    ]


@pytest.mark.slow
def test_files_of_any_name_are_segmented_by_a_table_as_in_their_folder(training, cohort, tmp_path):
    (item, *_) = labeled_items(cohort)
    data = tmp_path / "data"
    data.mkdir()
    for number, file in enumerate(item["image"]):
        (data / f"scan {number}.nii.gz").symlink_to(file)
    path = table(tmp_path, "ann,scan 0.nii.gz,scan 2.nii.gz,scan 1.nii.gz,scan 3.nii.gz,,,")
    place = {"model_file": str(training / "model.pt"), **SIZE}
    bundle_run(
        "inference.json", dataset_dir=str(data), datalist_file=str(path), output_dir=str(tmp_path / "a"), **place
    )
    case = str(next(cohort.rglob(item["case"])))
    bundle_run("inference.json", dataset_dir=case, output_dir=str(tmp_path / "b"), **place)
    np.testing.assert_array_equal(
        voxels(tmp_path / "a" / "ann.nii.gz"), voxels(tmp_path / "b" / f"{item['case']}.nii.gz")
    )
