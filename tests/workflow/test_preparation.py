# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The preparation of a run: its refusals, and the record that it writes."""

import logging
import re
from hashlib import sha256

import pytest
import torch
from scripts.data.datalist import labeled_items, split_datalist, unlabeled_items
from scripts.data.datalist_file import read_datalist
from scripts.data.images import PHANTOM_DESCRIPTION
from scripts.utils.errors import InputError
from scripts.weights.record import UNKNOWN, save_weights, trained_on
from scripts.workflow import preparation
from tiny import Given, evaluate, make_cases, prepare, record, settings, small_network


def test_a_workflow_keeps_freed_memory_and_joins_the_others_before_it_makes_anything_large(monkeypatch):
    made = []
    for name in ("check_settings", "keep_freed_memory", "start"):
        monkeypatch.setattr(preparation, name, lambda *values, name=name: made.append((name, *values)))
    given = Given({"device": "cpu", "world_size": 2})
    monkeypatch.setattr(given, "get", lambda name, default=None: made.append(name) or given.values.get(name, default))
    with pytest.raises(TypeError):
        preparation.prepare(given)
    assert made[0] == ("check_settings", given)
    assert made.index("network") > made.index(("start", "cpu", 2)) > made.index(("keep_freed_memory", "cpu"))


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


@pytest.mark.parametrize("content", [trained_on(9, 5), UNKNOWN, None])
def test_a_training_adds_to_what_its_start_has_seen(tmp_path, data, model, content):
    if content:
        save_weights(small_network().state_dict(), model, {**settings(), "trained_on": content})
    prepare(split_datalist(data), data, tmp_path / "out", pretrained_file=str(model))
    made = record(tmp_path / "out")
    seen = {"patients": 9, "phantoms": 5} if content == trained_on(9, 5) else {"patients": 4, "phantoms": None}
    assert made["trained_on"] == {**seen, "origin": sha256(model.read_bytes()).hexdigest()}
    # Weights that know phantoms are not published.
    assert made["phantoms"] is (content == trained_on(9, 5))


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
    with pytest.raises(InputError, match="no such folder; give a folder"):
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
        evaluate(items, data, model, tmp_path / "out", **({} if label else {"all_cases": items}))
    found = record(tmp_path / "out")
    assert (found["cases"], found["model_file"], found["phantoms"]) == (2, str(model), False)
    assert found["weights"] == [sha256(model.read_bytes()).hexdigest()]
    assert f"{data}: {'labeled cases' if label else 'cases'} 2, checked" in caplog.messages
    assert "phantom" not in caplog.text


@pytest.mark.parametrize("all_cases", [True, False])
def test_the_record_says_where_the_weights_are_wherever_it_is_read(tmp_path, data, model, all_cases, monkeypatch):
    monkeypatch.chdir(model.parent)
    items = labeled_items(data)
    evaluate(items, data, model.name, tmp_path / "out", **({"all_cases": items} if all_cases else {}))
    assert record(tmp_path / "out")["model_file"] == str(model)


def test_results_never_go_where_their_weights_are(tmp_path, data, model):
    """The folder of an earlier run is moved away, and the weights in it would be moved as well."""
    (model.parent / "run.json").write_text('{"bundle_version": "0.3.0"}')
    with pytest.raises(InputError, match=r"holds the weights \(.*model\.pt\); choose another --output_dir"):
        evaluate(labeled_items(data), data, model, model.parent, overwrite=True)
    assert model.is_file()


def test_weights_from_phantoms_are_warned_of(tmp_path, data, model, caplog):
    save_weights(small_network().state_dict(), model, {**settings(), "trained_on": trained_on(0, 3)})
    evaluate(labeled_items(data), data, model, tmp_path / "out")
    assert f"{model} was trained on phantoms alone; do not rely on its results for patients." in caplog.messages


def test_absent_weights_are_refused_before_the_cases_are_read(tmp_path):
    with pytest.raises(InputError, match="train first"):
        evaluate([], tmp_path, tmp_path / "model.pt", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_empty_side_of_the_split_names_the_other(tmp_path, data, model):
    with pytest.raises(InputError, match=r"no case for validation; choose --cases all\.$"):
        evaluate([], data, model, tmp_path / "out", cases="validation")
