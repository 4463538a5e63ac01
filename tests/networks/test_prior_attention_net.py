# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The whole network: the authors' numbers, the published graph, gradients, refusals and deployment forms."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scripts.networks import PriorAttentionNet
from scripts.weights.authors import convert
from tiny import GOLDEN, golden_input

MAPS = ("out", "level1", "level2", "level3", "prior")
GOLDEN_NAME = {"out": "out", "level1": "level1", "level2": "level2", "level3": "level3", "prior": "stage1"}
SMALL = (4, 8, 8, 12, 16)
SMALL_SIZE = {2: (32, 48), 3: (32, 32, 48)}
PLAIN = {"prior_attention": False, "deep_supervision": False}


def golden_network(head):
    checkpoint = torch.load(GOLDEN / f"panet_{head}_checkpoint.pkl", weights_only=True)
    network, _ = convert(checkpoint["net"])
    return network


def small_network(dims=3, seed=0, **switches):
    torch.manual_seed(seed)
    return PriorAttentionNet(spatial_dims=dims, channels=SMALL, **switches)


def small_input(dims=3, batch=1, seed=1):
    return torch.randn(batch, 4, *SMALL_SIZE[dims], generator=torch.Generator().manual_seed(seed))


def spread_skip_weights(network):
    """Set the skip weights apart from each other and from 1, so that a missing or exchanged one changes the result."""
    for level, weight in zip(network.decoder, (0.3, -0.7, 1.6, 0.1), strict=True):
        level.skip_weight.data.fill_(weight)


# The authors' numbers.


@pytest.mark.parametrize("head", ["fcn", "parallel"])
def test_evaluation_maps_are_those_of_the_authors(head, device):
    network = golden_network(head).eval().to(device)
    expected = np.load(GOLDEN / f"panet_{head}.npz")
    with torch.no_grad():
        maps = network.predict_all(golden_input().to(device))
        out = network(golden_input().to(device))
    assert tuple(maps) == MAPS
    for name, values in maps.items():
        wanted = expected[f"eval_{GOLDEN_NAME[name]}"]
        ours = values[..., ::2, ::2, ::2].cpu().numpy()
        assert ours.shape == wanted.shape
        assert np.abs(ours - wanted).max() < 1e-4 * np.abs(wanted).max(), name
    assert torch.equal(out, maps["out"])


@pytest.mark.parametrize("head", ["fcn", "parallel"])
def test_training_maps_and_gradients_are_those_of_the_authors(head, device):
    network = golden_network(head).train().to(device)
    expected = np.load(GOLDEN / f"panet_{head}.npz")
    maps = network(golden_input().to(device))
    means = torch.stack([maps[name].square().mean() for name in MAPS])
    means.sum().backward()
    np.testing.assert_allclose(means.detach().cpu().numpy(), expected["train_mean_of_squares"], rtol=1e-4)
    ours = (
        "encoder.0.body.0.conv.weight",
        "decoder.3.skip_weight",
        "decoder.0.skip_weight",
        "prior_downsample.weight",
        "outputs.3.weight",
        "head.output.weight",
    )
    norms = [float(network.get_parameter(name).grad.norm()) for name in ours]
    np.testing.assert_allclose(norms, expected["grad_norms"], rtol=1e-4)


# Parameters.


def expected_parameters(dims, channels, head, upsample, attention, supervision):
    """Count the parameters by the paper's layer table: convolutions have no bias, and each activation has one slope."""

    def conv_norm(c_in, c_out, kernel, active=True):
        return c_in * c_out * kernel**dims + active

    def block(c_in, c_out, resized):
        shortcut = conv_norm(c_in, c_out, 1, False) if resized or c_in != c_out else 0
        return conv_norm(c_in, c_out, 3) + conv_norm(c_out, c_out, 3, False) + shortcut + 1

    total = 0
    for level, (c_in, c_out) in enumerate(itertools.pairwise((4, *channels))):
        total += block(c_in, c_out, level > 0)
    for deep, skip in itertools.pairwise(reversed(channels)):
        total += block(deep + skip, skip, False)
        if upsample == "deconv":
            total += deep * deep * 3**dims + deep
    total += sum(4 * c + 4 for c in (channels[:4] if supervision else channels[:1]))
    if attention:
        _, _, c2, c3, c4 = channels
        half = c2 // 2
        layers = {
            "fcn": [(c4, c3, 1), (c3, c3, 3), (c3, c2, 1), (c2, c2, 3)],
            "parallel": [(c2, half, 1), (c3, half, 1), (c4, half, 1), (2 * half, half, 3), (2 * half, half, 3)],
        }[head]
        # Batch normalization adds a weight and a bias for each feature map.
        total += sum(conv_norm(*layer) + 2 * layer[1] for layer in layers)
        total += (c2 if head == "fcn" else 3 * half) + 1
        total += 3**dims + 1 + 4
    return total


def test_full_size_has_the_authors_parameters_without_their_18_dead_slopes():
    count = sum(p.numel() for p in PriorAttentionNet().parameters())
    assert count == 19_231_833 - 18
    assert count == expected_parameters(3, (32, 64, 128, 256, 320), "fcn", "interpolate", True, True)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("head", ["fcn", "parallel"])
@pytest.mark.parametrize("upsample", ["interpolate", "deconv"])
@pytest.mark.parametrize("attention", [True, False])
@pytest.mark.parametrize("supervision", [True, False])
def test_parameter_count_follows_from_the_layer_table(dims, head, upsample, attention, supervision):
    network = small_network(dims, head=head, upsample=upsample, prior_attention=attention, deep_supervision=supervision)
    wanted = expected_parameters(dims, SMALL, head, upsample, attention, supervision)
    assert sum(p.numel() for p in network.parameters()) == wanted


VARIATIONS = [
    {"head": head, "prior_attention": attention, "deep_supervision": supervision}
    for head, attention, supervision in itertools.product(["fcn", "parallel"], [True, False], [True, False])
    if attention or head == "fcn"
] + [
    {"head": head, **switch}
    for head in ("fcn", "parallel")
    for switch in (
        {"upsample": "deconv"},
        {"norm": "batch"},
        {"norm": "group"},
        {"norm": ("group", {"num_groups": 2}), "head_norm": "group"},
        {"head_norm": "instance"},
        {"act": "relu"},
        {"bottleneck": True},
        {"upsample": "deconv", "norm": "group", "act": "relu", "bottleneck": True},
    )
]


def variation_name(switches):
    return ",".join(f"{name}={value}" for name, value in switches.items())


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("switches", VARIATIONS, ids=variation_name)
def test_every_parameter_learns_when_every_map_is_supervised(dims, switches):
    network = small_network(dims, **switches).train()
    maps = network(small_input(dims, batch=2))
    sum(values.square().mean() for values in maps.values()).backward()
    norms = {name: p.grad.norm().item() if p.grad is not None else None for name, p in network.named_parameters()}
    assert not [name for name, norm in norms.items() if norm is None or not np.isfinite(norm) or norm == 0.0]


@pytest.mark.parametrize("switches", VARIATIONS, ids=variation_name)
def test_no_module_is_registered_twice_and_no_parameter_shared(switches):
    network = small_network(**switches)
    modules = [module for _, module in network.named_modules(remove_duplicate=False)]
    assert len({id(module) for module in modules}) == len(modules)
    tensors = [t for _, t in network.named_parameters(remove_duplicate=False)]
    assert len({t.data_ptr() for t in tensors}) == len(tensors)
    assert len(network.state_dict()) == len(tensors) + len(list(network.buffers()))


def test_skip_weights_begin_at_one():
    assert [level.skip_weight.tolist() for level in small_network().decoder] == [[1.0]] * 4


@pytest.mark.parametrize(("widest", "kernels"), [(320, [3, 3]), (321, [1, 3, 1])])
def test_networks_wider_than_320_are_built_of_bottlenecks(widest, kernels):
    network = PriorAttentionNet(2, channels=(4, 4, 4, 4, widest))
    for block in [*network.encoder, *(level.block for level in network.decoder)]:
        assert [layer.conv.kernel_size[0] for layer in block.body] == kernels
    assert len(PriorAttentionNet(2, channels=(4, 4, 4, 4, widest), bottleneck=False).encoder[0].body) == 2


# The graph.


def resized(x, like):
    mode = {2: "bilinear", 3: "trilinear"}[x.dim() - 2]
    return F.interpolate(x, size=like.shape[2:], mode=mode, align_corners=False)


def doubled(x):
    mode = {2: "bilinear", 3: "trilinear"}[x.dim() - 2]
    return F.interpolate(x, scale_factor=2, mode=mode, align_corners=False)


def published_graph(network, x, head, deconv=False):
    """Run the paper's forward pass with the network's blocks; ``head`` is None without attention."""
    x0 = network.encoder[0](x)
    x1 = network.encoder[1](x0)
    x2 = network.encoder[2](x1)
    x3 = network.encoder[3](x2)
    x4 = network.encoder[4](x3)
    skips = [x3, x2, x1, x0]
    maps = {}
    if head is not None:
        parts = network.head
        if head == "fcn":
            f3 = parts.fuse3(parts.reduce4(resized(x4, x3)) + x3)
            logits = parts.output(parts.fuse2(parts.reduce3(resized(f3, x2)) + x2))
        else:
            f3, f4, f5 = parts.reduce2(x2), parts.reduce3(resized(x3, x2)), parts.reduce4(resized(x4, x2))
            l4 = parts.join_deep(torch.cat([f4, f5], 1))
            l3 = parts.join_shallow(torch.cat([f3, l4], 1))
            logits = parts.output(torch.cat([l3, l4, f5], 1))
        a = 1 / (1 + torch.exp(-logits))
        convolution = {2: F.conv2d, 3: F.conv3d}[x.dim() - 2]
        down = convolution(a, network.prior_downsample.weight, network.prior_downsample.bias, stride=2, padding=0)
        attention = [resized(down, x3), a, resized(a, x1), resized(a, x0)]
        weights = [level.skip_weight for level in network.decoder]
        skips = [(p + a_i) * x_i for p, a_i, x_i in zip(weights, attention, skips, strict=True)]
        maps["prior"] = resized(logits, x)
    deep, decoded = x4, []
    for level, skip in zip(network.decoder, skips, strict=True):
        upsampled = level.upsample(deep) if deconv else doubled(deep)
        deep = level.block(torch.cat([skip, upsampled], 1))
        decoded.append(deep)
    maps["out"] = resized(network.outputs[-1](decoded[3]), x)
    if len(network.outputs) == 4:
        maps |= {f"level{i}": resized(network.outputs[3 - i](decoded[3 - i]), x) for i in (1, 2, 3)}
    return maps


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("deconv", [False, True])
@pytest.mark.parametrize("head", ["fcn", "parallel", None])
def test_maps_follow_the_published_graph(dims, deconv, head):
    network = small_network(
        dims, head=head or "fcn", prior_attention=head is not None, upsample="deconv" if deconv else "interpolate"
    ).train()
    if head is not None:
        spread_skip_weights(network)
    x = small_input(dims)
    with torch.no_grad():
        ours, wanted = network(x), published_graph(network, x, head, deconv)
    assert sorted(ours) == sorted(wanted)
    for name, values in wanted.items():
        torch.testing.assert_close(ours[name], values, rtol=1e-5, atol=1e-5)


def test_published_graph_follows_the_strides():
    torch.manual_seed(0)
    network = PriorAttentionNet(3, channels=SMALL, strides=(1, 2, 2, 2, 2), in_channels=2, out_channels=3).eval()
    x = torch.randn(1, 2, 48, 16, 32)
    with torch.no_grad():
        ours, wanted = network.predict_all(x), published_graph(network, x, "fcn")
    assert ours["out"].shape == (1, 3, 48, 16, 32)
    for name, values in wanted.items():
        torch.testing.assert_close(ours[name], values, rtol=1e-5, atol=1e-5)


def test_transposed_convolution_keeps_channels_and_doubles_the_size():
    for level, deep in zip(small_network(upsample="deconv").decoder, SMALL[:0:-1], strict=True):
        layer = level.upsample
        assert isinstance(layer, torch.nn.ConvTranspose3d)
        assert (layer.in_channels, layer.out_channels) == (deep, deep)
        assert (layer.kernel_size, layer.stride) == ((3, 3, 3), (2, 2, 2))
        assert (layer.padding, layer.output_padding) == ((1, 1, 1), (1, 1, 1))
        assert layer.bias is not None


def test_a_prior_of_nothing_leaves_the_skip_connections_to_their_weights():
    """With p = 1, a prior of 0 everywhere, and no a3, the network is the enhanced U-Net."""
    network, plain = small_network(), small_network(prior_attention=False)
    plain.load_state_dict({k: v for k, v in network.state_dict().items() if k in plain.state_dict()})
    torch.nn.init.zeros_(network.head.output.weight)
    torch.nn.init.constant_(network.head.output.bias, -200.0)
    torch.nn.init.zeros_(network.prior_downsample.bias)
    x = small_input()
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(x), plain.eval()(x))
        # A prior of 1 everywhere doubles the three finer skip connections instead.
        torch.nn.init.constant_(network.head.output.bias, 200.0)
        torch.nn.init.zeros_(network.prior_downsample.weight)
        surely = network(x)
        for level in plain.decoder[1:]:
            level.register_forward_pre_hook(lambda _, inputs: (inputs[0], 2 * inputs[1], inputs[2]))
        torch.testing.assert_close(surely, plain(x))
        assert not torch.allclose(surely, small_network(prior_attention=False).eval()(x))


# Outputs.


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(
    ("attention", "supervision", "names"),
    [
        (True, True, ["out", "level1", "level2", "level3", "prior"]),
        (True, False, ["out", "prior"]),
        (False, True, ["out", "level1", "level2", "level3"]),
        (False, False, ["out"]),
    ],
)
def test_training_gives_named_maps_and_evaluation_one_tensor(dims, attention, supervision, names):
    network = small_network(dims, prior_attention=attention, deep_supervision=supervision)
    x = small_input(dims)
    with torch.no_grad():
        maps = network.train()(x)
        assert list(maps) == names
        assert {name: tuple(m.shape) for name, m in maps.items()} == {
            name: (1, 1 if name == "prior" else 4, *SMALL_SIZE[dims]) for name in names
        }
        out = network.eval()(x)
        assert isinstance(out, torch.Tensor)
        torch.testing.assert_close(out, network.predict_all(x)["out"], rtol=0, atol=0)


# Refusals.


@pytest.mark.parametrize(
    ("dims", "shape", "said"),
    [
        (3, (1, 4, 32, 32, 40), ["multiple of 16", "at least 32", "[32, 32, 40]", "Pad"]),
        (3, (1, 4, 24, 32, 32), ["multiple of 16", "[24, 32, 32]"]),
        (3, (1, 4, 16, 16, 16), ["at least 32", "[16, 16, 16]"]),
        (3, (1, 3, 32, 32, 32), ["4 channels", "3 spatial dimensions", "[1, 3, 32, 32, 32]"]),
        (3, (1, 4, 32, 32), ["4 channels", "3 spatial dimensions", "[1, 4, 32, 32]"]),
        (3, (1, 4, 32, 0, 32), ["multiple of 16", "[32, 0, 32]"]),
        (2, (1, 4, 32, 40), ["multiple of 16", "[32, 40]"]),
        (2, (1, 4, 16, 16), ["at least 32", "[16, 16]"]),
        (2, (1, 4, 32, 32, 32), ["2 spatial dimensions", "[1, 4, 32, 32, 32]"]),
    ],
)
@pytest.mark.parametrize("form", ["training", "evaluation", "script"])
def test_inputs_it_cannot_take_are_refused_with_rule_and_size(dims, shape, said, form):
    network = small_network(dims).train(form == "training")
    if form == "script":
        network = torch.jit.script(network)
    with pytest.raises(Exception) as caught, torch.no_grad():
        network(torch.zeros(shape))
    assert form == "script" or isinstance(caught.value, ValueError)
    for words in said:
        assert words in str(caught.value)


@pytest.mark.parametrize(("dims", "size"), [(3, (32, 16, 16)), (3, (16, 16, 48)), (2, (16, 32))])
def test_one_side_of_two_bottleneck_voxels_is_enough(dims, size):
    network = small_network(dims)
    with torch.no_grad():
        for mode in (True, False):
            values = network.train(mode)(torch.randn(1, 4, *size))
            assert all(torch.isfinite(v).all() for v in (values.values() if mode else [values]))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"spatial_dims": 1}, ["spatial_dims", "2 or 3", "1"]),
        ({"channels": (8, 8, 8, 8)}, ["channels", "five", "(8, 8, 8, 8)"]),
        ({"strides": (1, 2, 2)}, ["strides", "five", "(1, 2, 2)"]),
        ({"upsample": "nearest"}, ["upsample", "interpolate", "deconv", "nearest"]),
        ({"head": "unet"}, ["head", "fcn", "parallel", "unet"]),
    ],
)
def test_wrong_arguments_are_refused_with_what_is_possible(arguments, said):
    with pytest.raises(ValueError) as caught:
        PriorAttentionNet(**arguments)
    for words in said:
        assert words in str(caught.value)


# Deployment forms.


def deployed(network, x):
    """Yield the outputs of the three forms in which the network can leave Python."""
    yield "script", torch.jit.script(network)(x)
    yield "trace", torch.jit.trace(network, x, check_trace=False)(x)
    yield "export", torch.export.export(network, (x,)).module()(x)


def assert_all_forms_equal_eager(network, x):
    network.eval()
    with torch.no_grad():
        eager = network(x)
        assert eager.std() > 1e-3
        for form, values in deployed(network, x):
            assert isinstance(values, torch.Tensor), form
            torch.testing.assert_close(values, eager, rtol=1e-5, atol=1e-5, msg=lambda m, form=form: f"{form}: {m}")


@pytest.mark.slow
@pytest.mark.parametrize(
    "switches",
    [{"head": "fcn"}, {"head": "parallel"}, PLAIN, {"upsample": "deconv"}],
    ids=["fcn", "parallel", "plain", "deconv"],
)
def test_full_width_3d_gives_the_same_scripted_traced_and_exported(switches):
    torch.manual_seed(0)
    x = torch.randn(1, 4, 64, 48, 80)
    assert_all_forms_equal_eager(PriorAttentionNet(**switches), x)


@pytest.mark.parametrize(
    "switches",
    [{"head": "fcn"}, {"head": "parallel"}, PLAIN, {"upsample": "deconv"}],
    ids=["fcn", "parallel", "plain", "deconv"],
)
def test_full_width_2d_gives_the_same_scripted_traced_and_exported(switches):
    torch.manual_seed(0)
    x = torch.randn(1, 4, 64, 48)
    assert_all_forms_equal_eager(PriorAttentionNet(spatial_dims=2, **switches), x)


# A switch outside the head works alike with both heads, so it is tested with one; combinations are tested with both.
DEPLOYED = [v for v in VARIATIONS if v["head"] == "fcn" or "prior_attention" in v or "head_norm" in v or len(v) > 2]


@pytest.mark.parametrize("switches", DEPLOYED, ids=variation_name)
def test_every_switch_gives_the_same_scripted_traced_and_exported(switches):
    assert_all_forms_equal_eager(small_network(2, **switches), small_input(2))


def test_a_script_takes_other_sizes_than_the_one_it_was_first_run_with():
    network = small_network().eval()
    scripted = torch.jit.script(network)
    with torch.no_grad():
        for size in [(32, 32, 48), (48, 32, 16), (32, 48, 32)]:
            x = torch.randn(1, 4, *size)
            torch.testing.assert_close(scripted(x), network(x), rtol=1e-5, atol=1e-5)


def test_a_script_made_in_training_mode_gives_one_tensor_too():
    network = small_network().train()
    assert isinstance(torch.jit.script(network)(small_input()), torch.Tensor)


def test_batches_are_segmented_case_by_case_in_evaluation():
    network = small_network().eval()
    x = small_input(batch=2)
    with torch.no_grad():
        together = network(x)
        torch.testing.assert_close(together, torch.cat([network(x[:1]), network(x[1:])]), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(together[0], together[1])
