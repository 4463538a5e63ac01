# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Images of every format that is read have the voxels and the place that they have as NIfTI images."""

import re

import itk
import nibabel as nib
import numpy as np
import pytest
from monai.transforms import LoadImaged
from scripts.data.datalist import labeled_items
from scripts.data.images import LoadImageByReaderd, SequenceReader, in_lps, open_image, read_image, voxels_of
from scripts.data.inspection import check_case, check_cases
from scripts.utils.errors import InputError

SHAPE = (7, 9, 5)
FORMATS = (".nii", ".nii.gz", ".mgh", ".mgz", ".nrrd", ".mha", ".mhd")
# Axes that run to the back, up and to the left, with voxels of 1, 2 and 3 mm.
TURNED = np.array([[0.0, 0.0, -3.0, 80.0], [-1.0, 0.0, 0.0, 20.0], [0.0, 2.0, 0.0, -40.0], [0.0, 0.0, 0.0, 1.0]])
OBLIQUE = nib.affines.from_matvec(
    nib.eulerangles.euler2mat(0.3, 0.2, -0.4) @ np.diag([1.0, 1.5, 2.0]), (-30.0, 12.5, 7.0)
)


def write(path, values, affine):
    """Write an image in the format of its name; ITK's affines are those of LPS."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name.endswith((".nii", ".nii.gz")):
        nib.save(nib.Nifti1Image(values, affine), path)
    elif path.suffix in (".mgh", ".mgz"):
        nib.save(nib.MGHImage(values, affine), path)
    else:
        image = itk.image_from_array(np.ascontiguousarray(values.T))
        lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
        spacing = np.linalg.norm(lps[:3, :3], axis=0)
        image.SetSpacing(spacing)
        image.SetOrigin(lps[:3, 3])
        image.SetDirection(itk.matrix_from_array(lps[:3, :3] / spacing))
        itk.imwrite(image, str(path))
    return path


def random(seed=0, dtype=np.int16):
    return np.random.default_rng(seed).integers(-100, 1000, SHAPE).astype(dtype)


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("affine", [np.eye(4), TURNED, OBLIQUE], ids=["straight", "turned", "oblique"])
@pytest.mark.parametrize("reading", [read_image, open_image])
def test_voxels_and_place_are_those_of_nifti(tmp_path, suffix, affine, reading):
    values = random()
    image = reading(write(tmp_path / f"p1_t1{suffix}", values, affine))
    np.testing.assert_array_equal(voxels_of(image, "p1"), values)
    np.testing.assert_allclose(image.affine, affine, atol=1e-4)
    plain = in_lps(nib.Nifti1Image(values, affine))
    np.testing.assert_array_equal(voxels_of(in_lps(image), "p1"), np.asanyarray(plain.dataobj))


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float32])
@pytest.mark.parametrize("suffix", [".mgz", ".nrrd", ".mha"])
def test_types_of_voxels(tmp_path, suffix, dtype):
    values = random(1, dtype)
    found = voxels_of(read_image(write(tmp_path / f"a{suffix}", values, TURNED)), "a")
    np.testing.assert_array_equal(found, values)


@pytest.mark.slow
def test_integers_of_64_bits_are_refused(tmp_path):
    header = b"NRRD0004\ntype: int64\ndimension: 3\nsizes: 2 2 2\nendian: little\nencoding: raw\n\n"
    (tmp_path / "a.nrrd").write_bytes(header + np.arange(8, dtype="<i8").tobytes())
    with pytest.raises(InputError, match=r"a\.nrrd: ITK does not read its type of voxels; save it with at most 32"):
        read_image(tmp_path / "a.nrrd")


def case(root, formats=(".mha", ".nrrd", ".mgz", ".nii"), label=".nrrd"):
    """A case whose files differ in format."""
    for seed, (sequence, suffix) in enumerate(zip(("t1", "t2", "t1ce", "flair"), formats, strict=True)):
        write(root / "P1" / f"P1_{sequence}{suffix}", random(seed) + 200, TURNED)
    write(root / "P1" / f"P1_seg{label}", np.resize(np.array([0, 1, 2, 4], np.uint8), SHAPE), TURNED)
    return root


def test_a_case_of_several_formats_is_found_checked_and_loaded(tmp_path):
    plain = case(tmp_path / "plain", (".nii.gz",) * 4, ".nii.gz")
    mixed = case(tmp_path / "mixed")
    loaded = []
    for root in (plain, mixed):
        (item,) = labeled_items(root)
        assert item["case"] == "P1" and item["et_label"] == 4
        assert not any(check_cases([item], root))
        load = LoadImageByReaderd(["image", "label"], SequenceReader(), image_only=True)
        loaded.append(load(item))
    for key in ("image", "label"):
        first, second = (item[key] for item in loaded)
        assert first.shape == second.shape
        np.testing.assert_array_equal(first, second)
        np.testing.assert_allclose(first.affine, second.affine, atol=1e-4)


@pytest.mark.parametrize("suffix", [".mgz", ".nrrd", ".mha"])
@pytest.mark.parametrize("kept", [0.0, 0.4, 0.9])
def test_a_cut_off_file_is_named(tmp_path, suffix, kept):
    path = write(tmp_path / f"P1_t1{suffix}", random(), TURNED)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(InputError, match=re.escape(f"{path}: ")) as caught:
        voxels_of(read_image(path), path)
    assert "copy it again" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_several_channels_are_refused_by_the_check_and_the_loader(tmp_path, suffix):
    """Nothing in such a file says which channel is which sequence."""
    path = tmp_path / f"scan{suffix}"
    channels = np.stack([np.full(SHAPE, value, np.float32) for value in (1, 2, 3, 4)], axis=-1)
    itk.imwrite(itk.image_from_array(channels, is_vector=True), str(path))
    for item in ({"case": "scan", "image": str(path)}, {"case": "scan", "image": [str(path)] * 4}):
        (finding, *_) = check_case(item).findings
        assert finding.message == f"{path}: several channels; give one file per sequence."
        with pytest.raises(InputError, match=re.escape(f"{path}: several channels; give one file per sequence.")):
            LoadImageByReaderd("image", SequenceReader(), image_only=True)(item)


def test_without_itk_its_formats_are_refused_and_the_package_named(tmp_path, monkeypatch):
    path = write(tmp_path / "P1_t1.nrrd", random(), TURNED)
    monkeypatch.setattr("scripts.data.images.packages_are_installed", lambda *names: False)
    with pytest.raises(InputError, match=r"P1_t1\.nrrd: this format needs the package itk; install it"):
        read_image(path)


def test_the_loader_agrees_with_monais_own_on_nifti(tmp_path):
    path = write(tmp_path / "a.nii.gz", random(), OBLIQUE)
    ours = LoadImageByReaderd("image", SequenceReader(), image_only=True)({"image": str(path)})["image"]
    theirs = LoadImaged("image", image_only=True)({"image": str(path)})["image"]
    np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_allclose(ours.affine, theirs.affine)
