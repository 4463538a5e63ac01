# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The volumes of a page: voxels, places, colors and order are those of the files."""

from __future__ import annotations

import base64
import gzip
import io

import nibabel as nib
import numpy as np
import pytest
from known_run import BRAIN, LPS, known_images, known_labels, write_case
from matplotlib.colors import to_rgb
from matplotlib.image import imread
from scripts.brats import CHANNEL_ORDER, CORE, SEQUENCES
from scripts.data.cases import NO_FILE
from scripts.data.datalist import labeled_items
from scripts.pages.volumes import encoded, preview, read_view, region_volumes
from scripts.utils.errors import InputError
from workflows import write_decathlon

# Numbers of the parts by label values 0 to 4.
PARTS = np.array([0, 1, 2, 0, 3], np.uint8)


@pytest.mark.parametrize(
    "affine", [LPS, np.eye(4), np.array([[0, 0, 1, 0], [-1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]])]
)
def test_voxels_decode_to_those_of_the_files_in_any_axes(tmp_path, affine):
    write_case(tmp_path, "P1", affine.astype(float))
    (entry,) = labeled_items(tmp_path)
    prediction = tmp_path / "P1.nii.gz"
    nib.save(nib.Nifti1Image(known_labels()[::-1], np.diag([1.0, -1.0, 1.0, 1.0])), prediction)
    view = read_view(entry, prediction, CHANNEL_ORDER)
    assert list(view.images) == list(SEQUENCES)
    for name, image in known_images().items():
        decoded = nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(encoded(view.images[name], view.affine))))
        voxels = np.asanyarray(decoded.dataobj)
        # An independent window: from 0 to the percentile 99.5 of the brain, in 64 levels.
        high = np.percentile(image[BRAIN], 99.5)
        expected = np.clip(image[BRAIN] / high, 0, 1) * 255
        assert voxels.dtype == np.uint8
        assert np.abs(voxels - expected).max() <= 2.5
        assert nib.aff2axcodes(decoded.affine) == ("L", "P", "S")
    # The noise of T1 tells each place in the file from the others.
    file = nib.load(entry["image"][SEQUENCES.index("t1")])
    for index in ((0, 0, 0), (3, 5, 7), (19, 15, 13)):
        there = np.linalg.inv(file.affine) @ view.affine @ [*index, 1]
        found = np.asanyarray(file.dataobj)[tuple(np.round(there[:3]).astype(int))]
        assert found == known_images()["t1"][BRAIN][index]
    assert list(view.maps) == ["reference", "prediction"]
    for parts in view.maps.values():
        assert np.array_equal(parts, PARTS[known_labels()][BRAIN])
    # With most tumor, within the brain's box.
    assert view.center == (8 - 2, 9 - 2, 7 - 1)


def test_a_decathlon_file_gives_the_same_view(tmp_path):
    write_case(tmp_path / "brats", "P1")
    write_decathlon(tmp_path / "brats", tmp_path / "task01")
    (one,), (other,) = labeled_items(tmp_path / "brats"), labeled_items(tmp_path / "task01")
    assert isinstance(other["image"], str)
    expected, found = (read_view(entry, None, CHANNEL_ORDER) for entry in (one, other))
    for name in SEQUENCES:
        assert np.array_equal(expected.images[name], found.images[name]), name
    assert np.array_equal(expected.maps["reference"], found.maps["reference"])


def test_a_sequence_that_is_missing_is_left_out(tmp_path):
    write_case(tmp_path, "P1")
    (entry,) = labeled_items(tmp_path)
    entry["image"][SEQUENCES.index("flair")] = NO_FILE
    assert list(read_view(entry, None, CHANNEL_ORDER).images) == ["t1", "t2", "t1ce"]
    with pytest.raises(InputError, match="has no file of flair"):
        read_view(entry, None, CHANNEL_ORDER, ["flair"])


def test_a_case_without_a_brain_is_refused(tmp_path):
    write_case(tmp_path, "P1")
    (entry,) = labeled_items(tmp_path)
    for file in entry["image"]:
        nib.save(nib.Nifti1Image(np.zeros((24, 20, 16), np.int16), LPS), file)
    with pytest.raises(InputError, match="P1: its images are 0 everywhere"):
        read_view(entry, None, CHANNEL_ORDER)


def test_a_label_map_of_another_grid_is_refused(tmp_path):
    write_case(tmp_path, "P1")
    (entry,) = labeled_items(tmp_path)
    nib.save(nib.Nifti1Image(np.zeros((3, 3, 3), np.uint8), LPS), tmp_path / "P1.nii.gz")
    with pytest.raises(InputError, match="not the case's"):
        read_view(entry, tmp_path / "P1.nii.gz", CHANNEL_ORDER)


def test_volumes_of_regions_are_in_cubic_millimeters(tmp_path):
    path = tmp_path / "P1.nii.gz"
    nib.save(nib.Nifti1Image(known_labels(), np.diag([-2.0, -1.0, 1.5, 1.0])), path)
    assert region_volumes(path) == pytest.approx({"ET": 3 * 3.0, "TC": 18 * 3.0, "WT": 122 * 3.0})


def test_a_preview_shows_the_patients_left_on_the_right_and_labels_in_their_colors(tmp_path):
    write_case(tmp_path, "P1")
    (entry,) = labeled_items(tmp_path)
    view = read_view(entry, None, CHANNEL_ORDER)
    pixels = np.round(imread(io.BytesIO(preview(view, "t2")))[..., :3] * 255)
    gap, (x, y, z) = 3, (20, 16, 14)
    # Axial, coronal and sagittal beside each other, each with a frame of 3 pixels.
    assert pixels.shape == (max(y, z) + 2 * gap, x + x + y + 6 * gap, 3)
    axial = pixels[gap : gap + y, gap : gap + x]
    # A preview has 32 gray levels, and 52 is in the seventh.
    dark = round(6 * 255 / 31)
    assert (axial[0, 0] == dark).all() and (axial[0, -1] == 255).all()
    # A voxel of the core, on the slice of most tumor: 45 % of the gray value and 55 % of the core's color.
    expected = 0.45 * dark + 0.55 * 255 * np.array(to_rgb(CORE.color))
    assert np.abs(axial[9 - 2, 8 - 2] - expected).max() <= 1
