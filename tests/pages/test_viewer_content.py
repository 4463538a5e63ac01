# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The volumes of the viewer: voxels, places and order are those of the files."""

import base64
import gzip

import nibabel as nib
import numpy as np
import pytest
from known_run import BRAIN, LPS, known_images, known_labels, write_case
from scripts.brats import SEQUENCES
from scripts.data.cases import NO_FILE
from scripts.data.datalist import labeled_items
from scripts.pages.viewer import viewer_content
from scripts.pictures.patient import read_patient
from workflows import write_decathlon

# Numbers of the parts by label values 0 to 4.
PARTS = np.array([0, 1, 2, 0, 3], np.uint8)


def decoded(text):
    return nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(text)))


@pytest.mark.parametrize(
    "affine", [LPS, np.eye(4), np.array([[0, 0, 1, 0], [-1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]])]
)
def test_voxels_decode_to_those_of_the_files_in_any_axes(tmp_path, affine):
    write_case(tmp_path, "P1", affine.astype(float))
    (entry,) = labeled_items(tmp_path)
    prediction = tmp_path / "P1.nii.gz"
    nib.save(nib.Nifti1Image(known_labels()[::-1], np.diag([1.0, -1.0, 1.0, 1.0])), prediction)
    content = viewer_content(read_patient(entry, prediction))
    images = {name: decoded(text) for name, text in content["images"].items()}
    assert list(images) == list(SEQUENCES)
    for name, image in known_images().items():
        voxels = np.asanyarray(images[name].dataobj)
        # An independent window: from 0 to the percentile 99.5 of the brain, in 64 levels.
        high = np.percentile(image[BRAIN], 99.5)
        expected = np.clip(image[BRAIN] / high, 0, 1) * 255
        assert voxels.dtype == np.uint8
        assert np.abs(voxels - expected).max() <= 2.5
        assert nib.aff2axcodes(images[name].affine) == ("L", "P", "S")
    # The noise of T1 tells each place in the file from the others.
    file = nib.load(entry["image"][SEQUENCES.index("t1")])
    for index in ((0, 0, 0), (3, 5, 7), (19, 15, 13)):
        there = np.linalg.inv(file.affine) @ images["t1"].affine @ [*index, 1]
        found = np.asanyarray(file.dataobj)[tuple(np.round(there[:3]).astype(int))]
        assert found == known_images()["t1"][BRAIN][index]
    assert list(content["maps"]) == ["reference", "prediction"]
    for text in content["maps"].values():
        assert np.array_equal(decoded(text).dataobj, PARTS[known_labels()][BRAIN])
    # The slices of the preview, which show all parts, within the brain's box. The file's own order counts.
    assert content["center"] == [7 - 2, 9 - 2, 6 - 1]
    number = 8 if affine[0, :3].sum() < 0 else 24 - 7
    assert content["places"][0][7 - 2] == f"{number} of 24, L 7.0 mm"
    assert [len(places) for places in content["places"]] == list(content["size"])


def test_a_decathlon_file_gives_the_same(tmp_path):
    write_case(tmp_path / "brats", "P1")
    write_decathlon(tmp_path / "brats", tmp_path / "task01")
    (one,), (other,) = labeled_items(tmp_path / "brats"), labeled_items(tmp_path / "task01")
    assert isinstance(other["image"], str)
    expected, found = (viewer_content(read_patient(entry)) for entry in (one, other))
    assert expected == found


def test_a_sequence_that_is_missing_is_left_out(tmp_path):
    write_case(tmp_path, "P1")
    (entry,) = labeled_items(tmp_path)
    entry["image"][SEQUENCES.index("flair")] = NO_FILE
    content = viewer_content(read_patient(entry))
    assert (list(content["images"]), content["first"]) == (["t1", "t2", "t1ce"], "t1")
