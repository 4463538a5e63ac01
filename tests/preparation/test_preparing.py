# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""A phantom in raw form becomes the phantom that it was made of, by each kind of scans, and leaves a record."""

import json
from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import pytest
from dicom_series import write_case
from raw_phantoms import made, raw, true_brain
from scripts import prepare as command
from scripts.brats import SEQUENCES
from scripts.data.datalist import unlabeled_items
from scripts.lab.phantoms.cohort import AFFINE
from scripts.lab.phantoms.raw import save_raw
from scripts.patients import raw as patients
from scripts.patients.raw import raw_items, scans_of
from scripts.preparation import folder as prepared_folder
from scripts.preparation import packages
from scripts.preparation.folder import save_prepared
from scripts.preparation.grids import Volume, angle, largest_distance
from scripts.preparation.native import read_native_grid
from scripts.preparation.preparing import prepare_scans
from scripts.preparation.registration import points_of
from scripts.preparation.scans import PREPARED, RAW, STRIPPED, WITH_SKULL, Scan, kind_of, read_scans
from scripts.utils.errors import InputError

POSE = {"degrees": 15, "mm": 20}  # as in test_registration.py, so that the phantom is made once


def scans(volumes: dict[str, Volume], stripped: bool = False) -> dict[str, Scan]:
    return {name: Scan(volume, f"{name}.nii", "", stripped) for name, volume in volumes.items()}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A phantom that was prepared with its true brain, and the folder of what was written."""
    pytest.importorskip("picsl_greedy")
    phantom = raw(0, **POSE)
    given = {name: scan for name, scan in scans(phantom.scans).items() if name in ("t1ce", "flair")}
    found = prepare_scans("ann", given, find_brain=true_brain(phantom))
    return found, save_prepared(found, tmp_path_factory.mktemp("prepared") / "ann")


@pytest.mark.slow
def test_the_head_lies_as_in_brats_up_to_what_an_average_brain_tells(prepared):
    found, _ = prepared
    phantom = raw(0, **POSE)
    # The phantom was made in BraTS's pose.
    true = np.linalg.inv(phantom.to_prepared)
    assert angle(found.pose @ np.linalg.inv(true)) < 15
    assert (found.kind, found.image("t1ce").voxels.shape) == (RAW, (240, 240, 155))
    points = points_of(phantom.brain.voxels > 0, phantom.brain.affine)
    assert largest_distance(found.to_scan["flair"], phantom.to_scan["flair"], points) < 1
    # One interpolation of thick slices: the prepared FLAIR is like the phantom's own in the same place.
    own = Volume(made()[0]["flair"].astype(np.float32), AFFINE)
    same = found.at("flair", true, AFFINE, own.voxels.shape)
    inside = (same != 0) & (own.voxels != 0)
    assert inside.sum() > 0.9 * (own.voxels != 0).sum()
    assert np.corrcoef(same[inside], own.voxels[inside])[0, 1] > 0.75


@pytest.mark.slow
def test_the_folder_is_a_case_for_every_other_command(prepared):
    found, folder = prepared
    (item,) = unlabeled_items(folder)
    assert item["case"] == "ann" and [Path(file).name for file in item["image"] if file != "missing"] == [
        "ann_t1ce.nii.gz",
        "ann_flair.nii.gz",
    ]
    image = nib.load(folder / "ann_t1ce.nii.gz")
    np.testing.assert_array_equal(image.affine, AFFINE)
    np.testing.assert_allclose(image.get_fdata(), found.image("t1ce").voxels)
    record = json.loads((folder / "prepared.json").read_text())
    assert record["kind"] == RAW and set(record["seconds"]) >= {"brain", "pose", "registration", "picture"}
    assert record["packages"]["picsl-greedy"] == "1.4.0.3" and record["accepted"] == []
    assert (folder / "prepared.png").stat().st_size > 100_000
    brain = nib.load(folder / "ann_brain.nii.gz")
    assert brain.shape == raw(0, **POSE).scans["t1ce"].voxels.shape


@pytest.mark.slow
def test_transforms_are_those_of_itk(prepared):
    found, folder = prepared
    point = np.array([10.0, -20.0, 30.0, 1.0])
    for name in ("t1ce", "flair"):
        there = found.to_scan[name] @ found.pose @ point
        for file, start, end in (("{}_to_prepared", point, there), ("prepared_to_{}", there, point)):
            (transform,) = itk.transformread(str(folder / "transforms" / f"{file.format(name)}.tfm"))
            lps = transform.TransformPoint([float(v) for v in start[:3] * (-1, -1, 1)])
            np.testing.assert_allclose(np.array(lps) * (-1, -1, 1), end[:3], atol=1e-4)
        grid = read_native_grid(folder / "prepared.json", name)
        np.testing.assert_allclose(grid.to_prepared @ there, point, atol=1e-6)


@pytest.mark.slow
def test_a_head_that_its_header_turns_upside_down_is_refused_and_leaves_nothing(tmp_path, monkeypatch):
    pytest.importorskip("picsl_greedy")
    phantom = raw(0, **POSE)
    wrong = np.diag([1.0, -1.0, -1.0, 1.0])
    flipped = {name: Volume(scan.voxels, wrong @ scan.affine) for name, scan in phantom.scans.items()}
    save_raw(
        type(phantom)(flipped, *(getattr(phantom, name) for name in ("label", "brain", "to_scan", "to_prepared"))),
        tmp_path / "ann",
    )
    brain = Volume(phantom.brain.voxels, wrong @ phantom.brain.affine)
    monkeypatch.setattr(patients, "prepare_scans", lambda *args: prepare_scans(*args, find_brain=lambda head: brain))
    with pytest.raises(InputError, match=r'ann_t1ce\.nii\.gz: .* upside down.* --accept "unlikely brain shape"'):
        command.main([str(tmp_path / "ann"), "-o", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_what_scans_are_by_grid_and_background():
    phantom = raw(0, **POSE)
    images = {name: Volume(image.astype(np.float32), AFFINE) for name, image in made()[0].items()}
    assert kind_of(scans(images, stripped=True)) == PREPARED
    assert kind_of(scans(images, stripped=False)) == WITH_SKULL
    assert kind_of(scans(phantom.scans, stripped=True)) == STRIPPED
    assert kind_of(scans(phantom.scans, stripped=False)) == RAW
    with pytest.raises(InputError, match=r"^t1ce\.nii: prepared already"):
        prepare_scans("ann", scans(images, stripped=True))


def test_scans_are_found_as_a_case_as_loose_files_and_as_dicom(tmp_path):
    index = np.arange(64, dtype=np.uint16).reshape(4, 4, 4)
    small = {name: nib.Nifti1Image(index + n, np.eye(4)) for n, name in enumerate(SEQUENCES)}
    write_case(tmp_path / "study", small)
    for folder, names in (("ann", "ann_{}"), ("loose", "{}")):
        (tmp_path / folder).mkdir()
        for name, image in small.items():
            nib.save(image, tmp_path / folder / f"{names.format(name)}.nii.gz")
    (tmp_path / "loose" / "flair.nii.gz").rename(tmp_path / "loose" / "fla.nii.gz")
    (tmp_path / "loose" / "t1ce.nii.gz").rename(tmp_path / "loose" / "x_T1c.nii.gz")
    nib.save(small["t1"], tmp_path / "loose" / "brain_mask_t1c.nii.gz")
    for folder in ("ann", "loose", "study"):
        (item,) = raw_items([tmp_path / folder])
        assert item["case"] == folder and list(scans_of(item)) == list(SEQUENCES)
        found = {name: scan.volume.voxels.max() for name, scan in read_scans(scans_of(item)).items()}
        assert found == {name: 63 + n for n, name in enumerate(SEQUENCES)}, folder


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda root: (root / "ann_t1ce.nii.gz").unlink(), "ann has no T1ce, to which the others are registered"),
        (lambda root: (root / "ann_t1ce.nii.gz").write_bytes(b"x"), r"ann_t1ce\.nii\.gz: not a readable image"),
        (lambda root: [file.unlink() for file in root.iterdir()], "no cases found"),
        (lambda root: nib.save(nib.load(root / "ann_t1.nii.gz"), root / "ann_t1.nii"), "has this image twice"),
        (lambda root: (root.parent / "out" / "ann").mkdir(parents=True), r"out/ann: exists already; choose another"),
    ],
)
def test_wrong_input_is_one_line_and_leaves_nothing(tmp_path, change, said):
    (tmp_path / "ann").mkdir()
    for number, name in enumerate(SEQUENCES, 1):
        image = nib.Nifti1Image(np.full((4, 4, 4), number, np.uint8), np.eye(4))
        image.dataobj[0] = 1 + number
        nib.save(image, tmp_path / "ann" / f"ann_{name}.nii.gz")
    change(tmp_path / "ann")
    before = sorted((tmp_path / "out").rglob("*"))
    with pytest.raises(InputError, match=said) as caught:
        command.main([str(tmp_path / "ann"), "-o", str(tmp_path / "out")])
    assert "\n" not in str(caught.value)
    assert sorted((tmp_path / "out").rglob("*")) == before


def test_absent_packages_and_other_weights_are_one_line(monkeypatch, tmp_path):
    monkeypatch.setitem(packages.PACKAGES, "absent_module", "absent-package")
    with pytest.raises(InputError, match=r"^--prepare needs .*absent-package; run make install-prepare"):
        prepare_scans("ann", {})
    with pytest.raises(InputError, match=r"data/brats\.py: no such file; run make install-prepare"):
        packages.file_of("scripts.data", "brats.py", "")
    with pytest.raises(InputError, match=r"cases\.py: not the file that this bundle was tested with"):
        packages.file_of("scripts.data", "cases.py", "0" * 64)


@pytest.mark.slow
def test_a_disk_that_is_full_leaves_no_half_folder(prepared, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(prepared_folder, "save_text", full)
    with pytest.raises(InputError, match=r"ann: cannot be written \(No space left on device\); make room"):
        save_prepared(prepared[0], tmp_path / "out" / "ann")
    assert list((tmp_path / "out").iterdir()) == []
