# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Four-dimensional files are found in the Decathlon's layout, checked, and read in the network's channel order."""

import gzip
import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import LoadImaged
from scripts.brats import SEQUENCES
from scripts.data.cases import find_cases, resolve_image
from scripts.data.datalist import complete_item, labeled_items, split_datalist, unlabeled_items
from scripts.data.datalist_file import read_datalist, write_datalist
from scripts.data.images import LoadImageByReaderd, SequenceReader
from scripts.data.inspection import check_case, check_cases
from scripts.data.regions import labels_to_regions
from scripts.data.transforms import LabelsToRegionsd
from scripts.utils.errors import InputError, input_error_behind
from workflows import SIZE, TRAINING_SIZE, bundle_run, voxels, write_decathlon

SHAPE = (5, 6, 7)
NAME = "BraTS20_Training_001"
# The Decathlon's own Task01 has this entry.
MODALITY = {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"}


@pytest.fixture
def brats(tmp_path):
    """Two cases in the layout of BraTS, whose sequences can be told apart."""
    rng = np.random.default_rng(0)
    for number in (1, 2):
        name = f"BraTS20_Training_{number:03d}"
        folder = tmp_path / "brats" / name
        folder.mkdir(parents=True)
        for value, sequence in enumerate((*SEQUENCES, "seg"), 1):
            noise = rng.integers(1, 100, SHAPE)
            voxels = noise % 3 * (noise > 9) + (noise > 95) * 2 if sequence == "seg" else noise + 1000 * value
            voxels = np.where(voxels == 3, 4, voxels)
            nib.save(
                nib.Nifti1Image(voxels.astype(np.int16), np.diag([-1, -1, 1, 1])), folder / f"{name}_{sequence}.nii.gz"
            )
    return tmp_path / "brats"


@pytest.fixture
def task01(brats, tmp_path):
    out = write_decathlon(brats, tmp_path / "Task01_BrainTumor")
    (out / "dataset.json").write_text(json.dumps({"modality": MODALITY}))
    # The published archive contains such files.
    (out / "imagesTr" / "._BraTS20_Training_001.nii.gz").touch()
    return out


def load(item, **arguments):
    return LoadImageByReaderd("image", SequenceReader(**arguments), ensure_channel_first=True)(item)["image"]


def test_cases_of_the_decathlon_are_found(task01):
    (task01 / "imagesTs").mkdir()
    os.link(task01 / "imagesTr" / f"{NAME}.nii.gz", task01 / "imagesTs" / "BRATS_485.nii.gz")
    assert [case.name for case in find_cases(task01)] == ["BRATS_485", NAME, "BraTS20_Training_002"]
    assert labeled_items(task01)[0] == {
        "case": NAME,
        "image": str(task01 / "imagesTr" / f"{NAME}.nii.gz"),
        "label": str(task01 / "labelsTr" / f"{NAME}.nii.gz"),
        "et_label": 3,
        "edema_label": 1,
        "label_release": 0,
    }
    assert unlabeled_items(task01 / "imagesTs") == [
        {"case": "BRATS_485", "image": str(task01 / "imagesTs" / "BRATS_485.nii.gz")}
    ]
    file = task01 / "imagesTs" / "BRATS_485.nii.gz"
    assert unlabeled_items(file) == [{"case": "BRATS_485", "image": str(file)}]
    assert not any(check_cases(labeled_items(task01), task01))


def test_all_forms_of_an_image_load_alike(brats, task01):
    (four, *_), (one, *_) = labeled_items(brats), labeled_items(task01)
    wanted = LoadImaged("image", image_only=True, ensure_channel_first=True)(four)["image"]
    assert [int(channel.min() // 1000) for channel in wanted] == [1, 2, 3, 4]
    for item in (four, one, {"image": str(brats / NAME)}):
        loaded = load(item)
        assert torch.equal(loaded, wanted)
        assert torch.equal(loaded.affine, wanted.affine)


def test_the_order_of_channels_is_the_settings(brats, tmp_path):
    order = ("t2", "flair", "t1ce", "t1")
    other = write_decathlon(brats, tmp_path / "other", order)
    wanted = load(labeled_items(brats)[0])
    (item, *_) = labeled_items(other)
    assert torch.equal(load(item, channel_order=order), wanted)
    assert not torch.equal(load(item), wanted)


@pytest.mark.parametrize("order", [["t1", "t1ce", "t2"], ["t1", "t1", "t2", "flair"], ["t1", "t1gd", "t2", "flair"]])
def test_an_order_that_is_none_is_refused(order):
    with pytest.raises(InputError, match="name each of t1, t2, t1ce, flair once"):
        SequenceReader(order)


def test_an_order_other_than_the_data_sets_is_refused(task01):
    items = labeled_items(task01)
    with pytest.raises(InputError) as caught:
        check_cases(items, task01, channel_order=SEQUENCES)
    assert str(caught.value) == (
        f"{task01}/dataset.json: the channels are FLAIR, T1w, t1gd, T2w, but --channel_order says t1, t2, t1ce, flair; "
        "set --channel_order \"['flair', 't1', 't1ce', 't2']\"."
    )
    # Four files give their order by their names, so a dataset.json beside them is not needed.
    (task01 / "dataset.json").write_text("{}")
    assert not any(check_cases(items, task01, channel_order=SEQUENCES))


@pytest.mark.parametrize(
    ("names", "accepted"),
    [
        (["FLAIR", "T1", "T1ce", "T2"], True),
        (["T2-FLAIR", "T1n", "T1c", "T2w"], True),
        (["t2f", "T1W", "T1_Gd", "t2"], True),
        (["FLAIR", "T1", "MRI", "T2"], False),
        (["FLAIR", "T1", "T1w", "T2"], False),
        (["FLAIR", "T1", "T1ce"], False),
    ],
)
def test_names_of_channels_are_known_by_any_clear_spelling(task01, names, accepted):
    (task01 / "dataset.json").write_text(json.dumps({"modality": dict(enumerate(names))}))
    items = labeled_items(task01)
    if accepted:
        assert not any(check_cases(items, task01))
        return
    with pytest.raises(InputError) as caught:
        check_cases(items, task01)
    assert str(caught.value) == (
        f"{task01}/dataset.json: the channels are {', '.join(names)}, and not each of t1, t2, t1ce, flair once; write "
        "these names there, or, if --channel_order (flair, t1, t1ce, t2) is right, move that file away."
    )


def test_one_reader_serves_many_threads(brats):
    """Threads read images and label maps in turns; MONAI's own reader mixes up the numbers of their files."""
    loader = LoadImageByReaderd(["image", "label"], SequenceReader(), ensure_channel_first=True)
    (item, *_) = labeled_items(brats)
    with ThreadPoolExecutor(8) as pool:
        shapes = {(tuple(i["image"].shape), tuple(i["label"].shape)) for i in pool.map(loader, [item] * 200)}
    assert shapes == {((4, *SHAPE), (1, *SHAPE))}


def test_labels_of_the_decathlon_become_the_same_regions(brats, task01):
    load_label = LoadImaged("label", image_only=True, ensure_channel_first=True)
    for four, one in zip(labeled_items(brats), labeled_items(task01), strict=True):
        wanted = LabelsToRegionsd("label")(load_label(four))["label"]
        assert [int(region.sum()) > 0 for region in wanted] == [True] * 4
        assert torch.equal(LabelsToRegionsd("label")(load_label(one))["label"], wanted)
    with pytest.raises(InputError, match=r"edema is 2 \(BraTS\) or 1"):
        labels_to_regions(torch.zeros(2, 2), 4, 0)


def test_splits_keep_four_dimensional_files(task01, tmp_path):
    split = split_datalist(task01)
    write_datalist(split, task01, tmp_path / "list.json")
    assert json.loads((tmp_path / "list.json").read_text())["training"][0]["image"].startswith("imagesTr/")
    lists = read_datalist(tmp_path / "list.json", task01)
    assert lists == {name: split[name] for name in ("training", "validation")}


def test_an_entry_by_hand_has_the_decathlons_labels_where_its_folder_tells(task01, tmp_path):
    """The Decathlon exchanges the labels of core and edema; if they were read as BraTS labels, no error would show."""
    entry = {"image": f"imagesTr/{NAME}.nii.gz", "label": f"labelsTr/{NAME}.nii.gz"}
    (wanted, *_) = labeled_items(task01)
    lists = tmp_path / "list.json"
    for said in ({}, {"et_label": 3}, {"et_label": None, "edema_label": None}):
        lists.write_text(json.dumps({"training": [{**entry, **said}], "validation": []}))
        assert read_datalist(lists, task01)["training"] == [wanted]
    os.rename(task01 / "imagesTr", task01 / "scans")
    entry["image"] = f"scans/{NAME}.nii.gz"
    lists.write_text(json.dumps({"training": [{**entry, "et_label": 3}], "validation": []}))
    with pytest.raises(InputError, match="an entry has no 'edema_label'"):
        read_datalist(lists, task01)
    lists.write_text(json.dumps({"training": [{**entry, "et_label": 3, "edema_label": 1}], "validation": []}))
    assert read_datalist(lists, task01)["training"] == [{**wanted, "image": str(task01 / entry["image"])}]


def test_bare_entries_are_completed(brats, task01):
    """MONAI Label passes such entries for a folder and for a single file."""
    label = str(brats / NAME / f"{NAME}_seg.nii.gz")
    (wanted, *_) = labeled_items(brats)
    done = complete_item({"image": str(brats / NAME), "label": label}, 4)
    assert done == wanted
    file = str(task01 / "imagesTr" / f"{NAME}.nii.gz")
    assert complete_item({"image": file}, 4) == {"image": file, "case": NAME}
    loaded = LoadImaged("label", image_only=True, ensure_channel_first=True)({"label": label})
    regions = LabelsToRegionsd("label")({**loaded, **wanted, "label": loaded["label"]})["label"]
    assert torch.equal(LabelsToRegionsd("label", default_et_label=4)(dict(loaded))["label"], regions)


def four_d(path, channels=4):
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = np.ones((*SHAPE, channels), np.int16)
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), path)
    return voxels


def test_faulty_files_are_named(tmp_path, brats):
    three = tmp_path / "imagesTr" / "a.nii.gz"
    four_d(three, 3)
    with pytest.raises(
        InputError, match=r"a\.nii\.gz: its shape is \(5, 6, 7, 3\), but one file with 4 channels is needed"
    ):
        check_cases(unlabeled_items(tmp_path / "imagesTr"), tmp_path)
    with pytest.raises(InputError, match="its shape is"):
        load({"image": str(three)})
    flat = three.with_name("b.nii.gz")
    nib.save(nib.Nifti1Image(np.ones(SHAPE, np.int16), np.eye(4)), flat)
    with pytest.raises(InputError, match="one file with 4 channels is needed"):
        check_cases(unlabeled_items(flat), flat)
    empty = three.with_name("c.nii.gz")
    voxels = four_d(empty)
    voxels[..., 2] = 0
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), empty)
    (finding,) = check_case({"case": "c", "image": str(empty)}).findings
    assert finding.message.startswith(f"{empty}: channel 2 is empty")
    with pytest.raises(InputError, match="0 complete cases"):
        resolve_image(str(tmp_path / "imagesTr"))


def test_another_format_is_refused_and_no_other_reader_tried(tmp_path):
    path = tmp_path / "scan.png"
    path.write_bytes(b"\x89PNG")
    said = f"{path}: in no format that is read (.nii, .nii.gz, .mgh, .mgz, .nrrd, .nhdr, .mha, .mhd, DICOM); convert"
    for item in ({"image": str(path)}, {"image": [str(path)] * 4}):
        with pytest.raises(InputError, match=re.escape(said)):
            load(item)
        with pytest.raises(InputError, match=re.escape(said)):
            check_cases([{**item, "case": "scan"}], tmp_path, datalist_file="list.json")


def test_a_readers_error_comes_through(tmp_path, brats):
    """The message is one line that names the file, whether its header or its voxels cannot be read."""
    (item, *_) = labeled_items(brats)
    file = Path(item["image"][2])
    content = gzip.decompress(file.read_bytes())
    for damaged, said in ((b"no image at all", "not a readable image"), (gzip.compress(content[:-50]), "damaged")):
        file.write_bytes(damaged)
        with pytest.raises(InputError) as caught:
            load(item)
        assert str(caught.value).startswith(f"{file}: {said} ("), str(caught.value)
        assert "\n" not in str(caught.value)
    file.unlink()
    with pytest.raises(InputError, match=re.escape(f"{file}: no such file")):
        load(item)


def test_monais_consumers_know_the_loader_for_one():
    """MONAI Label recognizes a loader by its class, MONAI Deploy by its name."""
    assert issubclass(LoadImageByReaderd, LoadImaged)
    assert "LoadImage" in LoadImageByReaderd.__name__


# The workflows.


@pytest.mark.parametrize("workflow", ["inference", "evaluation", "maps elsewhere", "training"])
def test_results_in_the_images_folder_are_refused_and_nothing_is_changed(task01, workflow, tmp_path):
    """The label map of a case would have the same name as its image."""
    images = task01 / "imagesTr"
    before = {path: path.read_bytes() for path in task01.rglob("*") if path.is_file()}
    place = {"dataset_dir": str(task01), "output_dir": str(images), **SIZE}
    names = {"inference": ["inference.json"], "training": ["train.json"]}.get(workflow, ["train.json", "evaluate.json"])
    if workflow == "evaluation":
        place |= {"evaluation_dir": str(images), "cases": "all"}
    elif workflow != "inference":
        place |= {"output_dir": str(tmp_path / "out"), "label_map_dir": str(images), "save_label_maps": True}
    with pytest.raises(RuntimeError) as caught:
        bundle_run(*names, **place)
    error = str(input_error_behind(caught.value))
    assert error.startswith(f"{images}/BraTS20_Training_00") and "would be written over" in error
    assert {path: path.read_bytes() for path in task01.rglob("*") if path.is_file()} == before
    assert not (tmp_path / "out").exists()


def test_one_file_is_segmented_as_its_four_sequences_are(cohort, training, segmentation, tmp_path):
    case = next(cohort.rglob("BraTS20_Training_001"))
    model = str(training / "model.pt")
    for order in (("flair", "t1", "t1ce", "t2"), ("t1ce", "t2", "flair", "t1")):
        data = write_decathlon(case.parent / case.name, tmp_path / order[0], order)
        out = tmp_path / f"{order[0]}_maps"
        file = data / "imagesTr" / f"{case.name}.nii.gz"
        place = {"dataset_dir": str(file), "output_dir": str(out), "model_file": model}
        bundle_run("inference.json", **place, channel_order=list(order), **SIZE)
        result, wanted = nib.load(out / f"{case.name}.nii.gz"), nib.load(segmentation / f"{case.name}.nii.gz")
        assert np.array_equal(voxels(out / f"{case.name}.nii.gz"), voxels(segmentation / f"{case.name}.nii.gz"))
        assert np.array_equal(result.affine, wanted.affine)
        record = json.loads((out / "run.json").read_text())
        assert record["channel_order"] == list(order)
    assert "channel_order" not in json.loads((segmentation / "run.json").read_text())


def test_training_on_the_decathlon_is_training_on_brats(small_cohort, tmp_path):
    """The same patients in both layouts give the same split, bitwise equal weights, and the same validation."""
    task01 = write_decathlon(small_cohort, tmp_path / "task01")
    for name, data in (("brats", small_cohort), ("decathlon", task01)):
        bundle_run("train.json", dataset_dir=str(data), output_dir=str(tmp_path / name), **TRAINING_SIZE)
    ours, theirs = (torch.load(tmp_path / name / "model.pt", weights_only=True) for name in ("brats", "decathlon"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    record = json.loads((tmp_path / "decathlon" / "run.json").read_text())
    assert (record["channel_order"], record["phantoms"]) == (["flair", "t1", "t1ce", "t2"], True)
    size = {key: value for key, value in TRAINING_SIZE.items() if key != "max_epochs"}
    for name, data in (("brats", small_cohort), ("decathlon", task01)):
        place = {"dataset_dir": str(data), "output_dir": str(tmp_path / name), "cases": "all"}
        place["thresholds#min_et_mm3"] = 0
        bundle_run("train.json", "evaluate.json", **place, **size)
    scores = [(tmp_path / name / "evaluation_all" / "scores.csv").read_text() for name in ("brats", "decathlon")]
    assert scores[0] == scores[1]


@pytest.mark.parametrize("end", ["", "/"])
def test_a_file_unpacked_to_a_folder_is_found_however_the_path_ends(tmp_path, end):
    (tmp_path / "imagesTr" / "BRATS_001.nii.gz").mkdir(parents=True)
    (case,) = find_cases(f"{tmp_path}/imagesTr{end}")
    assert case.name == "BRATS_001"
