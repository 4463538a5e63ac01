# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Whole-volume and flip inference against closed forms."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.inferers import SimpleInferer, SlidingWindowInferer
from scripts.errors import InputError
from scripts.inferers import FlipInferer, WholeVolumeInferer

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
    # Nothing but zeros was added, as many before as after, or one less.
    before = [(to - n) // 2 for n, to in zip(size, given_.shape[2:], strict=True)]
    inside = (..., *(slice(b, b + n) for b, n in zip(before, size, strict=True)))
    assert torch.equal(given_[inside], volume)
    assert torch.count_nonzero(given_) == torch.count_nonzero(volume)


def ramp(x: torch.Tensor) -> torch.Tensor:
    """A network that is not symmetric: logits that depend on the position."""
    along = torch.linspace(-2, 3, x.shape[-1]) + torch.linspace(-1, 2, x.shape[2])[:, None, None]
    return x * along + torch.arange(x.shape[1])[:, None, None, None] * along


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
