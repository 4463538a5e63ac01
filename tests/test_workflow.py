# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""What surrounds a run: refusals before it, the record of it, and which weights are published after it."""

import json
import logging
import os
import re
import time

import nibabel as nib
import numpy as np
import pytest
import torch

from scripts.data.datalist import labeled_items, read_datalist, split_datalist, unlabeled_items
from scripts.data.phantom import PHANTOM_DESCRIPTION
from scripts.errors import InputError
from scripts.networks import PriorAttentionNet
from scripts.workflow import (
    check_weights,
    find_model_file,
    flag,
    prepare_evaluation,
    prepare_training,
    publish,
    weights_difference,
)

ARGUMENTS = {"spatial_dims": 3, "channels": [4, 4, 4, 4, 8]}


def small_network(**changes):
    torch.manual_seed(0)
    return PriorAttentionNet(**{**ARGUMENTS, **changes})


def make_cases(root, count=5, label=True, description=""):
    """Cases of 4^3 voxels."""
    for index in range(1, count + 1):
        name = f"BraTS20_Training_{index:03}"
        (root / name).mkdir(parents=True)
        for suffix in ("t1", "t1ce", "t2", "flair", *(["seg"] if label else [])):
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


# Switches.


@pytest.mark.parametrize(
    ("value", "wanted"),
    [(True, True), (False, False), ("true", True), ("false", False), ("True", True), ("FALSE", False)],
)
def test_switches_may_come_as_text(value, wanted):
    assert flag(value) is wanted


@pytest.mark.parametrize("value", ["yes", "", "1", 1, 0, None])
def test_other_text_is_no_switch(value):
    with pytest.raises(InputError, match="a switch is true or false") as caught:
        flag(value)
    assert str(value) in str(caught.value)


# Weights.


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_damaged_record_beside_the_weights_is_named(model, content):
    (model.parent / "run.json").write_text(content)
    with pytest.raises(InputError, match=r"run\.json: .* restore or remove it"):
        check_weights(small_network(), str(model))


def test_fitting_weights_pass(model):
    assert check_weights(small_network(), str(model)) is False
    assert weights_difference(small_network(), small_network().state_dict()) == ""


@pytest.mark.parametrize(
    ("content", "phantoms"), [({"phantoms": True}, True), ({"phantoms": False}, False), ({}, False)]
)
def test_the_record_beside_weights_says_whether_they_come_from_phantoms(model, content, phantoms):
    (model.parent / "run.json").write_text(json.dumps(content))
    assert check_weights(small_network(), str(model)) is phantoms


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


def test_the_runs_own_weights_come_before_the_bundles(tmp_path):
    bundle, run = tmp_path / "bundle", tmp_path / "run"
    assert find_model_file(str(run), str(bundle)) == str(bundle / "models" / "model.pt")
    run.mkdir()
    (run / "model.pt").touch()
    assert find_model_file(str(run), str(bundle)) == str(run / "model.pt")


# Before a training.


def test_a_training_leaves_its_split_and_record(tmp_path, data):
    split, out = split_datalist(data, seed=4), tmp_path / "out"
    prepare_training(split, str(data), str(out))
    lists = read_datalist(out / "datalist.json", data)
    assert lists == {name: split[name] for name in ("training", "validation")}
    assert record(out)["cases"] == {"training": 4, "validation": 1}
    assert record(out)["phantoms"] is False
    assert record(out)["versions"]["torch"] == torch.__version__
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d", record(out)["started"])
    # Nothing but the split and the record, as long as no weights are there, keeps a second start from beginning.
    prepare_training(split, str(data), str(out))


def test_a_training_on_phantoms_is_recorded_as_such(tmp_path):
    data = make_cases(tmp_path / "data", 2, description=PHANTOM_DESCRIPTION)
    prepare_training(split_datalist(data), str(data), str(tmp_path / "out"))
    assert record(tmp_path / "out")["phantoms"] is True


@pytest.mark.parametrize("validation", [True, False])
def test_a_split_without_validation_is_refused_where_one_is_wanted(tmp_path, validation):
    data = make_cases(tmp_path / "data", 1)
    split, out = split_datalist(data), tmp_path / "out"
    if validation:
        with pytest.raises(InputError, match=re.escape(f"{data}: no case for validation; at least one")):
            prepare_training(split, str(data), str(out), validation=True)
        assert not out.exists()
    else:
        prepare_training(split, str(data), str(out), validation=False)
        assert record(out)["cases"] == {"training": 1, "validation": 0}


def test_a_split_without_training_names_the_datalist(tmp_path, data):
    items = labeled_items(data)
    split = {"training": [], "validation": items, "all": items}
    with pytest.raises(InputError, match=re.escape("my_list.json: no case for training; at least one")):
        prepare_training(split, str(data), str(tmp_path / "out"), "my_list.json")


def test_a_folder_without_cases_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(InputError, match="no such folder; set --dataset_dir"):
        prepare_training(split_datalist(tmp_path / "no"), str(tmp_path / "no"), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["model.pt", "model_last.pt", "trainer_state.pt"])
@pytest.mark.parametrize("overwrite", [False, "false"])
def test_the_folder_of_an_earlier_training_is_refused(tmp_path, data, name, overwrite):
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text("earlier")
    with pytest.raises(InputError) as caught:
        prepare_training(split_datalist(data), str(data), str(out), overwrite=overwrite)
    assert str(caught.value) == (
        f"{out / name}: exists from an earlier training; choose another --output_dir, or add --overwrite true."
    )
    assert [p.name for p in out.iterdir()] == [name]


@pytest.mark.parametrize("overwrite", [True, "true"])
def test_overwriting_is_by_request(tmp_path, data, overwrite):
    out = tmp_path / "out"
    out.mkdir()
    (out / "model.pt").write_text("earlier")
    prepare_training(split_datalist(data), str(data), str(out), overwrite=overwrite)
    assert sorted(p.name for p in out.iterdir()) == ["datalist.json", "model.pt", "run.json"]


def test_an_output_that_is_a_file_is_refused(tmp_path, data):
    (tmp_path / "out").write_text("notes")
    with pytest.raises(InputError, match=re.escape(f"{tmp_path / 'out'}: not a folder; choose another --output_dir")):
        prepare_training(split_datalist(data), str(data), str(tmp_path / "out"), overwrite=True)
    assert (tmp_path / "out").read_text() == "notes"


# Before an evaluation or inference.


@pytest.mark.parametrize("label", [True, False])
def test_an_evaluation_leaves_its_record(tmp_path, model, label, caplog):
    data = make_cases(tmp_path / "data", 2, label)
    items = labeled_items(data) if label else unlabeled_items(data)
    with caplog.at_level(logging.INFO):
        prepare_evaluation(items, str(data), small_network(), str(model), str(tmp_path / "out"))
    found = record(tmp_path / "out")
    assert (found["cases"], found["model_file"], found["phantoms"]) == (2, str(model), False)
    assert f"{data}: {'labelled cases' if label else 'cases'} 2, checked" in caplog.messages
    assert "phantom" not in caplog.text


def test_weights_from_phantoms_are_warned_of(tmp_path, data, model, caplog):
    (model.parent / "run.json").write_text('{"phantoms": true}')
    prepare_evaluation(labeled_items(data), str(data), small_network(), str(model), str(tmp_path / "out"))
    assert f"{model} was trained on synthetic phantoms: its results say nothing about patients." in caplog.messages


def test_absent_weights_are_refused_before_the_cases_are_read(tmp_path):
    with pytest.raises(InputError, match="train first"):
        prepare_evaluation([], str(tmp_path), small_network(), str(tmp_path / "model.pt"), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_results_of_the_same_cases_are_refused_and_of_others_are_not(tmp_path, data, model):
    out = tmp_path / "out"
    out.mkdir()
    (out / "BraTS20_Training_003.nii.gz").write_text("earlier")
    call = (str(data), small_network(), str(model), str(out))
    with pytest.raises(InputError) as caught:
        prepare_evaluation(labeled_items(data), *call)
    assert str(caught.value) == (
        f"{out / 'BraTS20_Training_003.nii.gz'}: exists from an earlier segmentation; choose another --output_dir, "
        "or add --overwrite true."
    )
    assert not (out / "run.json").exists()
    prepare_evaluation(labeled_items(data)[:2], *call)
    prepare_evaluation(labeled_items(data), *call, overwrite="true")
    assert (out / "BraTS20_Training_003.nii.gz").read_text() == "earlier"


# After a training.


@pytest.fixture
def bundle(tmp_path):
    """A bundle whose inference.json has the small network, and a finished run of it."""
    root, run = tmp_path / "bundle", tmp_path / "run"
    (root / "configs").mkdir(parents=True)
    run.mkdir()
    definition = {"_target_": "scripts.networks.PriorAttentionNet", **ARGUMENTS}
    (root / "configs" / "inference.json").write_text(json.dumps({"network_def": definition}))
    torch.save(small_network().state_dict(), run / "model.pt")
    (run / "run.json").write_text('{"phantoms": false}')
    return root, run


def published(root):
    folder = root / "models"
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())} if folder.exists() else {}


@pytest.mark.parametrize("enabled", [True, "true"])
def test_the_best_weights_are_published(bundle, enabled):
    root, run = bundle
    publish(str(run), str(root), enabled)
    assert published(root) == {"model.pt": (run / "model.pt").read_bytes()}
    assert (run / "model.pt").exists()


def test_earlier_published_weights_are_kept_under_their_date(bundle):
    root, run = bundle
    (root / "models").mkdir()
    earlier = root / "models" / "model.pt"
    seconds = time.mktime(time.strptime("2024-03-05 06:07:08", "%Y-%m-%d %H:%M:%S"))
    for content in (b"first", b"second"):
        earlier.write_bytes(content)
        os.utime(earlier, (seconds, seconds))
        publish(str(run), str(root))
    assert published(root) == {
        "model.pt": (run / "model.pt").read_bytes(),
        "model_20240305_060708.pt": b"first",
        "model_20240305_060708_2.pt": b"second",
    }


@pytest.mark.parametrize("earlier", [True, False])
@pytest.mark.parametrize("case", ["disabled", "disabled as text", "phantoms", "another network"])
def test_nothing_is_published_of_a_variation_phantoms_or_another_network(bundle, case, earlier, caplog):
    root, run = bundle
    if earlier:
        (root / "models").mkdir()
        (root / "models" / "model.pt").write_bytes(b"earlier")
    if case == "phantoms":
        (run / "run.json").write_text('{"phantoms": true}')
    if case == "another network":
        torch.save(small_network(head="parallel").state_dict(), run / "model.pt")
    with caplog.at_level(logging.INFO):
        publish(str(run), str(root), {"disabled": False, "disabled as text": "false"}.get(case, True))
    assert published(root) == ({"model.pt": b"earlier"} if earlier else {})
    (message,) = [m for m in caplog.messages if "not published" in m]
    assert str(run / "model.pt") in message
    reason = {"phantoms": "synthetic phantoms", "another network": "inference.json has another network (head."}
    assert reason.get(case, "a variation of the plain recipe") in message
