# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The networks that PANet is compared with: the authors' numbers, the published graphs, MONAI's own values, forms."""

import itertools

import monai.networks.nets as nets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scripts.lab.complexity import parameters
from scripts.networks import AttentionUNet, CascadedUNet, DynUNet, PriorAttentionNet, SegResNet, SwinUNETR
from scripts.networks.exported_program import export_network
from scripts.networks.protocol import SegmentationNetwork, refuse_one_size
from scripts.training.losses import PriorAttentionLoss
from scripts.utils.errors import InputError
from scripts.weights.authors import convert
from tiny import GOLDEN, golden_input

SMALL = (4, 8, 8, 12, 16)
FULL = (32, 64, 128, 256, 320)
NETWORKS = {
    "attention U-Net": lambda dims=3: AttentionUNet(dims, channels=SMALL),
    "cascaded U-Net": lambda dims=3: CascadedUNet(dims, channels=SMALL),
    "SegResNet": lambda dims=3: SegResNet(dims, init_filters=8),
    "DynUNet": lambda dims=3: DynUNet(dims, filters=SMALL, strides=(1, 2, 2, 2, 2)),
    "residual DynUNet": lambda dims=3: DynUNet(dims, filters=SMALL, strides=(1, 2, 2, 2, 2), res_block=True),
    "Swin UNETR": lambda dims=3: SwinUNETR(dims, feature_size=12),
}
MAPS = {
    "attention U-Net": ["out"],
    "cascaded U-Net": ["out", "prior"],
    "SegResNet": ["out"],
    "DynUNet": ["out", "level1", "level2", "level3"],
    "residual DynUNet": ["out", "level1", "level2", "level3"],
    "Swin UNETR": ["out"],
}


def made(name, dims=3, seed=0):
    torch.manual_seed(seed)
    return NETWORKS[name](dims)


def image(*size, batch=1, seed=1):
    return torch.randn(batch, 4, *size, generator=torch.Generator().manual_seed(seed))


# The authors' numbers.

GOLDENS = {
    "attention_unet": (
        {"out": "out"},
        ("encoder.0.body.0.conv.weight", "gates.0.gating.conv.weight", "gates.3.psi.conv.weight", "outputs.0.weight"),
    ),
    "cascaded_unet": (
        {"stage1": "prior", "out": "out"},
        ("first_stage.outputs.0.weight", "second_stage.outputs.0.weight", "second_stage.encoder.0.body.0.conv.weight"),
    ),
}


def golden_network(name):
    checkpoint = torch.load(GOLDEN / f"{name}_checkpoint.pkl", weights_only=True)
    network, _ = convert(checkpoint["net"])
    return network, np.load(GOLDEN / f"{name}.npz")


@pytest.mark.parametrize("name", GOLDENS)
def test_evaluation_maps_are_those_of_the_authors(name, device):
    network, expected = golden_network(name)
    network.eval().to(device)
    x = golden_input().to(device)
    with torch.no_grad():
        maps = {"out": network(x)}
        if name == "cascaded_unet":
            maps["out"], maps["prior"] = network.predict_both(x)
            assert torch.equal(network(x), maps["out"])
    for theirs, ours in GOLDENS[name][0].items():
        wanted = expected[f"eval_{theirs}"]
        values = maps[ours][..., ::2, ::2, ::2].cpu().numpy()
        assert values.shape == wanted.shape
        assert np.abs(values - wanted).max() < 1e-4 * np.abs(wanted).max(), theirs


@pytest.mark.parametrize("name", GOLDENS)
def test_training_maps_and_gradients_are_those_of_the_authors(name, device):
    network, expected = golden_network(name)
    maps = network.train().to(device)(golden_input().to(device))
    names, weights = GOLDENS[name]
    means = torch.stack([maps[ours].square().mean() for ours in names.values()])
    means.sum().backward()
    np.testing.assert_allclose(means.detach().cpu().numpy(), expected["train_mean_of_squares"], rtol=1e-4)
    norms = [float(network.get_parameter(weight).grad.norm()) for weight in weights]
    np.testing.assert_allclose(norms, expected["grad_norms"], rtol=1e-4)


def test_full_size_has_the_authors_parameters_without_their_dead_slopes():
    """Each of nine blocks has two dead slopes in the authors' code, and each of three layers of four gates has one."""
    unet = PriorAttentionNet(channels=FULL, prior_attention=False, deep_supervision=False)
    attention, cascade = AttentionUNet(), CascadedUNet()
    assert parameters(attention) == 17_116_188 - 9 * 2 - 4 * 3
    # A gate has three convolutions without bias, and batch normalization of their outputs.
    gates = sum(c * d + d * d + d + 2 * (d + d + 1) for d, c in itertools.pairwise(FULL))
    assert parameters(attention) == parameters(unet) + gates
    # The first stage has one output convolution in the place of four.
    assert parameters(cascade) == 2 * parameters(unet) - 3 * (FULL[0] + 1)
    assert round(parameters(cascade) / 1e6, 1) == 33.8


# The graphs.


@pytest.mark.parametrize("dims", [2, 3])
def test_a_gate_is_the_published_one(dims):
    torch.manual_seed(0)
    network = AttentionUNet(dims, channels=SMALL, norm="batch", upsample="deconv").eval()
    gate = network.gates[0]
    for name, value in gate.named_buffers():
        if value.is_floating_point():
            value.uniform_(0.1, 0.5, generator=torch.Generator().manual_seed(len(name)))
    deep, skip = torch.randn(2, SMALL[4], *[2] * dims), torch.randn(2, SMALL[3], *[4] * dims)
    convolution = {2: F.conv2d, 3: F.conv3d}[dims]

    def normalized(layer, x):
        norm = layer.norm
        return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=1e-5)

    with torch.no_grad():
        total = normalized(gate.gating, convolution(deep, gate.gating.conv.weight))
        total += normalized(gate.skip, convolution(skip, gate.skip.conv.weight, stride=2))
        weight = normalized(gate.psi, convolution(total.clamp(min=0), gate.psi.conv.weight))
        weight = F.interpolate(weight.sigmoid(), scale_factor=2, mode={2: "bilinear", 3: "trilinear"}[dims])
        assert weight.std() > 0.01
        torch.testing.assert_close(gate(deep, skip), skip * weight)


def test_gates_that_are_open_make_the_plain_u_net():
    attention = made("attention U-Net").eval()
    plain = PriorAttentionNet(channels=SMALL, prior_attention=False, deep_supervision=False).eval()
    left = plain.load_state_dict(attention.state_dict(), strict=False)
    assert not left.missing_keys and all(key.startswith("gates.") for key in left.unexpected_keys)
    x = image(32, 32, 16)
    with torch.no_grad():
        assert not torch.allclose(attention(x), plain(x), atol=1e-3)
        for gate in attention.gates:
            gate.psi.norm.bias.fill_(200.0)
        torch.testing.assert_close(attention(x), plain(x))


@pytest.mark.parametrize("found", ["nothing", "everything", "a part"])
def test_the_second_stage_sees_the_image_twice_as_bright_where_the_first_finds_the_tumor(found):
    network = made("cascaded U-Net").eval()
    x = image(32, 32, 16)
    with torch.no_grad():
        last = network.first_stage.outputs[-1]
        if found != "a part":
            last.weight.zero_()
            last.bias.fill_({"nothing": -1.0, "everything": 1.0}[found])
        mask = network.first_stage(x) > 0
        assert (0.1 < mask.float().mean() < 0.9) == (found == "a part")
        wanted = network.second_stage(torch.where(mask, 2 * x, x))
        assert torch.equal(network(x), wanted)
        assert torch.equal(network(x), network.second_stage(x)) == (found == "nothing")


def test_each_stage_learns_from_its_own_output_alone():
    network, x = made("cascaded U-Net").train(), image(32, 32, 16)
    for own, other, name in (("first", "second", "prior"), ("second", "first", "out")):
        network.zero_grad()
        network(x)[name].square().mean().backward()
        learns = {key.split("_")[0] for key, p in network.named_parameters() if p.grad is not None and p.grad.any()}
        assert learns == {own} and other not in learns


# MONAI's networks are MONAI's.


def test_monais_networks_give_their_own_values():
    adapted = {
        "SegResNet": nets.SegResNet(3, 8, 4, 4, dropout_prob=0.2, norm=("group", {"num_groups": 8})),
        "residual DynUNet": nets.DynUNet(
            3, 4, 4, [3] * 5, [1, 2, 2, 2, 2], [2] * 4, SMALL, deep_supervision=True, deep_supr_num=3, res_block=True
        ),
        "Swin UNETR": nets.SwinUNETR(4, 4, feature_size=12),
    }
    x = image(64, 32, 32)
    for name, theirs in adapted.items():
        ours = made(name).eval()
        theirs.load_state_dict(ours.network.state_dict())
        with torch.no_grad():
            assert torch.equal(ours(x), theirs.eval()(x)), name
            if name == "residual DynUNet":
                maps = ours.train()(x)
                assert torch.equal(torch.stack(list(maps.values()), 1), theirs.train()(x))


def test_levels_of_dynunet_come_from_coarser_and_coarser_maps():
    """MONAI enlarges a map by the nearest voxel, so that the map of level n has blocks of 2^n equal voxels."""
    maps = made("DynUNet").train()(image(32, 32, 16))
    for level, values in enumerate(maps.values()):
        for edge in (2, 4, 8):
            small = values[..., ::edge, ::edge, ::edge]
            again = small.repeat_interleave(edge, 2).repeat_interleave(edge, 3).repeat_interleave(edge, 4)
            assert torch.equal(values, again) == (edge <= 2**level), (level, edge)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: SegResNet(blocks_down=(1, 2), blocks_up=(1, 1)), "one level fewer"),
        (lambda: DynUNet(filters=(4, 4, 4)), "the same number of values"),
        (lambda: DynUNet(deep_supr_num=4), "must be 0 to 3, the levels of the loss, got 4"),
        (lambda: CascadedUNet(spatial_dims=4), "spatial_dims must be 2 or 3, got 4"),
        (lambda: AttentionUNet(channels=(4, 4)), "must have five values"),
        (lambda: CascadedUNet(channels=SMALL)(torch.zeros(1, 4, 24, 32, 32)), "multiple of 16"),
        (lambda: AttentionUNet(channels=SMALL).eval()(torch.zeros(1, 3, 32, 32, 32)), "4 channels"),
    ],
)
def test_what_no_network_can_be_or_take_is_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()


# The interface.


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", NETWORKS)
def test_training_gives_named_maps_that_the_loss_knows_and_all_learn(name, dims):
    network = made(name, dims).train()
    assert isinstance(network, SegmentationNetwork)
    assert (network.spatial_dims, network.in_channels, network.out_channels) == (dims, 4, 4)
    multiple = network.size_multiple
    assert multiple == {"SegResNet": 8, "Swin UNETR": 32}.get(name, 16)
    size = (2 * multiple, *[multiple] * (dims - 1))
    x = image(*size)
    maps = network(x)
    assert list(maps) == MAPS[name]
    assert {key: tuple(value.shape) for key, value in maps.items()} == {
        key: (1, 1 if key == "prior" else 4, *size) for key in MAPS[name]
    }
    loss = PriorAttentionLoss()
    target = (image(*size, seed=2) > 0).float()
    loss(maps, target).backward()
    assert list(loss.last_terms) == MAPS[name]
    norms = {key: p.grad.norm().item() if p.grad is not None else None for key, p in network.named_parameters()}
    assert not [key for key, norm in norms.items() if norm is None or not np.isfinite(norm)]
    with torch.no_grad():
        assert network.eval()(x).shape == (1, 4, *size)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "Swin UNETR"])
def test_scripted_traced_and_exported_forms_give_the_same_values_at_any_size(name):
    network = made(name).train()
    network(image(32, 32, 16))
    network.eval()
    forms = {
        "script": torch.jit.script(network),
        "trace": torch.jit.trace(network, image(32, 32, 64)),
        "export": export_network(network).module(),
    }
    for x in (image(32, 32, 48), image(64, 32, 32, batch=2)):
        with torch.no_grad():
            wanted = network(x)
            for form, made_form in forms.items():
                torch.testing.assert_close(made_form(x), wanted, rtol=1e-5, atol=1e-5, msg=form)
    # The export leaves the network as it was.
    assert list(network.train()(image(32, 32, 16))) == MAPS[name]


@pytest.mark.slow
def test_swin_unetr_is_traced_for_one_size_and_other_forms_are_refused_in_one_line():
    network = made("Swin UNETR").eval()
    x = image(64, 32, 32)
    with torch.no_grad():
        assert torch.equal(torch.jit.trace(network, x)(x), network(x))
    with pytest.raises(InputError, match="use_trace True --input_shape") as caught:
        torch.jit.script(network)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"SwinUNETR: torch\.export would fix one size of images"):
        refuse_one_size(network, "torch.export")
