# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Label maps are named after their case."""

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import SaveImaged
from scripts.inference.writers import SaveImageByCased, SaveRegionMapsd

AFFINE = np.diag([-1.0, -2.0, 3.0, 1.0])


@pytest.mark.parametrize(
    ("item", "file", "name"),
    [
        ({"case": "mine"}, "BraTS20_Training_001_t1.nii.gz", "mine"),
        ({}, "BraTS20_Training_001_t1.nii.gz", "BraTS20_Training_001"),
        ({}, "BraTS-GLI-00000-000-t1n.nii.gz", "BraTS-GLI-00000-000"),
        ({}, "imagesTs/BRATS_485.nii.gz", "BRATS_485"),
    ],
)
def test_a_label_map_is_named_after_its_case_or_else_its_image(tmp_path, item, file, name):
    labels = torch.arange(24).reshape(1, 2, 3, 4) % 3
    pred = MetaTensor(labels, affine=torch.as_tensor(AFFINE), meta={"filename_or_obj": file})
    save = SaveImageByCased("pred", output_dir=tmp_path)
    # MONAI Label recognizes a writer by this class.
    assert isinstance(save, SaveImaged)
    assert save({**item, "pred": pred})["pred"] is pred
    (written,) = tmp_path.iterdir()
    assert written.name == f"{name}.nii.gz"
    image = nib.load(written)
    assert image.get_data_dtype() == np.uint8 and np.array_equal(image.affine, AFFINE)
    assert np.array_equal(np.asanyarray(image.dataobj), labels[0])


def test_percent_of_entropy_are_rounded(tmp_path):
    p = torch.tensor([0.5, 0.3, 0.11, 0.02, 0.0]).reshape(1, 5, 1, 1).repeat(4, 1, 1, 1)
    entropy = [100.0, 88.129, 49.992, 14.144, 0.0]  # -p log2(p) - (1 - p) log2(1 - p)
    SaveRegionMapsd("pred", tmp_path, "unc")({"case": "p", "pred": MetaTensor(p, affine=torch.as_tensor(AFFINE))})
    found = np.asanyarray(nib.load(tmp_path / "p_unc_whole.nii.gz").dataobj)
    assert found.dtype == np.uint8 and found.ravel().tolist() == [round(value) for value in entropy]
