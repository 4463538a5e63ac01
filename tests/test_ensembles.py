# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Members of an ensemble take turns in one network."""

from __future__ import annotations

import pytest
import torch
import torch.nn as nn
from scripts import ensembles
from scripts.ensembles import ensemble_members


@pytest.fixture
def made(tmp_path):
    files = []
    for number in range(3):
        torch.save({"weight": torch.tensor([[float(number)]])}, tmp_path / f"{number}.pt")
        files.append(str(tmp_path / f"{number}.pt"))
    network = nn.Linear(1, 1, bias=False)
    return network, files, ensemble_members(network, files)


def test_each_member_answers_with_its_own_weights_in_any_order(made):
    _, _, members = made
    x = torch.tensor([[2.0]])
    for number in (0, 1, 2, 1, 1, 0, 2):
        assert members[number].eval()(x).item() == 2 * number


def test_members_hold_no_weights_themselves(made):
    network, _, members = made
    assert all(not list(member.parameters()) and not list(member.children()) for member in members)
    assert {id(member.shared[0]) for member in members} == {id(network)}


def test_a_file_is_read_when_its_members_turn_comes_and_not_again(made, monkeypatch):
    _, files, members = made
    read = []
    load = ensembles.load_torch
    monkeypatch.setattr(ensembles, "load_torch", lambda path: read.append(path) or load(path))
    for number in (0, 0, 0, 2, 2, 0):
        members[number](torch.ones(1, 1))
    assert read == [files[0], files[2], files[0]]


def test_the_network_is_in_the_members_mode(made):
    network, _, members = made
    members[0].eval()(torch.ones(1, 1))
    assert not network.training
    members[1].train()(torch.ones(1, 1))
    assert network.training
