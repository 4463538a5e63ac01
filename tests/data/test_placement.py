# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Where a file lies by its header, which headers are refused, and what a map's header says."""

import gzip
import re
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scripts.data.findings import ERRORS
from scripts.data.images import LoadImageByReaderd, SequenceReader, open_image, read_header, read_image, voxels_of
from scripts.data.inspection import check_case
from scripts.data.placement import check_grid, header_as_in, one_place
from scripts.utils.errors import InputError
from workflows import ROOT

SHAPE = (5, 6, 4)
AFFINE = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.1, 0.2, -0.1) @ np.diag([-1, -1, 1.5]), (50, 60, -20))
SHEARED = AFFINE @ [[1, 0.2, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
VALUES = np.random.default_rng(0).integers(1, 1000, SHAPE).astype(np.int16)


def write(path: Path, affine=AFFINE, values=VALUES, codes=(1, 1), kind=nib.Nifti1Image) -> Path:
    image = kind(values, affine)
    image.set_sform(affine, codes[0])
    image.set_qform(affine, codes[1])
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    return path


def poke(path: Path, offset: int, form: str, *values: float) -> Path:
    content = bytearray(path.read_bytes())
    struct.pack_into(f"<{form}", content, offset, *values)
    path.write_bytes(content)
    return path


def test_nothing_else_asks_a_header_where_a_file_lies():
    asks = re.compile(r"get_zooms|get_[sq]form|get_(best|base)_affine|\bnib\.load\b|correct_nifti_header")
    shipped = [path for path in (ROOT / "scripts").rglob("*.py") if "lab" not in path.parts]
    assert [path.name for path in shipped if asks.search(path.read_text(encoding="utf-8"))] == ["placement.py"]


@pytest.mark.parametrize(
    ("offset", "form", "values", "words"),
    [
        (108, "f", [0], "voxels from byte 0 on, which is inside the header"),
        (108, "f", [348], "voxels from byte 348 on"),
        (280, "12f", [0] * 12, "voxels of 0 x 0 x 0 mm, where 0.2 to 12 can be"),
        (280, "f", [np.nan], "a place of NaN or infinity"),
        (292, "f", [np.inf], "a place of NaN or infinity"),
        (280, "12f", [1, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0.1, 0], "axes that lie in one plane"),
        (280, "12f", [13, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0], "voxels of 13 x 1 x 1 mm"),
        (280, "12f", [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0.1, 0], "voxels of 1 x 1 x 0.1 mm"),
        (123, "b", [1], "voxels of 1000 x 1000 x 1500 mm"),
        (123, "b", [3], "voxels of 0.001 x 0.001 x 0.0015 mm"),
        (252, "2h4f", [1, 0, 0.9, 0.9, 0.9, 0], "a qform that is no rotation"),
    ],
)
@pytest.mark.parametrize("reading", [open_image, read_image, read_header])
def test_a_header_that_cannot_be_right_is_refused(tmp_path, offset, form, values, words, reading):
    path = poke(write(tmp_path / "a.nii"), offset, form, *values)
    with pytest.raises(InputError, match=re.escape(f"{path}: its header says {words}")) as caught:
        reading(path)
    assert caught.value.kind == "damaged header" in ERRORS


def test_a_volume_of_one_slice_is_refused_in_each_format(tmp_path):
    for path in (write(tmp_path / "a.nii.gz", values=VALUES[..., :1]), tmp_path / "a.mgz"):
        nib.save(nib.MGHImage(VALUES[:1], AFFINE), tmp_path / "a.mgz")
        with pytest.raises(InputError, match=r"one slice \((5 x 6 x 1|1 x 6 x 4)\), which is no volume"):
            read_image(path)


@pytest.mark.parametrize("reading", [open_image, read_image, read_header])
@pytest.mark.parametrize("name", ["zipped.nii", "plain.nii.gz", "zipped.mgh", "plain.mgz"])
def test_gzip_is_known_by_content(tmp_path, name, reading):
    """The check tells it."""
    nii = "nii" in name
    whole = (nib.Nifti1Image if nii else nib.MGHImage)(VALUES, AFFINE).to_bytes()
    path = tmp_path / name
    path.write_bytes(gzip.compress(whole) if name.startswith("zipped") else whole)
    image = reading(path)
    np.testing.assert_array_equal(voxels_of(image, path), VALUES)
    np.testing.assert_allclose(image.affine, AFFINE, atol=1e-5)
    (finding,) = [
        one for one in check_case({"case": "a", "image": [str(path)]}).findings if one.kind == "misnamed file"
    ]
    assert finding.message.startswith(f"{path}: {'compressed' if name.startswith('zipped') else 'not compressed'}")


def test_a_header_without_a_place_is_doubted(tmp_path):
    path = write(tmp_path / "a.nii", codes=(0, 0))
    found = {one.kind: one.message for one in check_case({"case": "a", "image": [str(path)]}).findings}
    assert found["no place in the header"].startswith(f"{path}: its header does not say where it lies")


def four(root: Path, change: np.ndarray) -> list[str]:
    """Four files, of which the third lies elsewhere by ``change``."""
    return [
        str(write(root / f"p_{name}.nii", AFFINE + change * (name == "t1ce"), VALUES + number))
        for number, name in enumerate(("t1", "t2", "t1ce", "flair"))
    ]


def by(axes: float, origin: float) -> np.ndarray:
    change = np.zeros((4, 4))
    change[0, 1], change[2, 3] = axes, origin
    return change


@pytest.mark.parametrize(("axes", "origin"), [(0, 0), (0, 1e-5), (0, 0.01), (1e-4, 0), (-1e-4, -0.01)])
def test_grids_that_differ_by_rounding_are_one_grid(tmp_path, axes, origin):
    files = four(tmp_path, by(axes, origin))
    assert not [one for one in check_case({"case": "p", "image": files}).findings if one.is_error]
    loaded = LoadImageByReaderd("image", SequenceReader(), image_only=True)({"image": files})["image"]
    np.testing.assert_array_equal(loaded, [VALUES + number for number in range(4)])
    np.testing.assert_allclose(loaded.affine, nib.load(files[0]).affine, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("axes", "origin", "words"),
    [(0, 0.02, "origin by 0.02 mm"), (0.0003, 0, "axes by 0.0003 mm a voxel, origin by 0 mm")],
)
def test_other_grids_are_refused_with_the_difference(tmp_path, axes, origin, words):
    files = four(tmp_path, by(axes, origin))
    (finding,) = [one for one in check_case({"case": "p", "image": files}).findings if one.is_error]
    assert finding.message.startswith(f"{files[2]}: its grid differs from that of {files[0]} (")
    assert words in finding.message
    with pytest.raises(InputError) as caught:
        LoadImageByReaderd("image", SequenceReader(), image_only=True)({"image": files})
    assert str(caught.value) == finding.message


def test_the_origin_of_a_label_map_may_differ_and_its_axes_may_not():
    images = [nib.Nifti1Image(VALUES, AFFINE + by(*change)) for change in ((0, 0), (0, 50), (0.1, 0))]
    assert check_grid("b", images[1], "a", images[0], label=True) is False
    with pytest.raises(InputError) as caught:
        check_grid("b", images[2], "a", images[0], label=True)
    assert caught.value.kind == "label map on another grid"


def fields(image: nib.Nifti1Image) -> dict:
    """The metadata of an image as MONAI's readers and transforms leave them."""
    header = dict(image.header)
    return {**header, "original_pixdim": header["pixdim"], "pixdim": np.ones(8)}


@pytest.mark.parametrize("codes", [(4, 0), (0, 2), (2, 3), (0, 0)])
def test_a_map_has_the_forms_and_codes_of_its_image(tmp_path, codes):
    path = write(tmp_path / "a.nii", codes=codes)
    poke(path, 123, "b", 10)  # mm and seconds
    header = header_as_in(fields(nib.load(path)), SHAPE, nib.load(path).affine)
    for name in ("sform_code", "qform_code", "xyzt_units", "srow_x", "quatern_b", "qoffset_z"):
        np.testing.assert_array_equal(header[name], nib.load(path).header[name])
    np.testing.assert_array_equal(header["pixdim"][:4], nib.load(path).header["pixdim"][:4])
    np.testing.assert_array_equal(header.get_best_affine(), nib.load(path).affine)


@pytest.mark.parametrize(
    ("offset", "form", "values"),
    [(268, "f", [99]), (80, "f", [1.001]), (256, "3f", [0.9, 0.9, 0.9]), (268, "f", [np.nan])],
    ids=["qform elsewhere", "another pixdim", "no rotation", "NaN"],
)
def test_contradicting_forms_are_set_from_the_one_affine(tmp_path, offset, form, values):
    path = poke(write(tmp_path / "a.nii", codes=(4, 1)), offset, form, *values)
    image = read_image(path)
    header = header_as_in(fields(image), SHAPE, image.affine)
    assert int(header["sform_code"]) == int(header["qform_code"]) == 4
    for place in (header.get_sform(), header.get_qform(), AFFINE):
        np.testing.assert_allclose(place, image.affine, atol=1e-5)
    np.testing.assert_allclose(header.get_zooms(), [1, 1, 1.5], atol=1e-6)


def test_a_sheared_sform_has_no_qform(tmp_path):
    image = nib.Nifti1Image(VALUES, SHEARED)
    image.set_qform(AFFINE, 1)
    nib.save(image, tmp_path / "a.nii")
    opened = open_image(tmp_path / "a.nii")
    np.testing.assert_allclose(opened.affine, SHEARED, atol=1e-5)
    header = header_as_in(fields(opened), SHAPE, opened.affine)
    assert header["qform_code"] == 0 and one_place(header.get_best_affine(), SHEARED)


def test_a_map_of_an_image_without_nifti_fields_gets_both_forms():
    header = header_as_in({"filename_or_obj": "a.nrrd"}, SHAPE, AFFINE)
    assert header["sform_code"] == header["qform_code"] == 1
    for place in (header.get_sform(), header.get_qform()):
        np.testing.assert_allclose(place, AFFINE, atol=1e-5)
