# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Settings that cannot work, and settings that nothing reads."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser
from scripts.utils.errors import InputError
from scripts.workflow.configuration import Configuration
from scripts.workflow.settings import check_settings, check_windows
from tiny import configuration, small_network


@pytest.mark.parametrize("value", ["true", "false"])
def test_a_switch_in_lower_case_is_refused_wherever_it_stands(value):
    for config, name in (({"amp": value}, "amp"), ({"a": {"b": [1, {"c": value}]}}, "a#b#1#c")):
        with pytest.raises(InputError) as caught:
            check_settings(configuration(config))
        assert str(caught.value) == f"--{name} {value}: write {value.capitalize()}, with a capital."


def test_switches_as_they_should_be_pass(caplog):
    check_settings(configuration({"run": [], "a": True, "b": "@a", "initialize": ["@b"], "imports": ["true or false"]}))
    assert caplog.messages == []


def test_a_setting_that_nothing_reads_is_warned_of_with_its_neighbor(caplog):
    check_settings(configuration({"overlap": 0.5, "overlaps": 0, "run": ["$print(@overlap)"]}))
    assert caplog.messages == ["Nothing reads the setting overlaps; did you mean overlap?"]


def given(content: dict, folder: Path, **arguments: object) -> Configuration:
    """What ``bundle run`` gives of this content and these arguments."""
    file = folder / "config.json"
    file.write_text(json.dumps(content))
    parser = ConfigParser(content)
    parser.parse()
    return Configuration(parser, "training", {"config_file": str(file), "override": {}, **arguments})


def test_a_setting_that_nothing_reads_stops_a_run(tmp_path, caplog):
    content = {"max_epochs": 16, "max_epoch": 2, "run": ["$print(@max_epochs)"]}
    with pytest.raises(InputError) as caught:
        check_settings(given(content, tmp_path))
    assert str(caught.value) == (
        "Nothing reads the setting max_epoch; did you mean max_epochs? Correct or remove it, or go on by "
        "--allow_unread True."
    )
    check_settings(given({**content, "allow_unread": True}, tmp_path))
    assert caplog.messages == ["Nothing reads the setting max_epoch; did you mean max_epochs?"]


@pytest.mark.parametrize("macro", ["%width", "%width::deep", "%configs/other.json::width"])
def test_what_a_macro_reads_is_read(tmp_path, caplog, macro):
    content = {"width": {"deep": 3}, "run": []}
    if "other" not in macro:
        check_settings(given({**content, "run": [macro]}, tmp_path))
    # A macro may be in an option, too.
    check_settings(given(content, tmp_path, override={"run": macro}))
    with pytest.raises(InputError, match="Nothing reads the setting width"):
        check_settings(given(content, tmp_path, override={"run": macro.replace("width", "widths")}))
    assert caplog.messages == []


def test_keys_with_an_underscore_and_those_of_a_tracking_file_are_read(tmp_path, caplog):
    tracking = tmp_path / "tracking.json"
    tracking.write_text(json.dumps({"handlers_id": {}, "configs": {"project": "mine", "tags": ["a"]}}))
    content = {"_meta_note": 1, "project": "mine", "tags": ["a"], "tracking_uri": "x", "run": []}
    check_settings(given(content, tmp_path, tracking=str(tracking)))
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("device", "count", "said"),
    [
        ("cuda:0", 0, "no GPU that torch can use; write cpu."),
        ("cuda", 0, "no GPU that torch can use; write cpu."),
        ("cuda:1", 1, "1 GPU that torch can use, numbered from 0; name one, or cpu."),
        ("cuda:2", 2, "2 GPUs that torch can use, numbered from 0; name one, or cpu."),
    ],
)
def test_a_device_that_is_not_there_is_refused(device, count, said, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    with pytest.raises(InputError) as caught:
        check_settings(configuration({"device": device}))
    assert str(caught.value) == f"--device {device}: this machine has {said}"


@pytest.mark.parametrize("device", ["gpu", 0, 1, "0", "cuda:", "CPU", True, 1.5, ["cpu"], ""])
def test_what_is_no_device_is_refused(device):
    with pytest.raises(InputError) as caught:
        check_settings(configuration({"device": device}))
    assert str(caught.value) == f"--device {device}: no such device; write cpu, cuda, or cuda:<number>."


@pytest.mark.parametrize("device", ["cpu", "cuda:1", torch.device("cuda:1"), "$torch.device('cuda:7')", "@gpu", None])
def test_a_device_that_may_be_there_passes(device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_settings(configuration({"device": device, "gpu": "cuda:1", "run": ["@gpu"]}))


@pytest.mark.parametrize("target", ["$torch.optim.AdamW", "@network_def#_target_", "%train.json::loss", ".", "Compose"])
def test_a_target_that_only_evaluation_can_tell_passes(target):
    check_settings(configuration({"optimizer": {"_target_": target}, "network_def": {"_target_": "Compose"}}))


def test_an_unknown_precision_is_refused():
    with pytest.raises(InputError, match=r"--amp_dtype bf16: choose one of bfloat16, float16\."):
        check_settings(configuration({"amp_dtype": "bf16"}))


@pytest.mark.parametrize("precision", ["bfloat16", "float16", "$'float16'", "@precision", {"_target_": "str"}])
def test_a_precision_that_may_be_one_passes(precision):
    check_settings(configuration({"amp_dtype": precision, "precision": "float16", "run": ["@precision"]}))


@pytest.mark.parametrize("section", ["train", "validate"])
def test_a_setting_in_a_section_that_nothing_reads_is_warned_of(section, caplog):
    content = {"train": {"trainer": {"_target_": "x"}}, "validate": {"evaluator": {"_target_": "x"}}, "run": []}
    content[section] |= {"inferrer": {"_target_": "x"}, "inferer": "x", "own": f"@{section}#inferer"}
    check_settings(configuration({**content, "run": [f"@{section}#own"]}))
    assert caplog.messages == [f"Nothing reads the setting {section}#inferrer; did you mean {section}#inferer?"]


@pytest.mark.parametrize(
    ("marker", "key", "read"),
    [
        ({"train": {}}, "load_pretrain", False),
        ({"train": {}, "evaluation_dir": "x"}, "load_pretrain", True),
        ({"evaluator": {}}, "load_pretrain", True),
        ({"evaluator": {}}, "pretrained_file", False),
        ({"train": {}}, "pretrained_file", True),
    ],
)
def test_a_setting_of_another_workflow_alone_is_warned_of(marker, key, read, caplog):
    check_settings(configuration({**marker, key: None, "run": []}))
    assert (f"Nothing reads the setting {key}." in caplog.messages) is not read


@pytest.mark.parametrize("value", ["@model_file", "$@model_file + '.x'", ["@run", {"a": "@model_file"}]])
def test_a_reference_to_what_is_not_there_is_refused(value):
    """MONAI reports it in a page of text; the usual cause is an overlay on a configuration that it does not fit."""
    with pytest.raises(InputError, match=r"there is no setting model_file; an overlay may need .* evaluate\.json"):
        check_settings(configuration({"network": {"file": value}, "run": []}))


def test_settings_of_another_workflow_are_no_mistake(caplog):
    """An overlay may have the effect that nothing reads a setting of the main configurations."""
    check_settings(configuration({"bundle_root": ".", "publish": True, "overlap": 0.5, "run": []}))
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("target", "package"), [("MLFlowHandler", "mlflow"), ("no_such_package.Engine", "no_such_package")]
)
def test_a_part_whose_package_is_absent_is_refused(target, package, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "mlflow" else found(name))
    with pytest.raises(InputError) as caught:
        check_settings(
            configuration({"train": {"handlers": [{"_target_": "scripts.training.losses"}, {"_target_": target}]}})
        )
    assert str(caught.value) == (
        f"train#handlers#1#_target_ {target}: needs the package {package}, which is absent; pip install {package}."
    )


@pytest.mark.parametrize("size", [(32, 32, 16), (16, 48, 128)])
def test_windows_the_network_takes_pass(size):
    check_windows(small_network(), {"patch_size": size})
    small_network().eval()(torch.zeros(1, 4, *size))


@pytest.mark.parametrize("size", [(40, 32, 32), (16, 16, 16), (32, 0, 32), (32, -16, 32)])
def test_windows_the_network_cannot_take_are_refused(size):
    with pytest.raises(InputError) as caught:
        check_windows(small_network(), {"patch_size": size})
    assert str(caught.value) == (
        f"--patch_size {list(size)}: each must be a multiple of 16, and one of them at least 32."
    )
