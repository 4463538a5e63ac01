# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The search for weights, and the check that they fit a network."""

import logging
import os
import re

import pytest
import torch
from scripts.utils.errors import InputError
from scripts.weights.loading import check_weights, find_model_file, weights_difference
from tiny import small_network


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
    assert "train first" in message and "panet import" in message


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
