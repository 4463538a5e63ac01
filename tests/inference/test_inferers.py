# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Whole-volume and flip inference against closed forms."""

import itertools

import pytest
import torch
from functorch.compile import make_boxed_func
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.inferers import SimpleInferer, SlidingWindowInferer
from scripts.inference.inferers import (
    BACKGROUND_LOGIT,
    BrainWindowInferer,
    CompiledInferer,
    FlipInferer,
    WholeVolumeInferer,
)
from scripts.utils.errors import InputError
from torch._dynamo.backends.common import aot_autograd
from torch._inductor.compile_fx import compile_fx, compile_fx_inner

SIZES = st.tuples(*[st.integers(1, 70)] * 3)


@settings(max_examples=30, deadline=None)
@given(SIZES)
def test_whole_volume_is_padded_evenly_to_the_multiple_and_cut_back(size):
    volume = torch.randn(1, 2, *size)
    seen = []

    def network(x):
        seen.append(x)
        return 3 * x

    result = WholeVolumeInferer(16)(volume, network)
    assert torch.equal(result, 3 * volume)
    (given_,) = seen
    assert all(n % 16 == 0 and n >= 32 for n in given_.shape[2:])
    assert all(to - n < 16 or to == 32 for n, to in zip(size, given_.shape[2:], strict=True))
    # Only zeros were added. As many lie before the volume as behind it, or one less.
    before = [(to - n) // 2 for n, to in zip(size, given_.shape[2:], strict=True)]
    inside = (..., *(slice(b, b + n) for b, n in zip(before, size, strict=True)))
    assert torch.equal(given_[inside], volume)
    assert torch.count_nonzero(given_) == torch.count_nonzero(volume)


def ramp(x: torch.Tensor) -> torch.Tensor:
    """A network that is not symmetric, because its logits depend on the position."""
    along = torch.linspace(-2, 3, x.shape[-1]) + torch.linspace(-1, 2, x.shape[2])[:, None, None]
    return x * along + torch.arange(x.shape[1])[:, None, None, None] * along


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("exclusive", [True, False])
def test_flips_do_not_hide_logits_that_are_not_finite(bad, exclusive):
    """The sigmoid of an infinite logit is 1, which is finite."""

    def network(x):
        result = ramp(x)
        result[0, 2, 1, 2, 3] = bad
        return result

    result = FlipInferer(SimpleInferer(), (0,), exclusive)(torch.randn(1, 4, 5, 6, 7), network)
    assert not result[0, 2, 1, 2, 3].isfinite() and not result[0, 2, 3, 2, 3].isfinite()
    assert result[0, :, 2].isfinite().all()


@pytest.mark.parametrize("axes", [(0, 1, 2), (2,), (0, 1), ()])
@pytest.mark.parametrize("exclusive", [True, False])
def test_flips_average_probabilities_over_all_combinations(axes, exclusive):
    volume = torch.randn(1, 4, 5, 6, 7)
    activation = (lambda x: x.softmax(1)) if exclusive else torch.sigmoid
    total, count = torch.zeros_like(volume), 0
    for chosen in itertools.product((False, True), repeat=len(axes)):
        dims = [axis + 2 for axis, flip in zip(axes, chosen, strict=True) if flip]
        total += activation(ramp(volume.flip(dims)).flip(dims))
        count += 1
    result = FlipInferer(SimpleInferer(), axes, exclusive)(volume, ramp)
    assert torch.allclose(activation(result), total / count, atol=1e-5)
    if axes:
        assert not torch.allclose(activation(result), activation(ramp(volume)), atol=1e-2)


def test_flips_of_a_symmetric_network_change_nothing():
    volume = torch.rand(1, 4, 20, 20, 20)
    windows = SlidingWindowInferer(roi_size=(20, 20, 20), overlap=0.5)
    assert torch.allclose(FlipInferer(windows)(volume, torch.square), volume.square(), atol=1e-5)


def test_certain_voxels_stay_finite():
    for exclusive in (True, False):
        result = FlipInferer(exclusive=exclusive)(torch.full((1, 4, 3, 3, 3), -1e4), lambda x: x)
        assert torch.isfinite(result).all()


@pytest.mark.parametrize("axes", [(0, 0), (3,), (-1,)])
def test_axes_that_are_none_are_refused(axes):
    with pytest.raises(InputError, match="name each of 0, 1, 2 once at most"):
        FlipInferer(axes=axes)


@pytest.mark.parametrize("batch", [1, 3])
def test_windows_without_brain_are_not_computed(batch):
    volume = torch.zeros(1, 4, 48, 16, 16)
    volume[:, :, :20] = torch.randn(1, 4, 20, 16, 16)
    seen = []

    def network(windows):
        seen.extend(windows)
        return 2 * windows

    result = BrainWindowInferer(roi_size=(16, 16, 16), sw_batch_size=batch, overlap=0.0)(volume, network)
    # There are three windows, and the third one holds no brain.
    assert len(seen) == 2 and all(bool(window.any()) for window in seen)
    assert torch.allclose(result[:, :, :32], 2 * volume[:, :, :32])
    assert bool((result[:, 1:, 32:] == BACKGROUND_LOGIT).all())
    assert bool((result[:, 0, 32:] == -BACKGROUND_LOGIT).all())


def test_with_brain_everywhere_it_is_monais_sliding_window():
    volume = torch.randn(1, 4, 40, 24, 16)
    settings = {"roi_size": (16, 16, 16), "sw_batch_size": 2, "overlap": 0.5, "mode": "gaussian"}
    assert torch.equal(BrainWindowInferer(**settings)(volume, ramp), SlidingWindowInferer(**settings)(volume, ramp))


def test_an_empty_volume_is_background_without_a_forward():
    inferer = BrainWindowInferer(roi_size=(16, 16, 16), sw_batch_size=1, overlap=0.5)
    result = inferer(torch.zeros(1, 4, 20, 20, 20), None)
    assert result.shape == (1, 4, 20, 20, 20)
    assert not bool((result[:, 1:].sigmoid() >= 0.5).any()) and bool((result.argmax(1) == 0).all())


def small_layer():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv3d(1, 2, 1), torch.nn.PReLU())


@pytest.mark.slow
def test_compiled_gives_what_the_network_gives_and_its_gradients():
    network, x = small_layer(), MetaTensor(torch.randn(1, 1, 4, 4, 4))
    inferer = CompiledInferer()
    found = inferer(x, network)
    assert inferer.enabled and inferer.compiled is not None and type(found) is torch.Tensor
    torch.testing.assert_close(found, network(x.as_tensor()))
    found.square().sum().backward()
    gradients = [parameter.grad.clone() for parameter in network.parameters()]
    network.zero_grad()
    network(x.as_tensor()).square().sum().backward()
    torch.testing.assert_close(gradients, [parameter.grad for parameter in network.parameters()])


def test_where_compiling_fails_one_warning_says_so_and_the_network_works(monkeypatch, caplog):
    def no_compiler(graph, example_inputs):
        raise RuntimeError("no compiler here")

    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda network, **options: compiled(network, backend=no_compiler, **options))
    network, x = small_layer(), torch.randn(1, 1, 4, 4, 4)
    inferer = CompiledInferer()
    for _ in range(2):
        assert torch.equal(inferer(x, network), network(x))
    (warning,) = (record.getMessage() for record in caplog.records if "torch.compile" in record.getMessage())
    assert "no compiler here" in warning and "\n" not in warning


def fail(graph, example_inputs, **options):
    raise RuntimeError("no compiler for gradients here")


def only_forwards(graph, example_inputs):
    """A compiler that takes the graph of a forward as it is, and fails at the graph of the gradient."""

    def take(graph, example_inputs):
        return make_boxed_func(graph.forward)

    return aot_autograd(fw_compiler=take, bw_compiler=fail)(graph, example_inputs)


def only_forwards_by_inductor(graph, example_inputs):
    """torch's own compiler, which is made to fail at the gradient."""

    def inner(graph, example_inputs, **options):
        return (fail if options.get("is_backward") else compile_fx_inner)(graph, example_inputs, **options)

    return compile_fx(graph, example_inputs, inner_compile=inner)


@pytest.mark.slow
@pytest.mark.parametrize("backend", [only_forwards, only_forwards_by_inductor])
def test_where_compiling_the_gradient_fails_the_training_goes_on(backend, monkeypatch, caplog):
    torch.compiler.reset()
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda network, **options: compiled(network, backend=backend, **options))
    network, plain = small_layer(), small_layer()
    optimizers = [torch.optim.SGD(layers.parameters(), lr=0.1) for layers in (network, plain)]
    inferer = CompiledInferer()
    with torch._inductor.config.patch(force_disable_caches=True):
        for seed in range(3):
            x = torch.randn(1, 1, 4, 4, 4, generator=torch.Generator().manual_seed(seed))
            for optimizer, result in zip(optimizers, (inferer(x, network), plain(x)), strict=True):
                optimizer.zero_grad()
                result.square().sum().backward()
                optimizer.step()
            gradients = [[parameter.grad for parameter in layers.parameters()] for layers in (network, plain)]
            assert all(bool(gradient.any()) for gradient in gradients[0])
            torch.testing.assert_close(*gradients)
    (warning,) = (record.getMessage() for record in caplog.records if "torch.compile" in record.getMessage())
    assert "no compiler for gradients here" in warning and not inferer.enabled


def test_an_error_of_the_network_is_not_taken_for_one_of_the_compiler():
    with pytest.raises(RuntimeError, match="channels"):
        CompiledInferer(enabled=False)(torch.randn(1, 2, 4, 4, 4), small_layer())
    inferer = CompiledInferer()
    # The compiler fails first, and then the network says what is wrong.
    with pytest.raises(RuntimeError, match="channels"):
        inferer(torch.randn(1, 2, 4, 4, 4), small_layer())


def triton_error(module, message):
    """An error of a kernel that fails when it is tuned or started, of a package that may be absent here."""
    return type("OutOfResources", (Exception,), {"__module__": module})(message)


@pytest.mark.parametrize(
    "error",
    [
        triton_error("triton.runtime.errors", "out of resource: shared memory"),
        triton_error("torch._inductor.runtime.triton_heuristics", "No valid triton configs."),
        RuntimeError("Triton Error [CUDA]: too many resources requested for launch"),
    ],
)
def test_where_a_kernel_cannot_be_tuned_or_started_the_network_works_without(error, monkeypatch, caplog):
    def broken(*args, **kwargs):
        raise error

    monkeypatch.setattr(torch, "compile", lambda network, **options: broken)
    network, x = small_layer(), torch.randn(1, 1, 4, 4, 4)
    inferer = CompiledInferer()
    assert torch.equal(inferer(x, network), network(x))
    assert not inferer.enabled and str(error) in caplog.text


def test_memory_that_is_short_is_not_taken_for_a_fault_of_the_compiler(monkeypatch):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(torch, "compile", lambda network, **options: full)
    inferer = CompiledInferer()
    with pytest.raises(torch.OutOfMemoryError):
        inferer(torch.randn(1, 1, 4, 4, 4), small_layer())
    assert inferer.enabled


@pytest.mark.parametrize("exclusive", [False, True])
def test_the_disagreement_of_flips_is_their_variance(exclusive):
    """Four flips of a network that knows where it is: by the definition, from all predictions."""
    volume = MetaTensor(torch.rand(2, 4, 4, 6, 8), meta={})
    weight = torch.rand(1, 4, 4, 6, 8)
    network = lambda image: 3 * (image - weight)  # noqa: E731
    FlipInferer(SimpleInferer(), (0, 2), exclusive)(volume, network)
    found = []
    for dims in ([], [2], [4], [2, 4]):
        logits = torch.flip(network(torch.flip(volume.as_tensor(), dims)), dims)
        p = logits.softmax(1)[:, 1:].cumsum(1) if exclusive else logits.sigmoid()[:, 1:]
        found.append(p)
    found = torch.stack(found)
    expected = found.var(0, unbiased=False).flatten(2).sum(2) / found.mean(0).flatten(2).sum(2)
    assert volume.meta["flip_disagreement"] == pytest.approx(expected, rel=1e-4)
    assert volume.meta["flips"].tolist() == [4, 4]
    # Nothing disagrees where flips make no difference.
    still = MetaTensor(torch.rand(1, 4, 4, 4, 4), meta={})
    FlipInferer()(still, torch.nn.Identity())
    assert still.meta["flip_disagreement"].abs().max() < 1e-6
