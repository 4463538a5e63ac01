# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Convolution and residual blocks against torch's functional operations."""

import pytest
import torch
import torch.nn.functional as F
from scripts.networks.blocks import ConvNorm, ResBlock, build_norm, is_group_norm
from scripts.networks.resize import resize_like

CONV = {2: F.conv2d, 3: F.conv3d}
SIZE = {2: (9, 12), 3: (6, 7, 10)}
EPS = 1e-5


def random_input(channels, dims):
    return torch.randn(2, channels, *SIZE[dims], generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def randomized(module):
    """Move every parameter and running statistic away from its initial value, in double precision."""
    generator = torch.Generator().manual_seed(2)
    for name, tensor in module.double().state_dict().items():
        if tensor.is_floating_point():
            value = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
            tensor.copy_(value + 0.1 if name.endswith(("running_var", "act.weight")) else 2 * value - 1)
    return module


def normalize(x, norm):
    """Normalize as in training mode; only the kind and the affine parameters of the layer ``norm`` are used."""
    kind = type(norm).__name__.rstrip("d").rstrip("23")
    groups = {"InstanceNorm": x.shape[1], "GroupNorm": getattr(norm, "num_groups", 0)}.get(kind)
    if kind == "BatchNorm":
        axes = [0, *range(2, x.dim())]
        y = (x - x.mean(axes, keepdim=True)) / (x.var(axes, unbiased=False, keepdim=True) + EPS).sqrt()
    else:
        parts = x.reshape(x.shape[0], groups, -1)
        parts = (parts - parts.mean(2, keepdim=True)) / (parts.var(2, unbiased=False, keepdim=True) + EPS).sqrt()
        y = parts.reshape(x.shape)
    if getattr(norm, "weight", None) is not None:
        shape = [1, -1] + [1] * (x.dim() - 2)
        y = y * norm.weight.reshape(shape) + norm.bias.reshape(shape)
    return y


def activate(x, slope):
    return torch.where(x > 0, x, slope * x)


def conv_norm(x, block, stride, slope):
    """Return the expected output; ``slope`` is None without activation and 0 for ReLU."""
    conv = CONV[x.dim() - 2]
    padding = (block.conv.weight.shape[-1] - 1) // 2
    if type(block.norm).__name__ == "GroupNorm":
        y = normalize(x, block.norm)
        y = y if slope is None else activate(y, slope)
        return conv(y, block.conv.weight, stride=stride, padding=padding)
    y = normalize(conv(x, block.conv.weight, stride=stride, padding=padding), block.norm)
    return y if slope is None else activate(y, slope)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("norm", ["instance", "batch", "group"])
@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 1), (3, 2), (1, 2)])
@pytest.mark.parametrize("act", [("prelu", {"init": 0.25}), "relu", None])
def test_conv_norm_equals_convolution_norm_activation(dims, norm, kernel, stride, act):
    block = randomized(ConvNorm(dims, 4, 6, kernel, stride, norm, act))
    slope = None if act is None else 0.0 if act == "relu" else block.act.weight
    x = random_input(4, dims)
    torch.testing.assert_close(block(x), conv_norm(x, block, stride, slope))


@pytest.mark.parametrize(
    ("norm", "order"),
    [("instance", ["conv", "norm", "act"]), ("batch", ["conv", "norm", "act"]), ("group", ["norm", "act", "conv"])],
)
def test_group_norm_alone_comes_before_activation_and_convolution(norm, order):
    block = ConvNorm(3, 4, 6, 3, norm=norm)
    assert [name for name, _ in block.named_children()] == order
    assert list(dict(block.named_modules())) == ["", *order]


def test_conv_norm_has_no_bias_and_instance_norm_no_parameters():
    names = [name for name, _ in ConvNorm(3, 4, 6, 3).named_parameters()]
    assert names == ["conv.weight", "act.weight"]
    assert [name for name, _ in ConvNorm(3, 4, 6, 3, act=None).named_parameters()] == ["conv.weight"]
    assert ConvNorm(3, 4, 6, 3).act.weight.tolist() == [0.25]


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("norm", ["instance", "batch", "group"])
@pytest.mark.parametrize("act", [("prelu", {"init": 0.25}), "relu"])
@pytest.mark.parametrize("bottleneck", [False, True])
@pytest.mark.parametrize(("in_channels", "out_channels", "stride"), [(8, 8, 1), (8, 6, 1), (8, 8, 2), (8, 12, 2)])
def test_res_block_equals_its_formula(dims, norm, act, bottleneck, in_channels, out_channels, stride):
    block = randomized(ResBlock(dims, in_channels, out_channels, stride, norm, act, bottleneck))
    x = random_input(in_channels, dims)

    def slope(module):
        return 0.0 if act == "relu" else module.weight

    def slope_at_the_end(unit):
        """With group normalization, the last unit has the activation; otherwise, the sum has it."""
        return slope(unit.act if act != "relu" else None) if norm == "group" else None

    if bottleneck:
        first, middle, last = block.body
        assert first.conv.weight.shape == (2, 8, *[1] * dims)
        assert middle.conv.weight.shape == (2, 2, *[3] * dims)
        assert last.conv.weight.shape == (out_channels, 2, *[1] * dims)
        y = conv_norm(x, first, 1, slope(first.act if act != "relu" else None))
        y = conv_norm(y, middle, stride, slope(middle.act if act != "relu" else None))
        y = conv_norm(y, last, 1, slope_at_the_end(last))
    else:
        first, last = block.body
        assert first.conv.weight.shape == (out_channels, in_channels, *[3] * dims)
        assert last.conv.weight.shape == (out_channels, out_channels, *[3] * dims)
        y = conv_norm(x, first, stride, slope(first.act if act != "relu" else None))
        y = conv_norm(y, last, 1, slope_at_the_end(last))
    if in_channels == out_channels and stride == 1:
        assert not list(block.shortcut.parameters())
        shortcut = x
    else:
        assert block.shortcut.conv.weight.shape == (out_channels, in_channels, *[1] * dims)
        shortcut = conv_norm(x, block.shortcut, stride, slope_at_the_end(block.shortcut))
    wanted = y + shortcut
    if norm != "group":
        wanted = activate(wanted, slope(block.act if act != "relu" else None))
    torch.testing.assert_close(block(x), wanted)


@pytest.mark.parametrize(("in_channels", "middle"), [(3, 1), (4, 1), (11, 2), (320, 80)])
def test_bottleneck_has_a_quarter_of_the_input_channels_and_at_least_one(in_channels, middle):
    block = ResBlock(2, in_channels, 5, bottleneck=True)
    assert [layer.conv.out_channels for layer in block.body] == [middle, middle, 5]


@pytest.mark.parametrize(
    ("norm", "channels", "groups"),
    [("group", 32, 8), ("group", 4, 4), ("group", 12, 4), ("group", 7, 1), (("group", {"num_groups": 6}), 9, 3)],
)
def test_group_norm_takes_the_largest_number_of_groups_that_divides(norm, channels, groups):
    assert build_norm(norm, 3, channels).num_groups == groups
    assert is_group_norm(norm)


def test_norm_arguments_reach_the_layer_and_are_not_changed():
    spec = ("group", {"num_groups": 6, "eps": 0.5})
    assert build_norm(spec, 3, 9).eps == 0.5
    assert spec == ("group", {"num_groups": 6, "eps": 0.5})
    assert build_norm(("instance", {"affine": True}), 3, 9).weight.shape == (9,)
    assert not is_group_norm("instance") and not is_group_norm(("batch", {"eps": 1.0}))


def test_resize_is_linear_between_voxel_centers():
    ramp = torch.arange(4, dtype=torch.float64).reshape(1, 1, 4, 1)
    wider = resize_like(ramp, torch.zeros(1, 1, 8, 3))
    # These are the centers of the eight new voxels in units of the old ones, clamped at the ends (align_corners False).
    expected = torch.tensor([0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3], dtype=torch.float64)
    torch.testing.assert_close(wider[0, 0], expected[:, None].expand(8, 3))
    cube = ramp.reshape(1, 1, 1, 4, 1).expand(1, 1, 2, 4, 2)
    torch.testing.assert_close(resize_like(cube, torch.zeros(1, 1, 4, 8, 5))[0, 0, 1, :, 2], expected)
