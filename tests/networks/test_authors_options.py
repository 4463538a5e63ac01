# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The authors' options of normalization, activation and bottlenecks, against a second implementation.

This file implements the authors' network in plain torch layers from a description. It uses the authors' tensor names,
and it also stores the tensors that they store and never use. Another file compares the default network with the
authors' own results.
"""

import itertools

import pytest
import torch
import torch.nn.functional as F
from scripts.networks import PriorAttentionNet
from scripts.weights.authors import convert
from torch import nn


class Unit(nn.Module):
    """Convolution, normalization, activation; group normalization changes the order and always has the activation."""

    def __init__(self, kind, c_in, c_out, kernel, stride=1, active=True):
        super().__init__()
        dims, norm, act = kind
        self.group = norm == "group"
        self.active = active or self.group
        convolution = {2: nn.Conv2d, 3: nn.Conv3d}[dims]
        self.conv = convolution(c_in, c_out, kernel, stride=stride, padding=kernel // 2, bias=False)
        if self.group:
            self.norm = nn.GroupNorm(8, c_in)
        elif norm == "batch":
            self.norm = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[dims](c_out)
        else:
            self.norm = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}[dims](c_out)
        self.act = nn.PReLU(init=0.25) if act == "prelu" else nn.ReLU()

    def forward(self, x):
        if self.group:
            return self.conv(self.act(self.norm(x)))
        x = self.norm(self.conv(x))
        return self.act(x) if self.active else x


class Block(nn.Module):
    """Residual block that stores its shortcut and its last activation even if it does not use them."""

    def __init__(self, kind, c_in, c_out, stride=1, bottleneck=False):
        super().__init__()
        self.group = kind[1] == "group"
        if bottleneck:
            self.conv1 = Unit(kind, c_in, c_in // 4, 1)
            self.conv2 = Unit(kind, c_in // 4, c_in // 4, 3, stride)
            self.conv3 = Unit(kind, c_in // 4, c_out, 1, active=False)
        else:
            self.conv1 = Unit(kind, c_in, c_out, 3, stride)
            self.conv2 = Unit(kind, c_out, c_out, 3, active=False)
            self.conv3 = None
        self.identity = c_in == c_out and stride == 1
        self.identity_mapping = Unit(kind, c_in, c_out, 1, stride, active=False)
        self.act = nn.PReLU(init=0.25) if kind[2] == "prelu" else nn.ReLU()

    def forward(self, x):
        y = self.conv2(self.conv1(x))
        y = self.conv3(y) if self.conv3 is not None else y
        y = y + (x if self.identity else self.identity_mapping(x))
        return y if self.group else self.act(y)


def resized(x, like):
    mode = {4: "bilinear", 5: "trilinear"}[x.dim()]
    return F.interpolate(x, size=like.shape[2:], mode=mode, align_corners=False)


class Head(nn.Module):
    """The attention-guiding head, which always has batch normalization and PReLU."""

    def __init__(self, dims, c3, c4, c5):
        super().__init__()
        kind = (dims, "batch", "prelu")
        self.conv5_4 = Unit(kind, c5, c4, 1)
        self.conv4_0 = Unit(kind, c4, c4, 3)
        self.conv4_3 = Unit(kind, c4, c3, 1)
        self.conv3_0 = Unit(kind, c3, c3, 3)
        self.conv_out = {2: nn.Conv2d, 3: nn.Conv3d}[dims](c3, 1, 1)

    def forward(self, x3, x4, x5):
        y = self.conv4_0(self.conv5_4(resized(x5, x4)) + x4)
        return self.conv_out(self.conv3_0(self.conv4_3(resized(y, x3)) + x3))


class Skip(nn.Module):
    def __init__(self):
        super().__init__()
        self.param = nn.Parameter(torch.ones(1))


class Reference(nn.Module):
    """The whole network with interpolation, attention and deep supervision."""

    def __init__(self, dims, norm, act, channels, bottleneck=False):
        super().__init__()
        kind = (dims, norm, act)
        convolution = {2: nn.Conv2d, 3: nn.Conv3d}[dims]
        self.backbone = nn.Module()
        for i, (c_in, c_out) in enumerate(itertools.pairwise((4, *channels))):
            if i == 0 and norm == "group":
                block = nn.Sequential(convolution(c_in, c_out, 3, padding=1), nn.ReLU())
            else:
                block = Block(kind, c_in, c_out, 1 if i == 0 else 2, bottleneck)
            self.backbone.add_module(f"conv{i}_0", block)
        self.one_stage = Head(dims, *channels[2:])
        self.conv_down = convolution(1, 1, 3, stride=2)
        for i, name in zip((3, 2, 1, 0), ("conv3_1", "conv2_2", "conv1_3", "conv0_4"), strict=True):
            self.add_module(name, Block(kind, channels[i] + channels[i + 1], channels[i], 1, bottleneck))
            self.add_module(f"skip_{i}", Skip())
            self.add_module(f"convds{i}", convolution(channels[i], 4, 1))

    def forward(self, x):
        features = [x]
        for i in range(5):
            features.append(self.backbone.get_submodule(f"conv{i}_0")(features[-1]))
        _, x0, x1, x2, x3, x4 = features
        prior = self.one_stage(x2, x3, x4)
        attention = torch.sigmoid(prior)
        weights = [resized(attention, x0), resized(attention, x1), attention, resized(self.conv_down(attention), x3)]
        maps = {"prior": resized(prior, x)}
        deep = x4
        for i, name in zip((3, 2, 1, 0), ("conv3_1", "conv2_2", "conv1_3", "conv0_4"), strict=True):
            skip = (self.get_submodule(f"skip_{i}").param + weights[i]) * (x0, x1, x2, x3)[i]
            deep = self.get_submodule(name)(torch.cat([skip, resized(deep, skip)], dim=1))
            maps[f"level{i}" if i else "out"] = resized(self.get_submodule(f"convds{i}")(deep), x)
        return maps


def randomized(network, seed=0):
    """Move every parameter and statistic away from its initial value, in double precision, with moderate features."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in network.state_dict().items():
        if value.is_floating_point():
            drawn = torch.rand(value.shape, generator=generator)
            if value.dim() > 1:
                value.copy_((2 * drawn - 1) / value[0].numel() ** 0.5)
            else:
                value.copy_(drawn + 0.3 if name.endswith(("norm.weight", "running_var", "param")) else drawn - 0.4)
    return network.double()


SMALL = (8, 16, 24, 16, 32)
# A bottleneck has a quarter of its block's input channels, which must be a multiple of the eight groups.
SMALL_BOTTLENECK = (32, 64, 32, 64, 96)
OPTIONS = [
    (dims, *options)
    for dims, norms in ((2, ("group", "instance", "batch")), (3, ("group",)))
    for options in itertools.product(norms, ("prelu", "relu"), (False, True))
]


@pytest.mark.parametrize(("dims", "norm", "act", "bottleneck"), OPTIONS)
def test_outputs_and_gradients_are_those_of_the_second_implementation(dims, norm, act, bottleneck):
    channels = SMALL_BOTTLENECK if bottleneck else SMALL
    theirs = randomized(Reference(dims, norm, act, channels, bottleneck))
    ours, dropped = convert(theirs.state_dict())
    ours.double()
    kind = [norm, act, bottleneck]
    x = torch.randn(2, 4, *[32, 16, 16][:dims], generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def assert_same(found, wanted):
        for name, values in wanted.items():
            assert (found[name] - values).abs().max() <= 1e-5 * values.abs().max(), (*kind, name)
            assert values.std() > 1e-3

    with torch.no_grad():
        assert_same(ours.eval().predict_all(x), theirs.eval()(x))
    assert_same(found := ours.train()(x), wanted := theirs.train()(x))
    assert sorted(found) == sorted(wanted)
    for maps in (found, wanted):
        sum(values.square().mean() for values in maps.values()).backward()
    # The import drops exactly the tensors that the second implementation stores and never reads.
    parameters = dict(theirs.named_parameters())
    assert {name for name in dropped if name in parameters} == {n for n, p in parameters.items() if p.grad is None}
    norms = [
        torch.stack([p.grad.norm() for p in network.parameters() if p.grad is not None]).sort().values
        for network in (ours, theirs)
    ]
    torch.testing.assert_close(*norms, rtol=1e-5, atol=1e-12)


def test_the_full_network_with_group_norm_has_the_authors_parameters_but_for_eight_dead_slopes():
    theirs = Reference(3, "group", "prelu", (32, 64, 128, 256, 320))
    assert sum(p.numel() for p in theirs.parameters()) == 19_213_493
    ours, dropped = convert(theirs.state_dict())
    count = sum(p.numel() for p in ours.parameters())
    assert count == sum(p.numel() for p in PriorAttentionNet(norm="group").parameters()) == 19_213_493 - 8
    blocks = [*(f"backbone.conv{i}_0" for i in range(1, 5)), "conv3_1", "conv2_2", "conv1_3", "conv0_4"]
    assert sorted(dropped) == sorted(f"{block}.act.weight" for block in blocks)


@pytest.mark.parametrize("head", ["fcn", "parallel"])
@pytest.mark.parametrize("norm", ["instance", "group"])
def test_the_head_keeps_prelu_where_the_rest_has_relu(norm, head):
    network = PriorAttentionNet(2, channels=SMALL, norm=norm, act="relu", head=head)
    slopes = {name: module for name, module in network.named_modules() if isinstance(module, nn.PReLU)}
    assert len(slopes) == {"fcn": 4, "parallel": 5}[head]
    assert all(name.startswith("head.") and module.weight.tolist() == [0.25] for name, module in slopes.items())
    other = PriorAttentionNet(2, channels=SMALL, norm=norm, head=head, head_act="relu")
    assert not any(isinstance(module, nn.PReLU) for module in other.head.modules())
