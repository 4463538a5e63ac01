# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Maps come back to the grid of the scan, where the places of both grids say."""

import numpy as np
import torch
from monai.data import MetaTensor
from scripts.preparation.native import ToNativeGridd
from scripts.utils.files import save_json

AFFINE = np.array([[-1.0, 0, 0, 20], [0, -1, 0, 20], [0, 0, 1, 0], [0, 0, 0, 1]])
NATIVE = np.diag([2.0, 2.0, 5.0, 1.0])
TO_PREPARED = np.array([[0.8, -0.6, 0, 1], [0.6, 0.8, 0, 2], [0, 0, 1, 3], [0, 0, 0, 1.0]])


def item(path) -> dict:
    scan = {"affine": NATIVE.tolist(), "shape": [5, 6, 3], "to_prepared": TO_PREPARED.tolist()}
    save_json({"scans": {"t1ce": scan}}, path)
    index = np.stack(np.meshgrid(*map(np.arange, (40, 40, 20)), indexing="ij"), -1)
    linear = (index @ AFFINE[:3, :3].T + AFFINE[:3, 3]) @ (0.01, 0.02, 0.03)
    voxels = torch.from_numpy(np.stack([linear, 1 - linear]).astype(np.float32))
    return {"pred": MetaTensor(voxels, affine=torch.from_numpy(AFFINE)), "preparation": str(path)}


def test_a_linear_map_is_linear_on_the_grid_of_the_scan(tmp_path):
    found = ToNativeGridd("pred", "t1ce")(item(tmp_path / "prepared.json"))["pred"]
    np.testing.assert_allclose(found.affine, NATIVE)
    index = np.stack(np.meshgrid(*map(np.arange, (5, 6, 3)), indexing="ij"), -1) * (2, 2, 5)
    there = index @ TO_PREPARED[:3, :3].T + TO_PREPARED[:3, 3]
    inside = np.all((there >= (-19, -19, 0)) & (there <= (20, 20, 19)), axis=-1)
    assert inside.sum() > 60
    np.testing.assert_allclose(found.numpy()[0][inside], (there @ (0.01, 0.02, 0.03))[inside], atol=1e-5)
    np.testing.assert_allclose(found.numpy().sum(0)[inside], 1, atol=1e-5)


def test_a_case_that_nobody_prepared_stays_as_it_is(tmp_path):
    given = {key: value for key, value in item(tmp_path / "prepared.json").items() if key == "pred"}
    assert ToNativeGridd("pred", "t1ce")(given)["pred"] is given["pred"]
