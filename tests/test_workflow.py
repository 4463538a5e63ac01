# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""What surrounds a run: refusals before it, the record of it, and which weights are published after it."""

import importlib.util
import json
import logging
import os
import re
import shutil
import time

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import Compose
from scripts.data.datalist import labeled_items, read_datalist, split_datalist, unlabeled_items
from scripts.data.phantom import PHANTOM_DESCRIPTION
from scripts.errors import InputError
from scripts.networks import PriorAttentionNet
from scripts.weights import check_weights, find_model_file, weights_difference
from scripts.weights_record import read_weights_record, save_weights, trained_on, weights_settings
from scripts.workflow import (
    NOT_OF_THE_RECIPE,
    changed_recipe,
    check_settings,
    check_window,
    claim_output,
    prepare_evaluation,
    prepare_training,
    publish,
    refuse_replacing,
    refuse_used,
)
from workflows import CONFIGS

ARGUMENTS = {"spatial_dims": 3, "channels": [4, 4, 4, 4, 8]}


def small_network(**changes):
    torch.manual_seed(0)
    return PriorAttentionNet(**{**ARGUMENTS, **changes})


def make_cases(root, count=5, label=True, description=""):
    """Cases of 4^3 voxels."""
    for index in range(1, count + 1):
        name = f"BraTS20_Training_{index:03}"
        (root / name).mkdir(parents=True)
        for suffix in ("t1", "t2", "t1ce", "flair", *(["seg"] if label else [])):
            image = nib.Nifti1Image(np.ones((4, 4, 4), np.int16), np.eye(4))
            image.header["descrip"] = description.encode()
            nib.save(image, root / name / f"{name}_{suffix}.nii.gz")
    return root


@pytest.fixture
def data(tmp_path):
    return make_cases(tmp_path / "data")


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "models" / "model.pt"
    path.parent.mkdir()
    torch.save(small_network().state_dict(), path)
    return path


def record(folder):
    return json.loads((folder / "run.json").read_text())


WINDOW = (32, 32, 32)


def settings() -> dict:
    """What stands in the record of the small network's weights, outside a running configuration."""
    thresholds = {"min_component_voxels": 10, "min_et_voxels": 300, "et_per_component": False}
    return weights_settings(small_network(), [1, 1, 1], False, Compose([]), thresholds)


def prepare(datalist, dataset_dir, output_dir, **changes):
    network = small_network()
    arguments = {"network": network, "patch_size": WINDOW, "roi_size": WINDOW, "saved_et_label": 4, **changes}
    arguments.setdefault("optimizer", torch.optim.Adam(network.parameters()))
    lists = (datalist["training"], datalist["validation"])
    prepare_training(*lists, dataset_dir=str(dataset_dir), output_dir=str(output_dir), **arguments)


def evaluate(items, dataset_dir, model, output_dir, **changes):
    arguments = {
        "network": small_network(),
        "roi_size": WINDOW,
        "saved_et_label": 4,
        "model_file": str(model),
        **changes,
    }
    prepare_evaluation(items, dataset_dir=str(dataset_dir), output_dir=str(output_dir), **arguments)


# Settings.


@pytest.mark.parametrize("value", ["true", "false"])
def test_a_switch_in_lower_case_is_refused_wherever_it_stands(value):
    for config, name in (({"amp": value}, "amp"), ({"a": {"b": [1, {"c": value}]}}, "a#b#1#c")):
        with pytest.raises(InputError) as caught:
            check_settings(config)
        assert str(caught.value) == f"--{name} {value}: write {value.capitalize()}, with a capital."


def test_switches_as_they_should_be_pass(caplog):
    check_settings({"run": [], "a": True, "b": "@a", "initialize": ["@b"], "imports": ["true or false"]})
    assert caplog.messages == []


def test_a_setting_that_nothing_reads_is_warned_of_with_its_neighbour(caplog):
    check_settings({"min_et_voxels": 300, "min_et_voxel": 0, "run": ["$print(@min_et_voxels)"]})
    assert caplog.messages == ["Nothing reads the setting min_et_voxel; did you mean min_et_voxels?"]


@pytest.mark.parametrize(("device", "count"), [("cuda:0", 0), ("cuda", 0), ("cuda:2", 2)])
def test_a_device_that_is_not_there_is_refused(device, count, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    with pytest.raises(InputError) as caught:
        check_settings({"device": device})
    assert str(caught.value) == (
        f"--device {device}: this machine has {count} GPUs that torch can use; name one, or cpu."
    )


@pytest.mark.parametrize("device", ["gpu", 0, 1, "0", "cuda:", "CPU", True, 1.5, ["cpu"], ""])
def test_what_is_no_device_is_refused(device):
    with pytest.raises(InputError) as caught:
        check_settings({"device": device})
    assert str(caught.value) == f"--device {device}: no such device; write cpu, cuda, or cuda:<number>."


@pytest.mark.parametrize("device", ["cpu", "cuda:1", torch.device("cuda:1"), "$torch.device('cuda:7')", "@gpu", None])
def test_a_device_that_may_be_there_passes(device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_settings({"device": device})


@pytest.mark.parametrize("target", ["$torch.optim.AdamW", "@network_def#_target_", "%train.json::loss", ".", "Compose"])
def test_a_target_that_only_evaluation_can_tell_passes(target):
    check_settings({"optimizer": {"_target_": target}})


def test_an_unknown_precision_is_refused():
    with pytest.raises(InputError, match=r"--amp_dtype bf16: choose one of bfloat16, float16\."):
        check_settings({"amp_dtype": "bf16"})


@pytest.mark.parametrize("precision", ["bfloat16", "float16", "$'float16'", "@precision", {"_target_": "str"}])
def test_a_precision_that_may_be_one_passes(precision):
    check_settings({"amp_dtype": precision})


def test_settings_of_another_workflow_are_no_mistake(caplog):
    """An overlay may leave a setting of the main configurations without a reader."""
    check_settings({"bundle_root": ".", "publish": True, "overlap": 0.5, "run": []})
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("target", "package"), [("MLFlowHandler", "mlflow"), ("no_such_package.Engine", "no_such_package")]
)
def test_a_part_whose_package_is_absent_is_refused(target, package, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "mlflow" else found(name))
    with pytest.raises(InputError) as caught:
        check_settings({"train": {"handlers": [{"_target_": "scripts.losses"}, {"_target_": target}]}})
    assert str(caught.value) == (
        f"train#handlers#1#_target_ {target}: needs the package {package}, which is absent; pip install {package}."
    )


@pytest.mark.parametrize("size", [(32, 32, 16), (16, 48, 128)])
def test_windows_the_network_takes_pass(size):
    check_window(small_network(), "patch_size", size)
    small_network().eval()(torch.zeros(1, 4, *size))


@pytest.mark.parametrize("size", [(40, 32, 32), (16, 16, 16), (32, 0, 32), (32, -16, 32)])
def test_windows_the_network_cannot_take_are_refused(size):
    with pytest.raises(InputError) as caught:
        check_window(small_network(), "patch_size", size)
    assert str(caught.value) == (
        f"--patch_size {list(size)}: each must be a multiple of 16, and one of them at least 32."
    )


# The folder of results.


def test_a_new_folder_and_one_with_other_things_may_be_used(tmp_path):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "notes.txt").write_text("mine")
    for name in ("new", "used"):
        refuse_used(str(tmp_path / name), str(tmp_path / "data"), overwrite=False)
        claim_output(str(tmp_path / name))
    assert (tmp_path / "used" / "notes.txt").read_text() == "mine"


def test_the_folder_of_an_earlier_run_is_refused_or_kept_under_its_date(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "run.json").write_text("{}")
    (folder / "model.pt").write_text("earlier")
    with pytest.raises(InputError, match=r"holds an earlier run; choose another --output_dir, or add --overwrite True"):
        refuse_used(str(folder), str(tmp_path / "data"), overwrite=False)
    assert (folder / "model.pt").read_text() == "earlier"
    refuse_used(str(folder), str(tmp_path / "data"), overwrite=True)
    claim_output(str(folder))
    (kept,) = tmp_path.glob("out_*")
    assert (kept / "model.pt").read_text() == "earlier"
    assert not folder.exists()


@pytest.mark.parametrize("below", [".", "cohort", "a/b"])
@pytest.mark.parametrize("overwrite", [True, False])
def test_results_never_go_where_the_data_are(tmp_path, below, overwrite):
    data = tmp_path / "out" / below
    data.mkdir(parents=True)
    with pytest.raises(InputError, match="holds the data"):
        refuse_used(str(tmp_path / "out"), str(data), overwrite)
    assert data.is_dir()


# Results never replace what a run reads.


def decathlon(tmp_path):
    """Task01 with one case, and its items."""
    root = tmp_path / "Task01"
    for folder, shape in (("imagesTs", (4, 4, 4, 4)), ("imagesTr", (4, 4, 4, 4)), ("labelsTr", (4, 4, 4))):
        (root / folder).mkdir(parents=True)
        nib.save(nib.Nifti1Image(np.ones(shape, np.int16), np.eye(4)), root / folder / f"case_{folder[-1]}.nii.gz")
    return root


def contents(root):
    return {path: path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("folder", ["imagesTs", "imagesTr", "labelsTr"])
def test_a_label_map_never_replaces_an_image_or_a_label(tmp_path, model, folder):
    root = decathlon(tmp_path)
    before = contents(root)
    labeled = folder != "imagesTs"
    items = labeled_items(root) if labeled else unlabeled_items(root / folder)
    assert len(items) == 1
    out, case = root / folder, items[0]["case"]
    with pytest.raises(InputError) as caught:
        evaluate(items, root, model, out, map_dir=str(out), selection="all" if labeled else None)
    assert str(caught.value) == (
        f"{out / case}.nii.gz: would be written over {out / case}.nii.gz, an input; choose another --output_dir."
    )
    assert contents(root) == before
    # Where no label maps are saved there, nothing is in the way.
    refuse_replacing(items, None, str(out))


@pytest.mark.parametrize("name", ["p_prob_core", "p_prob_enhance", "p_unc_whole"])
def test_a_map_of_a_region_never_replaces_an_image(tmp_path, name):
    path = tmp_path / f"{name}.nii.gz"
    path.touch()
    items = [{"case": "p", "image": [str(path), "b", "c", "d"]}]
    with pytest.raises(InputError, match=f"{name}.nii.gz: would be written over"):
        refuse_replacing(items, str(tmp_path), str(tmp_path))
    # A training that goes on reads and writes as well.
    with pytest.raises(InputError, match=f"{name}.nii.gz: would be written over"):
        refuse_replacing(items, str(tmp_path), str(tmp_path / "out"), resume=True)
    refuse_replacing([{**items[0], "case": "q"}], str(tmp_path), str(tmp_path))


@pytest.mark.parametrize("link", ["folder", "image", "result"])
def test_links_do_not_hide_what_would_be_replaced(tmp_path, link):
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    (data / "p.nii.gz").touch()
    image = data / "p.nii.gz"
    if link == "folder":
        out.symlink_to(data)
    elif link == "image":
        out.mkdir()
        image.rename(out / "p.nii.gz")
        image.symlink_to(out / "p.nii.gz")
    else:
        out.mkdir()
        (out / "p.nii.gz").symlink_to(image)
    with pytest.raises(InputError, match="would be written over"):
        refuse_replacing([{"case": "p", "image": str(image)}], str(out), str(out))


def test_an_earlier_runs_folder_with_inputs_in_it_is_not_moved_away(tmp_path):
    """By --overwrite True it would be, and the inputs with it."""
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "scan.nii.gz").touch()
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "elsewhere" / "scan.nii.gz"
    link.symlink_to(tmp_path / "scan.nii.gz")
    for file in (tmp_path / "scan.nii.gz", link):
        with pytest.raises(InputError) as caught:
            refuse_replacing([{"case": "p", "image": str(file)}], None, str(tmp_path))
        assert str(caught.value) == f"{tmp_path}: holds {file}, which the run reads; choose another --output_dir."
        # Going on moves nothing.
        refuse_replacing([{"case": "p", "image": str(file)}], None, str(tmp_path), resume=True)


def test_a_trainings_split_never_replaces_the_datalist_given(tmp_path, data):
    split, out = split_datalist(data), tmp_path / "out"
    out.mkdir()
    (out / "datalist.json").write_text("mine")
    with pytest.raises(InputError, match=r"datalist\.json: would be written over .*an input"):
        prepare(split, data, out, datalist_file=str(out / "datalist.json"))
    assert (out / "datalist.json").read_text() == "mine"
    prepare(split, data, tmp_path / "other", datalist_file=str(out / "datalist.json"))


# Weights.


def test_fitting_weights_pass(model):
    assert check_weights(small_network(), str(model)) is None
    assert weights_difference(small_network(), small_network().state_dict()) == ""


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"channels": [4, 4, 4, 4, 12]}, "encoder.4.body.0.conv.weight is [8, 4, 3, 3, 3], not [12, 4, 3, 3, 3]"),
        ({"head": "parallel"}, "no head.reduce2.conv.weight"),
        ({"upsample": "deconv"}, "no decoder.0.upsample.weight"),
        ({"prior_attention": False}, "unknown head.reduce4.conv.weight"),
        ({"norm": "batch"}, "no encoder.0.body.0.norm.weight"),
        ({"spatial_dims": 2}, "encoder.0.body.0.conv.weight is [4, 4, 3, 3, 3], not [4, 4, 3, 3]"),
    ],
)
def test_weights_of_another_network_are_refused_with_a_tensor(model, changes, said):
    with pytest.raises(InputError) as caught:
        check_weights(small_network(**changes), str(model))
    message = str(caught.value)
    assert message.startswith(f"{model}: weights of another network (") and said in message
    assert "use the configuration it was trained with" in message and "\n" not in message


@pytest.mark.parametrize(
    "state", [[torch.zeros(1)], torch.zeros(1), {}, {"encoder.0.body.0.conv.weight": 3}, {"network": {}, "epoch": 3}]
)
def test_what_is_no_state_dict_is_weights_of_another_network(tmp_path, state):
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(InputError, match=re.escape(f"{tmp_path / 'model.pt'}: weights of another network (")):
        check_weights(small_network(), str(tmp_path / "model.pt"))


def test_absent_weights_are_refused_with_the_ways_to_get_some(tmp_path):
    with pytest.raises(InputError) as caught:
        check_weights(small_network(), str(tmp_path / "model.pt"))
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'model.pt'}: no such file; ")
    assert "train first" in message and "scripts.import_checkpoint" in message


def test_unreadable_weights_are_refused(model):
    os.truncate(model, model.stat().st_size // 2)
    with pytest.raises(InputError, match=re.escape(f"{model}: not a readable file of tensors")):
        check_weights(small_network(), str(model))


def test_the_runs_own_weights_come_before_the_bundles_and_the_log_says_which(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    bundle, run = tmp_path / "bundle", tmp_path / "run"
    assert find_model_file(str(run), str(bundle)) == str(bundle / "models" / "model.pt")
    run.mkdir()
    (run / "model.pt").touch()
    assert find_model_file(str(run), str(bundle)) == str(run / "model.pt")
    assert caplog.messages == [f"Weights: {bundle / 'models' / 'model.pt'}", f"Weights: {run / 'model.pt'}"]


# Before a training.


def test_a_training_leaves_its_split_and_record(tmp_path, data):
    split, out = split_datalist(data, seed=4), tmp_path / "out"
    prepare(split, data, out)
    lists = read_datalist(out / "datalist.json", data)
    assert lists == {name: split[name] for name in ("training", "validation")}
    assert record(out)["cases"] == {"training": 4, "validation": 1}
    assert record(out)["phantoms"] is False
    assert record(out)["versions"]["torch"] == torch.__version__
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d", record(out)["started"])


def test_a_training_on_phantoms_is_recorded_as_such(tmp_path):
    data = make_cases(tmp_path / "data", 2, description=PHANTOM_DESCRIPTION)
    prepare(split_datalist(data), data, tmp_path / "out")
    assert record(tmp_path / "out")["phantoms"] is True


def test_a_split_without_validation_is_refused(tmp_path):
    data = make_cases(tmp_path / "data", 1)
    with pytest.raises(InputError, match=re.escape(f"{data}: no case for validation; at least one")):
        prepare(split_datalist(data), data, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_split_without_training_names_the_datalist(tmp_path, data):
    items = labeled_items(data)
    split = {"training": [], "validation": items, "all": items}
    with pytest.raises(InputError, match=re.escape("my_list.json: no case for training; at least one")):
        prepare(split, data, tmp_path / "out", datalist_file="my_list.json")


def test_a_folder_without_cases_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(InputError, match="no such folder; set --dataset_dir"):
        prepare(split_datalist(tmp_path / "no"), tmp_path / "no", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_output_that_is_a_file_is_refused(tmp_path, data):
    (tmp_path / "out").write_text("notes")
    with pytest.raises(InputError, match=re.escape(f"{tmp_path / 'out'}: not a folder; choose another --output_dir")):
        prepare(split_datalist(data), data, tmp_path / "out", overwrite=True)
    assert (tmp_path / "out").read_text() == "notes"


# Before an evaluation or inference.


@pytest.mark.parametrize("label", [True, False])
def test_an_evaluation_leaves_its_record(tmp_path, model, label, caplog):
    data = make_cases(tmp_path / "data", 2, label)
    items = labeled_items(data) if label else unlabeled_items(data)
    with caplog.at_level(logging.INFO):
        evaluate(items, data, model, tmp_path / "out", selection="all" if label else None)
    found = record(tmp_path / "out")
    assert (found["cases"], found["model_file"], found["phantoms"]) == (2, str(model), False)
    assert f"{data}: {'labelled cases' if label else 'cases'} 2, checked" in caplog.messages
    assert "phantom" not in caplog.text


def test_results_never_go_where_their_weights_are(tmp_path, data, model):
    """An earlier run's folder is moved away, and they would go with it."""
    (model.parent / "run.json").write_text('{"bundle_version": "0.3.0"}')
    with pytest.raises(InputError, match=r"holds the weights \(.*model\.pt\); choose another --output_dir"):
        evaluate(labeled_items(data), data, model, model.parent, overwrite=True)
    assert model.is_file()


def test_weights_from_phantoms_are_warned_of(tmp_path, data, model, caplog):
    save_weights(small_network().state_dict(), model, {**settings(), "trained_on": trained_on(0, 3)})
    evaluate(labeled_items(data), data, model, tmp_path / "out")
    assert f"{model} was trained on synthetic phantoms: its results say nothing about patients." in caplog.messages


def test_absent_weights_are_refused_before_the_cases_are_read(tmp_path):
    with pytest.raises(InputError, match="train first"):
        evaluate([], tmp_path, tmp_path / "model.pt", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_empty_side_of_the_split_names_the_other(tmp_path, data, model):
    with pytest.raises(InputError, match=r"no case for validation; choose --cases all\.$"):
        evaluate([], data, model, tmp_path / "out", selection="validation")


# After a training.


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


def published(root):
    folder = root / "models"
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())} if folder.exists() else {}


def test_the_best_weights_are_published(bundle):
    root, run = bundle
    publish(str(run), str(root))
    assert published(root) == {name: (run / name).read_bytes() for name in ("model.json", "model.pt")}
    assert read_weights_record(root / "models" / "model.pt")["trained_on"]["patients"] == 4
    assert (run / "model.pt").exists()


def test_what_is_published_already_is_not_published_again(bundle):
    root, run = bundle
    publish(str(run), str(root))
    before = (root / "models" / "model.pt").stat().st_mtime_ns
    publish(str(run), str(root))
    assert list(published(root)) == ["model.json", "model.pt"]
    assert (root / "models" / "model.pt").stat().st_mtime_ns == before


def test_published_weights_without_their_record_get_it(bundle):
    root, run = bundle
    (root / "models").mkdir()
    shutil.copy(run / "model.pt", root / "models")
    publish(str(run), str(root))
    assert published(root)["model.json"] == (run / "model.json").read_bytes()


def test_weights_whose_record_is_gone_are_not_published(bundle, caplog):
    root, run = bundle
    (run / "model.json").unlink()
    publish(str(run), str(root))
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
        publish(str(run), str(root))
    exported = root / "models" / "model.ts"
    exported.write_bytes(b"export")
    os.utime(exported, (seconds, seconds))
    earlier.unlink()
    publish(str(run), str(root))
    assert published(root) == {
        "model.pt": (run / "model.pt").read_bytes(),
        "model.json": (run / "model.json").read_bytes(),
        "model_20240305_060708.pt": b"first",
        "model_20240305_060708.json": b"record of first",
        "model_20240305_060708_2.pt": b"second",
        "model_20240305_060708_2.json": b"record of second",
        "model_20240305_060708.ts": b"export",
    }


# What changes a training's weights, or which of them are the best by validation.
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
    "min_component_voxels",
    "min_et_voxels",
    "et_per_component",
    "oedema_last",
    "pred_keys",
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
    "imports",
}


def test_every_key_of_a_training_is_of_its_recipe_or_not():
    """A new key must be put on one side or the other."""
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
        # What --tracking mlflow adds.
        ({"max_epochs": 100, "tracking_uri": "x", "run_name": None, "is_not_rank0": False}, []),
        (None, []),
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
def test_nothing_is_published_of_a_variation_or_phantoms(bundle, case, earlier, caplog, monkeypatch):
    root, run = bundle
    if earlier:
        (root / "models").mkdir()
        (root / "models" / "model.pt").write_bytes(b"earlier")
    if case == "phantoms":
        (run / "run.json").write_text('{"phantoms": true}')
    if case == "resumed with another":
        (run / "run.json").write_text('{"phantoms": false, "recipe_changed": ["learning_rate"]}')
    if case == "another recipe":
        monkeypatch.setattr("scripts.workflow.running_config", lambda: {"max_epochs": 1})
    with caplog.at_level(logging.INFO):
        publish(str(run), str(root), case != "disabled")
    assert published(root) == ({"model.pt": b"earlier"} if earlier else {})
    (message,) = [m for m in caplog.messages if "not published" in m]
    assert str(run / "model.pt") in message
    reason = {
        "phantoms": "synthetic phantoms",
        "another recipe": "of the plain recipe (max_epochs)",
        "resumed with another": "of the plain recipe (learning_rate)",
    }
    assert reason.get(case, "a variation of the plain recipe.") in message
