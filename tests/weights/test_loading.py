# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The start of a training from a model file: which weights are loaded, which are not, and what the log says."""

import logging

import pytest
import torch
from scripts.networks import PriorAttentionNet
from scripts.utils.errors import InputError
from scripts.weights.loading import load_pretrained

CHANNELS = [4, 4, 4, 4, 8]


def network(seed: int, **changes) -> PriorAttentionNet:
    torch.manual_seed(seed)
    return PriorAttentionNet(channels=CHANNELS, **changes)


@pytest.fixture
def model(tmp_path):
    torch.save(network(0).state_dict(), tmp_path / "model.pt")
    return tmp_path / "model.pt"


def test_all_of_it_is_loaded(model, caplog):
    target = network(1)
    with caplog.at_level(logging.INFO):
        assert load_pretrained(target, model) == []
    wanted = network(0).state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in target.state_dict().items())
    assert f"{model}: {len(wanted)} of {len(wanted)} tensors loaded" in caplog.messages


@pytest.mark.parametrize("modules", [["outputs"], ["head", "outputs"], ["decoder.0"]])
def test_named_modules_keep_their_initial_values(model, modules):
    target, before, wanted = network(1), network(1).state_dict(), network(0).state_dict()
    left = load_pretrained(target, model, modules)
    assert left == sorted(name for name in before if any(name.startswith(f"{module}.") for module in modules))
    for name, value in target.state_dict().items():
        assert torch.equal(value, before[name] if name in left else wanted[name]), name


def test_other_output_channels_are_left_out_and_named(model, caplog):
    """For a task with five maps instead of four, everything fits except the output convolutions."""
    target = network(1, out_channels=5)
    left = load_pretrained(target, model)
    assert left == [f"outputs.{level}.{what}" for level in range(4) for what in ("bias", "weight")]
    assert "Left at its initial value: outputs.0.bias ([4] in the file, [5] here)" in caplog.messages


def test_what_only_one_side_has_is_named(model, caplog):
    """A network without attention starts from a network with attention, and the other way round."""
    load_pretrained(network(1, prior_attention=False), model)
    assert "Not taken from the file: head.output.bias (this network has no such tensor)" in caplog.messages
    torch.save(network(2, prior_attention=False).state_dict(), model)
    left = load_pretrained(network(1), model)
    assert "head.output.bias" in left and "decoder.0.skip_weight" in left
    assert "Left at its initial value: head.output.bias (not in the file)" in caplog.messages


def test_a_file_of_which_nothing_fits_is_refused(model):
    torch.save({"other": torch.zeros(3)}, model)
    with pytest.raises(InputError, match="nothing in it fits this network"):
        load_pretrained(network(1), model)


@pytest.mark.parametrize("content", [torch.zeros(3), {"epoch": 3}, [1, 2]])
def test_what_is_no_state_dict_is_refused(model, content):
    torch.save(content, model)
    with pytest.raises(InputError, match="no state dict; give a model file"):
        load_pretrained(network(1), model)


def test_a_replicated_network_is_loaded_through(model):
    target = network(1)
    load_pretrained(torch.nn.DataParallel(target), model)
    assert torch.equal(target.outputs[0].weight, network(0).outputs[0].weight)
