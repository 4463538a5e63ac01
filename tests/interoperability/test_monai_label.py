# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""MONAI Label's own tasks for bundles run the unchanged bundle."""

import json
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from consumers import monai_label
from workflows import bundle_run, voxels, write_decathlon


@pytest.fixture
def inference_task():
    with monai_label("monailabel.tasks.infer.bundle") as module:
        yield module.BundleInferTask


@pytest.fixture
def training_task():
    with monai_label("monailabel.tasks.train.bundle") as module:
        yield module.BundleTrainTask


@pytest.mark.parametrize("form", ["one file", "folder"])
def test_inference_gives_what_the_bundles_own_run_gives(inference_task, bundle, cohort, segmentation, form, tmp_path):
    case = next(cohort.rglob("BraTS20_Training_001"))
    image = case
    if form == "one file":
        image = write_decathlon(case, tmp_path / "studies") / "imagesTr" / f"{case.name}.nii.gz"
    task = inference_task(str(bundle), {})
    assert task.is_valid() and task.dimension == 3 and str(task.type.value) == "segmentation"
    request = {"image": str(image), "device": "cpu", "result_extension": ".nii.gz", "result_dtype": "uint8"}
    file, answer = task(request)
    # The scripts come from this bundle and from no other place.
    assert Path(sys.modules["scripts.data.transforms"].__file__).is_relative_to(bundle)
    result, wanted = nib.load(file), nib.load(segmentation / f"{case.name}.nii.gz")
    assert np.array_equal(voxels(Path(file)), voxels(segmentation / f"{case.name}.nii.gz"))
    assert np.allclose(result.affine, wanted.affine)
    assert answer["label_names"] == task.labels
    Path(file).unlink()


def test_label_names_fit_the_label_map(inference_task, bundle):
    task = inference_task(str(bundle), {})
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    # By default, MONAI Label takes the network's channels, which overlap, for labels.
    channels = metadata["network_data_format"]["outputs"]["pred"]["channel_def"]
    assert task.labels == {name.lower(): int(channel) for channel, name in channels.items() if channel != "0"}
    task.labels = {name: int(value) for value, name in metadata["label_def"].items() if value != "0"}
    assert task.labels == {"necrotic and non-enhancing core": 1, "edema": 2, "enhancing tumor": 4}
    assert task.info()["labels"] == task.labels
    inference = json.loads((bundle / "configs" / "inference.json").read_text())
    assert task.labels["enhancing tumor"] == inference["saved_et_label"]


class Studies:
    """The part of MONAI Label's datastore that the training task uses: ``datalist`` lists images with label maps."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def datalist(self) -> list[dict[str, str]]:
        images = sorted(self.folder.glob("*.nii.gz"))
        return [{"image": str(i), "label": str(self.folder / "labels" / "final" / i.name)} for i in images]


@pytest.fixture(scope="module")
def studies(small_cohort, tmp_path_factory) -> Path:
    """Studies in MONAI Label's layout: four-dimensional images with this bundle's labels, not marked as phantoms."""
    folder = tmp_path_factory.mktemp("studies")
    (folder / "labels" / "final").mkdir(parents=True)
    task01 = write_decathlon(small_cohort, tmp_path_factory.mktemp("task01"))
    for file in sorted((task01 / "imagesTr").iterdir()):
        name = file.name.removesuffix(".nii.gz")
        for source, target in (
            (file, folder / file.name),
            (small_cohort / name / f"{name}_seg.nii.gz", folder / "labels" / "final" / file.name),
        ):
            image = nib.load(source)
            image.header["descrip"] = b""
            nib.save(image, target)
    return folder


@pytest.fixture
def known(fresh_bundle) -> str:
    """Mark the bundle's weights as trained on patients, like the studies; return the weights' checksum."""
    file = fresh_bundle / "models" / "model.json"
    record = json.loads(file.read_text())
    record["trained_on"] = {"patients": 2, "phantoms": 0, "origin": None}
    file.write_text(json.dumps(record))
    return record["checksum"]


def test_training_starts_from_the_models_weights_and_replaces_them(
    training_task, fresh_bundle, studies, small_cohort, known
):
    models = fresh_bundle / "models"
    before = torch.load(models / "model.pt", weights_only=True)
    (models / "model.ts").touch()
    task = training_task(str(fresh_bundle), {})
    assert task.is_valid()
    request = {"model": "segmentation", "device": "cpu", "max_epochs": 2, "val_split": 0.2, "multi_gpu": False}
    for number in (1, 2):
        task(request, Studies(studies))
        best = torch.load(fresh_bundle / "runs" / "train" / "model.pt", weights_only=True)
        published = torch.load(models / "model.pt", weights_only=True)
        assert all(torch.equal(published[name], value) for name, value in best.items())
        # The record of the published weights names the weights with which the first training started.
        content = json.loads((models / "model.json").read_text())["trained_on"]
        assert content == {"patients": 5, "phantoms": 0, "origin": known}
        # The earlier weights are kept, and MONAI Label offers them.
        kept = list(models.glob("model_*.pt"))
        assert len(kept) == number
        assert len(task.config()["model_filename"]) == number + 1
    assert not (models / "model.ts").exists()
    first = min(kept, key=lambda path: path.stat().st_mtime_ns)
    assert all(torch.equal(torch.load(first, weights_only=True)[name], value) for name, value in before.items())
    assert len([path for path in (fresh_bundle / "runs").iterdir() if path.name.startswith("train")]) == 2

    run = json.loads((fresh_bundle / "runs" / "train" / "run.json").read_text())
    assert run["cases"] == {"training": 5, "validation": 1}
    assert run["channel_order"] == ["flair", "t1", "t1ce", "t2"]
    split = json.loads((fresh_bundle / "runs" / "train" / "datalist.json").read_text())
    assert split["validation"] == [
        {
            "case": "BraTS20_Training_006",
            "et_label": 4,
            "edema_label": 2,
            "label_release": 0,
            "image": str(studies / "BraTS20_Training_006.nii.gz"),
            "label": str(studies / "labels" / "final" / "BraTS20_Training_006.nii.gz"),
        }
    ]


def test_training_is_the_bundles_own(training_task, fresh_bundle, studies, small_cohort, tmp_path):
    """From the same weights, the same patients in the layout of BraTS give bitwise equal weights."""
    start = str(tmp_path / "start.pt")
    Path(start).write_bytes((fresh_bundle / "models" / "model.pt").read_bytes())
    request = {"model": "segmentation", "device": "cpu", "max_epochs": 1, "val_split": 0.2, "multi_gpu": False}
    training_task(str(fresh_bundle), {})(request, Studies(studies))
    theirs = torch.load(fresh_bundle / "runs" / "train" / "model_last.pt", weights_only=True)

    lists = json.loads((fresh_bundle / "runs" / "train" / "datalist.json").read_text())
    for item in lists["training"] + lists["validation"]:
        name = item["case"]
        item.update(image=[f"{name}/{name}_{s}.nii.gz" for s in ("t1", "t2", "t1ce", "flair")])
        item.update(label=f"{name}/{name}_seg.nii.gz")
    (tmp_path / "lists.json").write_text(json.dumps(lists))
    place = {"dataset_dir": str(small_cohort), "output_dir": str(tmp_path / "ours"), "pretrained_file": start}
    config = json.loads((fresh_bundle / "configs" / "train.json").read_text())
    size = {key: config[key] for key in ("spacing", "patch_size", "roi_size", "num_workers", "warmup_epochs")}
    size["network_def#channels"] = config["network_def"]["channels"]
    size["train#trainer#max_epochs"] = 1
    bundle_run("train.json", **place, **size, datalist_file=str(tmp_path / "lists.json"))
    ours = torch.load(tmp_path / "ours" / "model_last.pt", weights_only=True)
    assert all(torch.equal(theirs[name], value) for name, value in ours.items())


def test_phantoms_weights_stay_where_they_are(training_task, fresh_bundle, studies, small_cohort):
    """Weights trained on studies that their headers mark as phantoms are not published."""
    before = (fresh_bundle / "models" / "model.pt").read_bytes()
    cases = sorted(small_cohort.iterdir())

    class Folders:
        """A folder of four files for each study."""

        def datalist(self):
            return [{"image": str(case), "label": str(case / f"{case.name}_seg.nii.gz")} for case in cases]

    request = {"model": "segmentation", "device": "cpu", "max_epochs": 1, "val_split": 0.2, "multi_gpu": False}
    training_task(str(fresh_bundle), {})(request, Folders())
    run = json.loads((fresh_bundle / "runs" / "train" / "run.json").read_text())
    assert (run["phantoms"], run["cases"]) == (True, {"training": 5, "validation": 1})
    assert (fresh_bundle / "models" / "model.pt").read_bytes() == before
