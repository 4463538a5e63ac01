# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The running configuration, as its parts receive it."""

import pytest
from monai.bundle import ConfigParser
from scripts.utils.errors import InputError
from scripts.workflow.configuration import Configuration, running_configuration, without_tracking
from workflows import initialized


def test_the_running_configuration_is_the_parsers_that_makes_it():
    parser = ConfigParser({"configuration": {"_target_": running_configuration.__module__ + ".running_configuration"}})
    parser.update({"a": 1, "b": "$@a + 1"})
    made = parser.get_parsed_content("configuration")
    assert made.parser is parser
    assert {key: made.content[key] for key in ("a", "b")} == {"a": 1, "b": "$@a + 1"}
    assert "_meta_" not in made.content
    # A later change is visible, because tools that run the bundle change their parser.
    parser["a"] = 2
    assert made.content["a"] == 2


def test_arguments_are_resolved_and_references_followed():
    parser = ConfigParser(
        {
            "width": 3,
            "network_def": "@other",
            "other": {"_target_": "torch.nn.Linear", "in_features": "@width", "out_features": "$@width + 1"},
        }
    )
    # The value is read before the component is made.
    assert parser.get_parsed_content("width") == 3
    found = Configuration(parser).arguments("network_def")
    assert (found["in_features"], found["out_features"]) == (3, 4)


def test_a_network_that_is_an_expression_is_refused():
    parser = ConfigParser({"network_def": "$__import__('torch').nn.Identity()"})
    parser.parse()
    with pytest.raises(InputError, match=r"--network_def .*: write it as a component with _target_ and arguments"):
        Configuration(parser).arguments("network_def")


def test_a_callers_data_and_weights_are_known(tmp_path):
    made = initialized("train.json", kind="train", dataset_dir=str(tmp_path), output_dir=str(tmp_path / "out"))
    configuration = made.parser.get_parsed_content("configuration")
    assert configuration.brings_own_data is False
    weights = tmp_path / "model.pt"
    weights.touch()
    made.parser["train"]["handlers"].insert(0, {"_target_": "CheckpointLoader", "load_path": str(weights)})
    assert configuration.loaded_by_caller is None, "an overlay's handler is no caller's"
    made.parser["train"]["dataset"]["data"] = [{"image": "a.nii.gz"}]
    assert configuration.brings_own_data is True
    assert configuration.loaded_by_caller == str(weights)


def test_what_tracking_adds_is_left_out_at_any_depth():
    content = {"run_name": "x", "train": {"handlers": [{"_target_": "MLFlowHandler"}, {"_target_": "StatsHandler"}]}}
    assert without_tracking(content) == {"train": {"handlers": [{"_target_": "StatsHandler"}]}}
