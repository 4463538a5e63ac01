# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Mixed precision on a CPU gives the gradients and the course of a training in float32, within bfloat16's tolerance.

The networks are small, so that this takes seconds.
"""

import logging

import pytest
import torch
import torch.nn as nn
from monai.inferers import SimpleInferer
from scripts.inference.inferers import CompiledInferer, FlipInferer, MixedPrecisionInferer
from scripts.networks import PriorAttentionNet
from scripts.networks.blocks import ConvNorm, InstanceNorm3d
from scripts.networks.resize import resize_like
from scripts.training.losses import PriorAttentionLoss
from scripts.training.reproducibility import choose_algorithms
from scripts.utils.errors import InputError
from scripts.utils.machine import computes_in

CHANNELS = (4, 8, 8, 12, 16)
SIZE = 64
needs_bfloat16 = pytest.mark.skipif(
    not computes_in("cpu", "bfloat16"), reason="this processor emulates bfloat16, which takes minutes"
)
CPU = {"device": "cpu", "dtype": "bfloat16"}


def patch() -> tuple[torch.Tensor, torch.Tensor]:
    """A bright ball of a radius of 14 voxels in noise, and its regions."""
    generator = torch.Generator().manual_seed(0)
    axis = torch.arange(SIZE) - SIZE / 2
    radius = (axis[:, None, None] ** 2 + axis[None, :, None] ** 2 + axis[None, None] ** 2).sqrt()
    regions = torch.stack([radius >= 14, radius < 7, radius < 10, radius < 14])[None].float()
    image = torch.randn(1, 4, SIZE, SIZE, SIZE, generator=generator) + 2 * regions[:, 1:].sum(1, keepdim=True)
    return image, regions


def step(network: nn.Module, mixed: bool) -> float:
    """Gradients of one step; returns the loss."""
    image, regions = patch()
    inferer = MixedPrecisionInferer(CompiledInferer(enabled=False), **CPU, enabled=mixed)
    loss = PriorAttentionLoss()(inferer(image, network), regions)
    loss.backward()
    return loss.item()


def network(channels_last: bool) -> PriorAttentionNet:
    torch.manual_seed(3)
    made = PriorAttentionNet(channels=CHANNELS).train()
    choose_algorithms(network=made, channels_last=channels_last)
    return made


@needs_bfloat16
@pytest.mark.parametrize("channels_last", [False, True])
def test_gradients_point_the_same_way(channels_last):
    plain, mixed = network(False), network(channels_last)
    losses = step(plain, mixed=False), step(mixed, mixed=True)
    assert losses[1] == pytest.approx(losses[0], rel=0.01)
    ours = {name: p.grad for name, p in mixed.named_parameters()}
    for name, parameter in plain.named_parameters():
        assert ours[name].dtype == torch.float32
        if parameter.grad.numel() > 50:
            similarity = torch.cosine_similarity(parameter.grad.flatten(), ours[name].flatten(), dim=0)
            assert similarity > 0.95, name
    whole = [torch.cat([p.grad.flatten() for p in net.parameters()]) for net in (plain, mixed)]
    assert torch.cosine_similarity(*whole, dim=0) > 0.995
    assert whole[1].norm() == pytest.approx(whole[0].norm().item(), rel=0.03)


@needs_bfloat16
@pytest.mark.parametrize("size", [(2, 2, 2), (2, 3, 5), (4, 4, 2), (3, 3, 3)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_small_maps_have_the_right_gradient_of_weights(size, layout):
    """torch's own gradient is wrong where an axis has two voxels."""
    torch.manual_seed(0)
    unit = ConvNorm(3, 24, 32, 3).to(memory_format=layout)
    x = torch.randn(1, 24, *size).to(memory_format=layout)
    gradients = []
    for mixed in (False, True):
        unit.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, mixed):
            result = unit(x)
        (result.float() * torch.linspace(-1, 1, result.numel()).view(result.shape)).sum().backward()
        gradients.append(unit.conv.weight.grad.clone())
    assert (gradients[1] - gradients[0]).norm() < 0.05 * gradients[0].norm()


def test_float16_on_a_cpu_is_refused():
    with pytest.raises(InputError, match="--amp_dtype float16: a CPU mixes precision in bfloat16 only"):
        MixedPrecisionInferer(SimpleInferer(), "cpu", "float16")
    MixedPrecisionInferer(SimpleInferer(), "cpu", "float16", enabled=False)


def test_a_compiled_network_in_mixed_precision_on_a_cpu_is_refused():
    """Its gradients can be infinite (scripts.networks.blocks.Conv3d), and nothing could correct them."""
    with pytest.raises(InputError, match="--compile True: a compiled network on a CPU gives wrong gradients"):
        MixedPrecisionInferer(CompiledInferer(), "cpu", "bfloat16")
    MixedPrecisionInferer(CompiledInferer(), "cpu", "bfloat16", enabled=False)
    MixedPrecisionInferer(CompiledInferer(enabled=False), "cpu", "bfloat16")
    MixedPrecisionInferer(CompiledInferer(), "cuda", "bfloat16")


@pytest.mark.slow
@needs_bfloat16
def test_the_loss_falls_as_in_float32():
    curves = []
    for mixed in (False, True):
        trained = network(channels_last=mixed)
        optimizer = torch.optim.Adam(trained.parameters(), lr=3e-3)
        curve = []
        for _ in range(8):
            optimizer.zero_grad()
            curve.append(step(trained, mixed))
            optimizer.step()
        curves.append(curve)
    plain, mixed = curves
    assert plain[-1] < 0.9 * plain[0]
    assert mixed == pytest.approx(plain, rel=0.04)


def test_channels_beside_each_other_do_not_change_values_in_float32():
    x, _ = patch()
    plain, other = network(False).eval(), network(True).eval()
    with torch.no_grad():
        torch.testing.assert_close(other(x), plain(x), atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("batch", [1, 2])
def test_instance_normalization_is_torchs(affine, batch):
    torch.manual_seed(0)
    ours, theirs = (kind(6, affine=affine) for kind in (InstanceNorm3d, nn.InstanceNorm3d))
    if affine:
        for parameters in zip(ours.parameters(), theirs.parameters(), strict=True):
            values = torch.rand_like(parameters[0])
            for parameter in parameters:
                parameter.data.copy_(values)
    x = (3 * torch.randn(batch, 6, 5, 4, 3) + 1).to(memory_format=torch.channels_last_3d)
    inputs = [x.clone(memory_format=torch.preserve_format).requires_grad_() for _ in range(2)]
    outputs = [norm(value) for norm, value in zip((ours, theirs), inputs, strict=True)]
    torch.testing.assert_close(outputs[0], outputs[1])
    for output in outputs:
        (output * torch.arange(output.numel()).view(output.shape)).sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-4, atol=1e-2)
    if batch == 1:
        assert outputs[0].is_contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize("channels", [1, 4, 16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_resizing_in_a_training_is_torchs_interpolation(channels, layout):
    x = torch.randn(2, channels, 3, 4, 5).to(memory_format=layout)
    like = torch.zeros(1, 1, 6, 8, 20)
    inputs = [x.clone(memory_format=torch.preserve_format).requires_grad_() for _ in range(2)]
    found = resize_like(inputs[0], like)
    wanted = nn.functional.interpolate(inputs[1], size=like.shape[2:], mode="trilinear", align_corners=False)
    torch.testing.assert_close(found, wanted)
    for output in (found, wanted):
        (output * torch.linspace(-1, 1, output.numel()).view(output.shape)).sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-4, atol=1e-4)


def test_precision_is_mixed_inside_the_inferer_only():
    seen = []

    class Probe(nn.Linear):
        def forward(self, x):
            result = super().forward(x)
            seen.append(result.dtype)
            return result

    inferer = FlipInferer(MixedPrecisionInferer(SimpleInferer(), **CPU), axes=[0])
    result = inferer(torch.rand(1, 4, 2, 2, 2), Probe(2, 2))
    assert seen == [torch.bfloat16] * 2 and result.dtype == torch.float32
    assert not torch.is_autocast_enabled("cpu")


def test_a_processor_that_emulates_bfloat16_is_detected(monkeypatch, caplog):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert not computes_in("cpu", "bfloat16")
    assert computes_in("cuda:0", "bfloat16") and computes_in("cuda", "float16")
    with caplog.at_level(logging.WARNING):
        MixedPrecisionInferer(SimpleInferer(), **CPU, enabled=False)
        assert not caplog.messages
        MixedPrecisionInferer(SimpleInferer(), **CPU)
    assert "cpu does not compute in bfloat16, so this is very slow" in caplog.text
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert computes_in("cpu", "bfloat16") and not computes_in("cpu", "float16")
