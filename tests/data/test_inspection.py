# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Every fault of the data is found before the work begins, and the message names the file and the remedy."""

import gzip
import logging
import os
import shutil
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scripts.brats import SEQUENCES
from scripts.data import inspection
from scripts.data.datalist import labeled_items, split_datalist, unlabeled_items
from scripts.data.datalist_file import write_datalist
from scripts.data.images import PHANTOM_DESCRIPTION, open_image, read_image, voxels_of
from scripts.data.inspection import check_case, check_cases, check_files
from scripts.utils.errors import InputError
from scripts.utils.machine import available_memory

SHAPE = (8, 9, 7)
AFFINE = np.diag([-1.0, -1.0, 1.0, 1.0])
OLD, NEW = ("t1", "t1ce", "t2", "flair"), ("t1n", "t1c", "t2w", "t2f")


def write(path, values, affine=AFFINE, description=""):
    image = nib.Nifti1Image(values, affine)
    image.header["descrip"] = description.encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    return path


def make_case(root, name="BraTS20_Training_001", labels=(0, 1, 2, 4), extension=".nii.gz", description=""):
    """Write a case of noise. Noise does not compress, so a file can be cut off anywhere."""
    rng = np.random.default_rng(list(name.encode()))
    separator, suffixes = ("-", NEW) if name.lower().startswith("brats-") else ("_", OLD)
    for suffix in suffixes:
        values = rng.integers(-100, 1000, SHAPE).astype(np.int16)
        values[:5] = 0
        write(root / name / f"{name}{separator}{suffix}{extension}", values, description=description)
    if labels is not None:
        values = np.resize(np.asarray(labels, np.uint8), SHAPE)
        values[:5] = 0
        write(root / name / f"{name}{separator}seg{extension}", values, description=description)
    return root


def file_of(root, suffix, name="BraTS20_Training_001", extension=".nii.gz"):
    return root / name / f"{name}_{suffix}{extension}"


def refusal(root, items=None, **arguments):
    with pytest.raises(InputError) as caught:
        check_cases(labeled_items(root) if items is None else items, root, "labeled cases", **arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message


# Data without faults.


@pytest.mark.parametrize("extension", [".nii", ".nii.gz"])
def test_sound_cases_pass(tmp_path, extension, caplog):
    make_case(tmp_path, extension=extension)
    make_case(tmp_path, "BraTS20_Training_002", labels=(0,), extension=extension)
    make_case(tmp_path, "BraTS-GLI-00000-000", labels=(0, 1, 2, 3), extension=extension)
    with caplog.at_level(logging.INFO):
        assert not any(check_cases(labeled_items(tmp_path), tmp_path))
    assert caplog.messages == [f"{tmp_path}: cases 3, checked"]


def test_cases_without_labels_pass_as_cases_for_inference(tmp_path):
    make_case(tmp_path, labels=None)
    assert not any(check_cases(unlabeled_items(tmp_path), tmp_path))


def test_labels_of_cases_for_inference_are_not_read(tmp_path):
    make_case(tmp_path, labels=(0, 9))
    assert not any(check_cases(unlabeled_items(tmp_path), tmp_path))


@pytest.mark.parametrize(
    ("descriptions", "phantoms"),
    [(("", ""), False), ((PHANTOM_DESCRIPTION, PHANTOM_DESCRIPTION), True), (("", PHANTOM_DESCRIPTION), True)],
)
def test_phantoms_are_known_by_their_headers_and_said(tmp_path, descriptions, phantoms, caplog):
    for index, description in enumerate(descriptions, 1):
        make_case(tmp_path, f"BraTS20_Training_00{index}", description=description)
    items = labeled_items(tmp_path)
    assert check_cases(items, tmp_path) == [bool(d) for d in descriptions]
    count = sum(map(bool, descriptions))
    assert (f"{count} of 2 cases are synthetic phantoms, not patients." in caplog.text) is phantoms


def test_another_voxel_size_is_warned_of_and_passes(tmp_path, caplog):
    make_case(tmp_path)
    for file in (tmp_path / "BraTS20_Training_001").iterdir():
        write(file, np.asanyarray(nib.load(file).dataobj), np.diag([1.0, 1.0, 3.0, 1.0]))
    assert not any(check_cases(labeled_items(tmp_path), tmp_path))
    warnings = [r.message for r in caplog.records if r.levelno == logging.WARNING]
    assert warnings == [
        f"{file_of(tmp_path, 't1')}: voxels of 1 x 1 x 3 mm; "
        "the network expects BraTS preprocessing (1 mm, skull-stripped)."
    ]


def test_the_header_alone_is_read(tmp_path):
    path = write(tmp_path / "a.nii.gz", np.zeros(SHAPE, np.int16))
    image = open_image(path)
    assert image.shape == SHAPE
    assert not image.in_memory


def test_a_doubled_file_is_named(tmp_path):
    make_case(tmp_path)
    for suffix in ("seg", "t2"):
        again = file_of(tmp_path, suffix, extension=".nii")
        write(again, np.random.default_rng(0).integers(1, 3, SHAPE).astype(np.uint8))
        first = file_of(tmp_path, suffix)
        assert refusal(tmp_path) in {
            f"{file}: BraTS20_Training_001 has this image twice; keep one of the two files." for file in (first, again)
        }
        again.unlink()
    assert not any(check_cases(labeled_items(tmp_path), tmp_path))


# Grids.


@pytest.mark.parametrize("suffix", ["t1ce", "flair", "seg"])
def test_a_file_of_another_shape_is_named(tmp_path, suffix):
    make_case(tmp_path)
    write(file_of(tmp_path, suffix), np.zeros((8, 9, 6), np.uint8))
    message = refusal(tmp_path)
    assert message.startswith(f"{file_of(tmp_path, suffix)}: its grid differs from that of {file_of(tmp_path, 't1')} (")
    assert "(8 x 9 x 6 voxels, not 8 x 9 x 7)" in message
    assert "resample all sequences to one grid" in message


@pytest.mark.parametrize(
    ("suffix", "change"),
    [("t2", (0, 3, 0.5)), ("t2", (0, 0, 1.0)), ("t2", (2, 2, 1.2)), ("seg", (0, 0, 1.0)), ("seg", (2, 2, 1.2))],
    ids=["shifted", "flipped", "stretched", "flipped label", "stretched label"],
)
def test_a_file_elsewhere_is_named(tmp_path, suffix, change):
    make_case(tmp_path)
    affine = AFFINE.copy()
    affine[change[:2]] = change[2]
    write(file_of(tmp_path, suffix), np.zeros(SHAPE, np.uint8), affine)
    message = refusal(tmp_path)
    assert message.startswith(f"{file_of(tmp_path, suffix)}: its grid")
    assert " differs from " in message and "co-register" in message


def test_a_label_map_of_another_origin_is_taken_with_a_warning(tmp_path, caplog):
    """BraTS 2017 ships such label maps, and they fit voxel for voxel."""
    make_case(tmp_path)
    shifted = AFFINE.copy()
    shifted[:3, 3] = (0, 239, -7.5)
    labels = np.asanyarray(nib.load(file_of(tmp_path, "seg")).dataobj)
    write(file_of(tmp_path, "seg"), labels, shifted)
    assert not any(check_cases(labeled_items(tmp_path), tmp_path))
    (warning,) = [r.message for r in caplog.records if "origin" in r.message]
    assert warning == (
        f"{file_of(tmp_path, 'seg')}: its origin differs from the images' origin, but its shape and axes are equal; "
        "it is matched to the images voxel by voxel."
    )
    write(file_of(tmp_path, "seg"), labels[1:], shifted)
    assert "its grid" in refusal(tmp_path)


# Files.


@pytest.mark.parametrize("suffix", ["t1", "t2", "seg"])
@pytest.mark.parametrize(
    ("extension", "kept"),
    [*((".nii", kept) for kept in (0.0, 0.2, 0.45, 0.97)), *((".nii.gz", kept) for kept in (0.0, 0.2, 0.6, 0.97))],
)
def test_a_cut_off_file_is_named(tmp_path, suffix, extension, kept):
    make_case(tmp_path, extension=extension)
    path = file_of(tmp_path, suffix, extension=extension)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    message = refusal(tmp_path)
    assert message.startswith(f"{path}: ")
    assert "copy it again" in message


def test_a_wrong_checksum_is_damage(tmp_path):
    make_case(tmp_path)
    path = file_of(tmp_path, "seg")
    content = bytearray(path.read_bytes())
    content[-8] ^= 255
    path.write_bytes(content)
    assert refusal(tmp_path).startswith(f"{path}: damaged (")


def test_an_uncompressed_file_that_lacks_its_last_byte_is_named(tmp_path):
    make_case(tmp_path, extension=".nii")
    path = file_of(tmp_path, "flair", extension=".nii")
    os.truncate(path, path.stat().st_size - 1)
    assert refusal(tmp_path).startswith(f"{path}: damaged (")


@pytest.mark.parametrize("suffix", ["t2", "seg"])
def test_a_file_with_damaged_content_is_named(tmp_path, suffix):
    """Header and length are right, so only reading the file to the damaged place, far behind its start, shows it."""
    make_case(tmp_path)
    for name in (*OLD, "seg"):
        rng = np.random.default_rng(list(name.encode()))
        values = rng.choice(np.array([0, 1, 2, 4], np.uint8), (64, 64, 128))
        write(file_of(tmp_path, name), values)
    path = file_of(tmp_path, suffix)
    content = gzip.decompress(path.read_bytes())
    compressor = zlib.compressobj(wbits=31)
    intact = compressor.compress(content[:400_000]) + compressor.flush(zlib.Z_FULL_FLUSH)
    # The rest is a block of a type that deflate reserves, and then the checksum and the length.
    path.write_bytes(intact + b"\x07" * 400 + struct.pack("<II", zlib.crc32(content), len(content)))
    message = refusal(tmp_path)
    assert message.startswith(f"{path}: damaged (") and "copy it again" in message


@pytest.mark.parametrize(
    ("fill", "said"), [(0.0, "empty, every voxel is 0"), (np.nan, "no finite numbers"), (np.inf, "no finite numbers")]
)
def test_an_image_that_shows_nothing_or_no_numbers_is_named(tmp_path, fill, said):
    make_case(tmp_path)
    values = np.zeros(SHAPE, np.float32)
    values[0, 0, 0] = fill
    write(file_of(tmp_path, "t1ce"), values)
    message = refusal(tmp_path)
    assert message.startswith(f"{file_of(tmp_path, 't1ce')}: ") and said in message and "export" in message
    # Cases without labels are refused with the same message.
    assert refusal(tmp_path, unlabeled_items(tmp_path)) == message


@pytest.mark.parametrize("suffix", ["t2", "seg"])
@pytest.mark.parametrize(
    ("kind", "said"), [("c8", "complex numbers"), ([("R", "u1"), ("G", "u1"), ("B", "u1")], "colors")]
)
def test_voxels_that_are_no_plain_numbers_are_refused(tmp_path, kind, said, suffix):
    make_case(tmp_path)
    path = write(file_of(tmp_path, suffix), np.ones(SHAPE, np.dtype(kind)))
    assert refusal(tmp_path) == (
        f"{path}: its voxels are {said}, not plain numbers; export the sequence again, as gray values."
    )


def test_one_voxel_below_zero_is_enough_for_an_image(tmp_path):
    make_case(tmp_path)
    values = np.zeros(SHAPE, np.int16)
    values[3, 4, 5] = -7
    path = write(file_of(tmp_path, "flair"), values)
    assert not any(check_cases(labeled_items(tmp_path), tmp_path))
    np.testing.assert_array_equal(voxels_of(read_image(path), path), values)


@pytest.mark.parametrize("suffix", ["t1ce", "seg"])
def test_a_file_that_is_no_nifti_image_is_named(tmp_path, suffix):
    for extension, content in ((".nii.gz", b"<html>404</html>" * 50), (".nii", os.urandom(2000))):
        root = make_case(tmp_path / extension.strip("."), extension=extension)
        path = file_of(root, suffix, extension=extension)
        path.write_bytes(content)
        message = refusal(root)
        assert message.startswith(f"{path}: not a readable image (") and "copy it again" in message


@pytest.mark.parametrize("shape", [(8, 9, 7, 4), (8, 9)])
def test_a_file_that_is_not_three_dimensional_is_named(tmp_path, shape):
    make_case(tmp_path)
    write(file_of(tmp_path, "flair"), np.zeros(shape, np.int16))
    message = refusal(tmp_path)
    assert message.startswith(f"{file_of(tmp_path, 'flair')}: {len(shape)} dimensions instead of 3")
    assert "one file per sequence" in message


def test_a_file_of_the_datalist_that_is_absent_is_named(tmp_path):
    root = make_case(make_case(tmp_path / "data"), "BraTS20_Training_002")
    write_datalist(split_datalist(root), root, tmp_path / "list.json")
    file_of(root, "t2").unlink()
    items = split_datalist(root, tmp_path / "list.json")["all"]
    message = refusal(root, items, datalist_file=tmp_path / "list.json")
    assert message.startswith(f"{file_of(root, 't2')}: no such file; correct the path")


# Cases.


@pytest.mark.parametrize("missing", [["t1ce"], ["t1", "flair"]])
def test_an_incomplete_case_is_named_with_what_it_lacks(tmp_path, missing):
    make_case(tmp_path)
    make_case(tmp_path, "BraTS20_Training_002")
    for suffix in missing:
        file_of(tmp_path, suffix).unlink()
    message = refusal(tmp_path)
    absent = " and no ".join(f"BraTS20_Training_001_{s}.nii.gz" for s in missing)
    assert message == (
        f"{tmp_path / 'BraTS20_Training_001'}: incomplete, there is no {absent}; add it, or move the folder away."
    )


def test_an_incomplete_case_that_the_datalist_leaves_out_is_no_fault(tmp_path):
    make_case(tmp_path)
    make_case(tmp_path, "BraTS20_Training_002")
    items = [item for item in labeled_items(tmp_path) if item["case"].endswith("1")]
    file_of(tmp_path, "t1", "BraTS20_Training_002").unlink()
    assert not any(check_cases(items, tmp_path, datalist_file="list.json"))
    assert "incomplete" in refusal(tmp_path, items)


def test_two_cases_of_one_name_are_refused_with_both_places(tmp_path):
    make_case(tmp_path / "a")
    make_case(tmp_path / "b")
    message = refusal(tmp_path)
    assert message.startswith(f"{file_of(tmp_path / 'b', 't1')}: the case BraTS20_Training_001 is also in ")
    assert str(tmp_path / "a" / "BraTS20_Training_001") in message and "keep only one" in message


def test_one_case_on_both_sides_of_a_split_is_no_fault(tmp_path):
    items = labeled_items(make_case(tmp_path))
    assert not any(check_cases(items + items, tmp_path, datalist_file="list.json"))


def test_no_folder_no_case_and_no_label_are_told_apart(tmp_path):
    message = refusal(tmp_path / "absent")
    assert message.startswith(f"{tmp_path / 'absent'}: no such folder; give a folder")
    message = refusal(tmp_path)
    assert message.startswith(f"{tmp_path}: no labeled cases found; looked for ") and "t1ce" in message
    make_case(tmp_path, labels=None)
    message = refusal(tmp_path)
    assert message.startswith(f"{tmp_path}: 1 cases, but no labeled cases; ") and "seg" in message


# Labels.


@pytest.mark.parametrize(
    ("name", "labels", "et_label", "said"),
    [
        ("BraTS20_Training_001", (0, 1, 2, 3), None, ["unexpected label 3", "set --et_label 3"]),
        (
            "BraTS-GLI-00000-000",
            (0, 1, 2, 3, 4),
            None,
            ["unexpected label 4", "--label_release 2024", "--label_release 2015"],
        ),
        ("BraTS-GLI-00000-000", (0, 1, 2, 4), None, ["unexpected label 4", "--label_release 2024", "--et_label 4"]),
        (
            "BraTS-GLI-00000-000",
            (0, 1, 2, 3, 4),
            4,
            ["unexpected label 3", "--label_release 2024", "--label_release 2015"],
        ),
        ("BraTS20_Training_001", (0, 1, 2, 4, 9), None, ["unexpected label 9", "check the file"]),
        ("BraTS-GLI-00000-000", (0, 1, 2, 3, 5), 3, ["unexpected label 5", "check the file"]),
    ],
)
def test_label_values_of_another_release_are_named(tmp_path, name, labels, et_label, said):
    make_case(tmp_path, name, labels)
    message = refusal(tmp_path, labeled_items(tmp_path, et_label))
    (path,) = (tmp_path / name).glob("*seg.nii.gz")
    assert message.startswith(f"{path}: ")
    assert all(words in message for words in said)


@pytest.mark.parametrize(
    ("name", "labels", "choice"),
    [
        ("BraTS20_Training_001", (0, 1, 2, 3), {"et_label": 3}),
        ("BraTS-GLI-00000-000", (0, 1, 2, 4), {"et_label": 4}),
        ("BraTS-GLI-00000-000", (0, 1, 2, 3, 4), {"label_release": 2024}),
        ("BraTS20_Training_001", (0, 1, 2, 3, 4), {"label_release": 2015}),
        ("BraTS20_Training_001", (0, 2), {}),
        ("BraTS20_Training_001", (0,), {}),
    ],
)
def test_an_explicit_choice_settles_what_the_values_mean(tmp_path, name, labels, choice):
    make_case(tmp_path, name, labels)
    assert not any(check_cases(labeled_items(tmp_path, **choice), tmp_path))


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ({"label_release": 2021}, "--label_release 2021: 3 and 4 have a meaning together in 2015 or 2024 only"),
        ({"label_release": 2015, "et_label": 3}, "--et_label 3: not that of --label_release 2015"),
    ],
)
def test_a_choice_that_cannot_be_is_refused(tmp_path, choice, said):
    make_case(tmp_path)
    with pytest.raises(InputError, match=said):
        labeled_items(tmp_path, **choice)


def test_all_refusals_of_a_case_come_at_once_in_the_order_to_mend_them(tmp_path):
    make_case(tmp_path)
    for number, sequence in enumerate(SEQUENCES):
        # A head of 3 liters in voxels of 2 mm, and one sequence on another grid.
        voxels = np.random.default_rng(number).integers(1, 99, (80, 80, 70 if sequence == "t2" else 71))
        affine = np.diag([2.0, 2.0, 2.0, 1.0])
        nib.save(nib.Nifti1Image(voxels.astype(np.int16), affine), file_of(tmp_path, sequence))
    with pytest.raises(InputError) as caught:
        check_cases(unlabeled_items(tmp_path), tmp_path, headers_only=True, accept=[])
    message = str(caught.value)
    order = [message.index(words) for words in ("(1) ", "co-register", "(2) ", "voxels of 2", "(3) ", "3.6 liters")]
    assert order == sorted(order) and "3 faults, to be mended in this order" in message
    assert message.endswith('--accept "other voxel size" --accept "skull not stripped" segments these as they are.')


def test_the_faulty_case_among_many_is_named(tmp_path):
    for index in range(1, 8):
        make_case(tmp_path, f"BraTS20_Training_00{index}", labels=(0, 1, 2, 7) if index == 5 else (0, 1, 2, 4))
    assert refusal(tmp_path).startswith(f"{file_of(tmp_path, 'seg', 'BraTS20_Training_005')}: unexpected label 7")


def test_one_case_can_be_checked_alone(tmp_path):
    make_case(tmp_path, labels=(0, 3))
    (item,) = labeled_items(tmp_path)
    (finding,) = check_case(item).findings
    assert finding.kind == "unexpected label" and "unexpected label 3" in finding.message
    assert check_case({**item, "et_label": 3, "label_release": 0}).findings == []


# Warnings.


def warnings(caplog):
    return [record.message for record in caplog.records if record.levelno == logging.WARNING]


def test_more_than_a_brain_is_warned_of(tmp_path, caplog):
    """The skull or noise can cause this."""
    make_case(tmp_path)
    coarse, shape = np.diag([-12.0, -12.0, 12.0, 1.0]), (16, 9, 14)
    for number, suffix in enumerate(OLD):
        values = np.random.default_rng(number).integers(1, 9, shape).astype(np.int16)
        write(file_of(tmp_path, suffix), values, coarse)
    write(file_of(tmp_path, "seg"), np.zeros(shape, np.uint8), coarse)
    assert not any(check_cases(labeled_items(tmp_path), tmp_path))
    assert warnings(caplog)[1:] == [
        f"{file_of(tmp_path, 't1')}: 3.5 liters are not 0, which is more than a brain; strip the skull and set the "
        "background to exactly 0."
    ]


def test_releases_of_other_tumors_are_warned_of_once_each(tmp_path, caplog):
    names = ("BraTS-PED-00001-000", "BraTS-PED-00002-000", "brats-men-00003-000", "BraTS-MET-00004-000")
    for name in (*names, "BraTS-GLI-00001-000", "BraTS-SSA-00001-000", "BraTS20_Training_001"):
        make_case(tmp_path, name, labels=(0, 1, 2))
    assert not any(check_cases(labeled_items(tmp_path), tmp_path))
    end = "; the weights of this bundle and its reading of label values are for gliomas."
    assert sorted(warnings(caplog)) == [
        f"BraTS-MET-00004-000: the name says metastases{end}",
        f"BraTS-PED-00001-000 and 1 more: the name says pediatric tumors{end}",
        f"brats-men-00003-000: the name says meningiomas{end}",
    ]
    items = [{"case": name, "image": "a.nii"} for name in ("BraTS-MEN-RT-0001-1", "BraTS-METRIC-1", "MEN")]
    (finding,) = check_files(items, None)
    assert (finding.kind, finding.message) == ("other tumor", f"BraTS-MEN-RT-0001-1: the name says meningiomas{end}")


# Reading.


@pytest.mark.parametrize(
    ("processors", "gigabytes", "threads"), [(64, 100, 64), (2, 100, 2), (64, 4, 5), (64, 0.1, 1), (1, 0, 1)]
)
def test_cases_are_read_by_as_many_threads_as_processors_and_memory_allow(
    tmp_path, monkeypatch, processors, gigabytes, threads
):
    monkeypatch.setattr(os, "cpu_count", lambda: 128)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(processors)))
    monkeypatch.setattr(inspection, "available_memory", lambda: gigabytes * 1e9)
    started = []

    class Pool(ThreadPoolExecutor):
        def __init__(self, max_workers):
            started.append(max_workers)
            super().__init__(max_workers)

    monkeypatch.setattr(inspection, "ThreadPoolExecutor", Pool)
    make_case(tmp_path)
    check_cases(labeled_items(tmp_path), tmp_path)
    assert started == [threads]


@pytest.mark.parametrize(
    ("text", "available"),
    [("MemTotal: 9 kB\nMemAvailable:    4096 kB\n", 4096 * 1024), ("MemTotal: 9 kB\n", None), (None, None)],
)
def test_available_memory_is_the_systems_or_half_of_all(monkeypatch, text, available):
    def read_text(path, **options):
        assert path == Path("/proc/meminfo")
        if text is None:
            raise FileNotFoundError(path)
        return text

    everything = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < available_memory() <= everything
    monkeypatch.setattr(Path, "read_text", read_text)
    assert available_memory() == (available or everything / 2)


def test_names_in_capitals_are_read_as_others(tmp_path):
    make_case(tmp_path)
    (item,) = labeled_items(tmp_path)
    for number, file in enumerate(item["image"]):
        item["image"][number] = str(Path(file).rename(file.replace(".nii.gz", ".NII.GZ")))
    assert check_case(item).findings == []


# Patients.


def test_two_real_patients_pass_and_their_labels_are_as_published(tmp_path, real_cases):
    root = real_cases
    items = labeled_items(root)
    assert [item["case"] for item in items] == ["TCGA-DU-7294", "TCGA-FG-6692"]
    assert not any(check_cases(items, root, "labeled cases"))
    assert [item["et_label"] for item in items] == [4, 4]
    voxels = {}
    for item in items:
        labels = np.asanyarray(nib.load(item["label"]).dataobj)
        voxels[item["case"]] = tuple(int(np.isin(labels, part).sum()) for part in ((1, 2, 4), (1, 4), (4,)))
    assert voxels == {"TCGA-FG-6692": (30179, 9317, 6840), "TCGA-DU-7294": (24188, 9281, 0)}
    # The check finds damage in a copy of one case.
    copy = tmp_path / "TCGA-DU-7294"
    copy.mkdir()
    for file in (root / "TCGA-DU-7294").iterdir():
        shutil.copyfile(file, copy / file.name)
    os.truncate(copy / "TCGA-DU-7294_flair.nii.gz", 1_000_000)
    assert refusal(tmp_path).startswith(f"{copy / 'TCGA-DU-7294_flair.nii.gz'}: damaged (")
