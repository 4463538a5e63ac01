# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The choice of the weights that are published after a training, and the plain recipe."""

import json
import logging
import os
import shutil
import time

import pytest
from monai.bundle import ConfigParser
from scripts.weights.record import read_weights_record, save_weights, trained_on
from scripts.workflow.publishing import publish
from scripts.workflow.recipe import NOT_OF_THE_RECIPE, changed_recipe
from tiny import Given, settings, small_network
from workflows import CONFIGS


@pytest.fixture
def bundle(tmp_path):
    """A bundle with a finished run of its train.json."""
    root, run = tmp_path / "bundle", tmp_path / "run"
    (root / "configs").mkdir(parents=True)
    run.mkdir()
    (root / "configs" / "train.json").write_text('{"max_epochs": 100, "device": "cpu"}')
    save_weights(small_network().state_dict(), run / "model.pt", {**settings(), "trained_on": trained_on(4, 0)})
    (run / "run.json").write_text('{"phantoms": false}')
    return root, run


def ran(root, run, enabled=True, **changes):
    """The configuration of the run, as plain as the bundle's train.json but for ``changes``."""
    content = json.loads((root / "configs" / "train.json").read_text()) | changes
    return Given({"output_dir": str(run), "bundle_root": str(root), "publish": enabled}, content)


def published(root):
    folder = root / "models"
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())} if folder.exists() else {}


def test_the_best_weights_are_published(bundle):
    root, run = bundle
    publish(ran(root, run))
    assert published(root) == {name: (run / name).read_bytes() for name in ("model.json", "model.pt")}
    assert read_weights_record(root / "models" / "model.pt")["trained_on"]["patients"] == 4
    assert (run / "model.pt").exists()


def test_what_is_published_already_is_not_published_again(bundle):
    root, run = bundle
    publish(ran(root, run))
    before = (root / "models" / "model.pt").stat().st_mtime_ns
    publish(ran(root, run))
    assert list(published(root)) == ["model.json", "model.pt"]
    assert (root / "models" / "model.pt").stat().st_mtime_ns == before


def test_published_weights_without_their_record_get_it(bundle):
    root, run = bundle
    (root / "models").mkdir()
    shutil.copy(run / "model.pt", root / "models")
    publish(ran(root, run))
    assert published(root)["model.json"] == (run / "model.json").read_bytes()


def test_weights_whose_record_is_gone_are_not_published(bundle, caplog):
    root, run = bundle
    (run / "model.json").unlink()
    publish(ran(root, run))
    assert published(root) == {}
    assert "not published, since their record (model.json) is gone." in caplog.text


def test_earlier_published_weights_and_their_export_are_kept_under_their_date(bundle):
    root, run = bundle
    (root / "models").mkdir()
    earlier = root / "models" / "model.pt"
    seconds = time.mktime(time.strptime("2024-03-05 06:07:08", "%Y-%m-%d %H:%M:%S"))
    for content in (b"first", b"second"):
        earlier.write_bytes(content)
        earlier.with_suffix(".json").write_bytes(b"record of " + content)
        os.utime(earlier, (seconds, seconds))
        publish(ran(root, run))
    exported = root / "models" / "model.ts"
    exported.write_bytes(b"export")
    os.utime(exported, (seconds, seconds))
    earlier.unlink()
    publish(ran(root, run))
    assert published(root) == {
        "model.pt": (run / "model.pt").read_bytes(),
        "model.json": (run / "model.json").read_bytes(),
        "model_20240305_060708.pt": b"first",
        "model_20240305_060708.json": b"record of first",
        "model_20240305_060708_2.pt": b"second",
        "model_20240305_060708_2.json": b"record of second",
        "model_20240305_060708.ts": b"export",
    }


# These keys change the weights of a training, or the choice of the best weights by validation.
RECIPE = {
    "datalist_file",
    "validation_fraction",
    "split_seed",
    "folds",
    "fold",
    "pretrained_file",
    "reinitialize",
    "seed",
    "max_epochs",
    "val_interval",
    "batch_size",
    "learning_rate",
    "warmup_epochs",
    "flat_epochs",
    "patch_size",
    "spacing",
    "roi_size",
    "overlap",
    "window_weighting",
    "exclusive",
    "thresholds",
    "edema_last",
    "configuration",
    "load_image",
    "channels_first",
    "to_lps",
    "crop_to_brain",
    "normalize",
    "resample",
    "image_transforms",
    "windows",
    "flips",
    "inferer",
    "activation",
    "label_map",
    "network_def",
    "network",
    "loss",
    "optimizer",
    "lr_scheduler",
    "datalist",
    "reader",
    "weights_settings",
    "train",
    "validate",
    "initialize",
    "run",
    "training",
    "evaluation",
    "inference",
    "imports",
}


def test_every_key_of_a_training_is_of_its_recipe_or_not():
    """A new key must be added to one of the two sets."""
    assert set(json.loads((CONFIGS / "train.json").read_text())) == RECIPE | NOT_OF_THE_RECIPE
    assert not RECIPE & NOT_OF_THE_RECIPE


def test_what_does_not_change_weights_does_not_keep_them_from_being_published():
    plain = CONFIGS / "train.json"
    config = json.loads(plain.read_text())
    outputs = {"sw_batch_size": 4, "save_label_maps": True, "label_map_dir": "maps", "data_license": "CC BY 3.0"}
    assert changed_recipe({**config, **outputs}, plain) == []
    assert changed_recipe({**config, **outputs, "seed": 1, "overlap": 0.25}, plain) == ["overlap", "seed"]


@pytest.mark.parametrize(
    ("config", "changed"),
    [
        ({"max_epochs": 100, "device": "cuda:1", "dataset_dir": "/data"}, []),
        ({"max_epochs": 7, "device": "cpu"}, ["max_epochs"]),
        ({"max_epochs": 100, "spacing": [2, 2, 2]}, ["spacing"]),
        ({}, ["max_epochs"]),
        # --tracking mlflow adds these keys.
        ({"max_epochs": 100, "tracking_uri": "x", "run_name": None, "is_not_rank0": False}, []),
    ],
)
def test_the_recipe_is_all_but_place_and_machine(bundle, config, changed):
    assert changed_recipe(config, bundle[0] / "configs" / "train.json") == changed


def test_what_monai_label_sets_beside_its_own_data_is_no_other_recipe():
    plain = CONFIGS / "train.json"
    config = json.loads(plain.read_text())
    config["train"]["trainer"]["max_epochs"] = 5
    config["train"]["handlers"].insert(0, {"_target_": "CheckpointLoader"})
    assert changed_recipe(config, plain) == ["train"], "with the bundle's own data it is one"
    config["train"]["dataset"]["data"] = config["validate"]["dataset"]["data"] = [{"image": "a.nii.gz"}]
    assert changed_recipe(config, plain) == []
    assert changed_recipe({**config, "spacing": [2, 2, 2]}, plain) == ["spacing"]
    config["train"]["inferer"] = {"_target_": "SlidingWindowInferer"}
    assert changed_recipe(config, plain) == ["train"]


@pytest.mark.parametrize("earlier", [True, False])
@pytest.mark.parametrize("case", ["disabled", "phantoms", "another recipe", "resumed with another"])
def test_nothing_is_published_of_a_variation_or_phantoms(bundle, case, earlier, caplog):
    root, run = bundle
    if earlier:
        (root / "models").mkdir()
        (root / "models" / "model.pt").write_bytes(b"earlier")
    if case == "phantoms":
        (run / "run.json").write_text('{"phantoms": true}')
    if case == "resumed with another":
        (run / "run.json").write_text('{"phantoms": false, "recipe_changed": ["learning_rate"]}')
    changes = {"max_epochs": 1} if case == "another recipe" else {}
    with caplog.at_level(logging.INFO):
        publish(ran(root, run, case != "disabled", **changes))
    assert published(root) == ({"model.pt": b"earlier"} if earlier else {})
    (message,) = [m for m in caplog.messages if "not published" in m]
    assert str(run / "model.pt") in message
    reason = {
        "disabled": "not published, by --publish False.",
        "phantoms": "synthetic phantoms",
        "another recipe": "of the plain recipe (max_epochs)",
        "resumed with another": "of the plain recipe (learning_rate)",
    }
    assert reason[case] in message


OVERLAYS = sorted(path.name for path in CONFIGS.iterdir() if path.suffix == ".yaml" or "multi_gpu" in path.name)


@pytest.mark.parametrize("overlay", [name for name in OVERLAYS if not name.startswith("inference")])
def test_no_overlay_publishes_a_variation(overlay):
    names = ["train.json", *(["train_starter.yaml"] if overlay == "train_starter_patients.yaml" else []), overlay]
    config = ConfigParser.load_config_files([str(CONFIGS / name) for name in names])
    changed = changed_recipe(config, CONFIGS / "train.json")
    # This one changes how fast a training runs and nothing else.
    assert bool(changed) == (overlay != "train_fast.yaml"), changed
