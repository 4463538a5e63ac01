# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The members of an ensemble take turns in one network, and MONAI's transforms give the same mean."""

import pytest
import torch
from monai.inferers import SimpleInferer, SlidingWindowInferer
from monai.transforms import Activationsd, MeanEnsembled
from scripts.inference import ensembles
from scripts.inference.ensembles import EnsembleInferer
from scripts.utils.errors import InputError
from tiny import ARGUMENTS, PriorAttentionNet, small_network


@pytest.fixture
def members(tmp_path) -> list[str]:
    """Files of three different networks, whose probabilities also come near 0 and 1."""
    files = []
    for seed in range(3):
        torch.manual_seed(seed)
        state = PriorAttentionNet(**ARGUMENTS).state_dict()
        state["outputs.3.weight"] *= 8
        files.append(str(tmp_path / f"{seed}.pt"))
        torch.save(state, files[-1])
    return files


@pytest.mark.parametrize(("exclusive", "tolerance"), [(False, 6e-8), (True, 3e-7)])
@pytest.mark.parametrize("windows", [SimpleInferer(), SlidingWindowInferer((32, 32, 32), overlap=0.5, mode="gaussian")])
def test_the_mean_is_that_of_monais_ensemble(members, windows, exclusive, tolerance):
    """``EnsembleEvaluator`` with ``Activationsd`` and ``MeanEnsembled`` runs each network separately, then averages."""
    image = torch.rand(1, 4, 48, 32, 32)
    network = small_network().eval()
    logits = {}
    with torch.no_grad():
        for number, file in enumerate(members):
            network.load_state_dict(torch.load(file, weights_only=True))
            logits[f"pred_{number}"] = windows(image, network)[0]
        mean = EnsembleInferer(windows, members, exclusive)(image, small_network().eval())[0]
    keys = list(logits)
    activation = Activationsd(keys, sigmoid=not exclusive, softmax=exclusive)
    wanted = MeanEnsembled(keys, "pred")(activation(logits))["pred"]
    found = Activationsd("pred", sigmoid=not exclusive, softmax=exclusive)({"pred": mean})["pred"]
    torch.testing.assert_close(found, wanted, rtol=0, atol=tolerance)
    assert wanted.min() < 0.2 and wanted.max() > 0.8


def test_each_member_has_its_turn_in_every_case(members, monkeypatch):
    read = []
    load = ensembles.load_torch
    monkeypatch.setattr(ensembles, "load_torch", lambda path: read.append(path) or load(path))
    network = small_network().eval()
    inferer = EnsembleInferer(SimpleInferer(), members[:2])
    for _ in range(2):
        inferer(torch.rand(1, 4, 32, 32, 32), network)
    assert read == [*members[:2], *members[:2]]


def test_the_network_keeps_its_mode_and_may_be_wrapped(members):
    class Wrapped(torch.nn.Module):
        """A wrapper that holds a network like torch's parallel wrappers."""

        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, x):
            return self.module(x)

    image = torch.rand(1, 4, 32, 32, 32)
    inferer = EnsembleInferer(SimpleInferer(), members)
    network = Wrapped(small_network().eval())
    with torch.no_grad():
        assert torch.equal(inferer(image, network), inferer(image, small_network().eval()))
    assert not network.module.training


def test_a_member_whose_logits_are_not_finite_spoils_the_mean(members):
    """``RequireFinited`` then stops the run because of the mean."""
    state = torch.load(members[1], weights_only=True)
    state["outputs.3.bias"][2] = float("inf")
    torch.save(state, members[1])
    with torch.no_grad():
        mean = EnsembleInferer(SimpleInferer(), members)(torch.rand(1, 4, 32, 32, 32), small_network().eval())
    assert mean[:, 2].isnan().all()
    assert mean[:, [0, 1, 3]].isfinite().all()


@pytest.mark.parametrize("model_file", ["a.pt", ["a.pt"], []])
def test_an_ensemble_of_one_is_refused(model_file):
    with pytest.raises(InputError, match="an ensemble needs two model files or more; for one, leave out the overlay"):
        EnsembleInferer(SimpleInferer(), model_file)
