# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""MONAI Deploy's own operator for bundles runs the TorchScript of this bundle and its folder."""

import shutil
import sys
from pathlib import Path

import monai
import nibabel as nib
import numpy as np
import pytest
from consumers import Empty, monai_deploy
from workflows import voxels

OPERATOR = "monai.deploy.operators.monai_bundle_inference_operator"


@pytest.fixture
def deploy():
    with monai_deploy(OPERATOR) as module:
        yield module


class Ports:
    """Inputs or outputs of an operator, as Holoscan passes them to ``compute``."""

    def __init__(self, value=None) -> None:
        self.value = value

    def receive(self, name: str):
        assert name == "image"
        return self.value

    def get(self, name: str) -> None:
        return None

    def emit(self, value, name: str) -> None:
        assert name == "pred"
        self.value = value


def patient(cohort: Path, image_class):
    """Return a patient in memory: the sequences in the network's order, channels last, with the affine of the files."""
    case = next(cohort.rglob("BraTS20_Training_001"))
    files = [nib.load(case / f"{case.name}_{sequence}.nii.gz") for sequence in ("t1", "t2", "t1ce", "flair")]
    array = np.stack([np.asanyarray(file.dataobj) for file in files], axis=-1).astype(np.float32)
    affine = files[0].affine
    return case.name, image_class(array, {"affine": affine, "original_affine": affine, "original_channel_dim": -1})


def compute(deploy, path: Path, image, loaded_by_the_application: bool):
    context = deploy.AppContext({"model": str(path)} if loaded_by_the_application else {"model": "/nowhere"})
    ports = [deploy.IOMapping(name, deploy.Image, deploy.IOType.IN_MEMORY) for name in ("image", "pred")]
    operator = deploy.MonaiBundleInferenceOperator(
        Empty(),
        app_context=context,
        input_mapping=ports[:1],
        output_mapping=ports[1:],
        bundle_path=None if loaded_by_the_application else str(path),
    )
    out = Ports()
    operator.compute(Ports(image), out, None)
    # The operator follows DICOM's order of axes: slice, row, column.
    return np.swapaxes(out.value.asnumpy(), 0, 2)


@pytest.mark.parametrize("loaded_by_the_application", [True, False])
def test_torchscript_with_its_scripts_beside_gives_what_the_bundles_own_run_gives(
    deploy, bundle, cohort, segmentation, tmp_path, monkeypatch, loaded_by_the_application
):
    model = tmp_path / "model" / "model.ts"
    model.parent.mkdir()
    configuration = str(bundle / "configs" / "inference.json")
    monai.bundle.ckpt_export(bundle_root=str(bundle), config_file=configuration, filepath=str(model))
    # The application's folder holds scripts/ beside app.py, and model.ts is the only model file.
    shutil.copytree(bundle / "scripts", tmp_path / "app" / "scripts")
    monkeypatch.syspath_prepend(str(tmp_path / "app"))
    for name in [name for name in sys.modules if name.split(".")[0] == "scripts"]:
        monkeypatch.delitem(sys.modules, name)
    name, image = patient(cohort, deploy.Image)
    result = compute(deploy, model, image, loaded_by_the_application)
    assert Path(sys.modules["scripts.data.transforms"].__file__).is_relative_to(tmp_path / "app")
    assert np.array_equal(result, voxels(segmentation / f"{name}.nii.gz"))
    assert result.any()


@pytest.mark.parametrize("weights", ["model.pt", "model.ts"])
def test_the_bundles_folder_gives_what_its_own_run_gives(
    deploy, fresh_bundle, cohort, segmentation, weights, monkeypatch
):
    if weights == "model.ts":
        configuration = str(fresh_bundle / "configs" / "inference.json")
        monai.bundle.ckpt_export(bundle_root=str(fresh_bundle), config_file=configuration)
        (fresh_bundle / "models" / "model.pt").unlink()
    for name in [name for name in sys.modules if name.split(".")[0] == "scripts"]:
        monkeypatch.delitem(sys.modules, name)
    name, image = patient(cohort, deploy.Image)
    result = compute(deploy, fresh_bundle, image, False)
    # The operator finds the scripts of the folder by itself.
    assert Path(sys.modules["scripts.data.transforms"].__file__).is_relative_to(fresh_bundle)
    assert np.array_equal(result, voxels(segmentation / f"{name}.nii.gz"))


def test_channels_in_memory_are_taken_in_the_networks_order(deploy, bundle, cohort, segmentation):
    """Without a file and without a setting, the channels are in the order of metadata.json."""
    name, image = patient(cohort, deploy.Image)
    swapped = deploy.Image(image.asnumpy()[..., [3, 0, 1, 2]], image.metadata())
    result = compute(deploy, bundle, swapped, False)
    assert not np.array_equal(result, voxels(segmentation / f"{name}.nii.gz"))


def test_the_operator_saves_nothing_itself(deploy, bundle):
    steps = deploy.get_bundle_config(str(bundle), "inference").get_parsed_content("postprocessing")
    kept = deploy.filter_compose(steps, deploy.DISALLOW_LOAD_SAVE).transforms
    wanted = [
        "RequireFinited",
        "Activationsd",
        "Invertd",
        "MeasureCertaintyd",
        "ToNativeGridd",
        "ProbabilitiesToLabelMapd",
    ]
    assert [type(step).__name__ for step in kept] == wanted
