# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The deep-supervision loss equals closed forms in double precision."""

import numpy as np
import pytest
import torch
from monai.losses import DiceCELoss
from scripts.training.losses import PriorAttentionLoss

NAMES = ("out", "level1", "level2", "level3", "prior")
SMOOTH = 1e-5


def overlapping_target(batch=2, size=(5, 6, 7), seed=0):
    """Make a target of background, ET, TC and WT; each region lies within the next one, and all are present."""
    rng = np.random.default_rng(seed)
    depth = rng.integers(0, 4, (batch, *size))
    return np.stack([depth == 0, depth == 3, depth >= 2, depth >= 1], axis=1).astype(np.float64)


def logit_maps(target, seed=1, scale=3.0):
    rng = np.random.default_rng(seed)
    maps = {name: rng.normal(0, scale, target.shape) for name in NAMES}
    maps["prior"] = maps["prior"][:, :1]
    return maps


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def dice(logits, target):
    axes = tuple(range(2, logits.ndim))
    p = sigmoid(logits)
    overlap, size = (p * target).sum(axes), (p**2).sum(axes) + (target**2).sum(axes)
    return np.mean(1 - (2 * overlap + SMOOTH) / (size + SMOOTH))


def binary_cross_entropy(logits, target):
    p = sigmoid(logits)
    return np.mean(-target * np.log(p) - (1 - target) * np.log(1 - p))


def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def authors_cross_entropy(logits, target):
    smallest_region = np.where(target[:, 1] > 0, 1, np.where(target[:, 2] > 0, 2, np.where(target[:, 3] > 0, 3, 0)))
    return -np.mean(np.take_along_axis(log_softmax(logits), smallest_region[:, None], axis=1))


def to_torch(value, dtype=torch.float32):
    if isinstance(value, dict):
        return {name: torch.as_tensor(v, dtype=dtype) for name, v in value.items()}
    return torch.as_tensor(value, dtype=dtype)


@pytest.mark.parametrize("size", [(5, 6, 7), (9, 11)])
def test_exclusive_form_is_that_of_monai_on_the_rings_between_the_regions(size):
    """The softmax is over background, ET, TC without ET, and WT without TC; the prior stays one region."""
    target = to_torch(overlapping_target(size=size))
    maps = to_torch(logit_maps(overlapping_target(size=size)))
    rings = torch.stack([target[:, 0], target[:, 1], target[:, 2] - target[:, 1], target[:, 3] - target[:, 2]], dim=1)
    assert torch.equal(rings.sum(1), torch.ones_like(rings[:, 0]))
    monai = DiceCELoss(softmax=True, squared_pred=True)
    wanted = sum(monai(maps[name], rings) for name in NAMES[:4])
    whole = target[:, 3:].numpy().astype(np.float64)
    prior = maps["prior"].numpy().astype(np.float64)
    wanted += dice(prior, whole) + binary_cross_entropy(prior, whole)
    loss = PriorAttentionLoss(exclusive=True)(maps, target)
    assert float(loss) == pytest.approx(float(wanted), rel=1e-5)
    assert float(loss) != pytest.approx(float(PriorAttentionLoss()(maps, target)), rel=1e-2)


@pytest.mark.parametrize("size", [(5, 6, 7), (9, 11)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bool])
def test_binary_form_is_dice_and_cross_entropy_of_each_overlapping_region(size, dtype):
    target = overlapping_target(size=size)
    maps = logit_maps(target)
    whole = target[:, 3:]
    wanted = sum(dice(maps[n], target) + binary_cross_entropy(maps[n], target) for n in NAMES[:4])
    wanted += dice(maps["prior"], whole) + binary_cross_entropy(maps["prior"], whole)
    loss = PriorAttentionLoss()(to_torch(maps), to_torch(target, dtype))
    assert loss.shape == ()
    assert float(loss) == pytest.approx(wanted, rel=1e-5)


def test_monai_dice_ce_takes_a_softmax_here_and_would_not_pass():
    target = overlapping_target()
    logits = logit_maps(target)["out"]
    # MONAI's sigmoid=True concerns the Dice term only. The cross-entropy takes a softmax. There, targets that sum to up
    # to 3 give voxels of ET three times the weight.
    softmax_form = dice(logits, target) - np.mean((target * log_softmax(logits)).sum(axis=1))
    binary_form = dice(logits, target) + binary_cross_entropy(logits, target)
    theirs = float(DiceCELoss(sigmoid=True, squared_pred=True)(to_torch(logits), to_torch(target)))
    ours = float(PriorAttentionLoss()(to_torch(logits), to_torch(target)))
    assert theirs == pytest.approx(softmax_form, rel=1e-5)
    assert ours == pytest.approx(binary_form, rel=1e-5)
    assert abs(theirs - ours) > 0.5


def test_perfect_overlapping_prediction_costs_nothing_in_the_binary_form_only():
    target = overlapping_target()
    logits = to_torch((2 * target - 1) * 20)
    assert float(PriorAttentionLoss()(logits, to_torch(target))) < 1e-5
    assert float(PriorAttentionLoss(cross_entropy="authors")(logits, to_torch(target))) > 0.2


@pytest.mark.parametrize("size", [(5, 6, 7), (9, 11)])
def test_authors_form_takes_each_voxels_smallest_region_and_no_cross_entropy_of_the_prior(size):
    target = overlapping_target(size=size)
    maps = logit_maps(target)
    loss = PriorAttentionLoss(cross_entropy="authors")
    total = loss(to_torch(maps), to_torch(target))
    wanted = {n: dice(maps[n], target) + authors_cross_entropy(maps[n], target) for n in NAMES[:4]}
    wanted["prior"] = dice(maps["prior"], target[:, 3:])
    assert {n: float(t) for n, t in loss.last_terms.items()} == pytest.approx(wanted, rel=1e-5)
    assert float(total) == pytest.approx(sum(wanted.values()), rel=1e-5)


@pytest.mark.parametrize("form", ["binary", "authors"])
def test_weights_multiply_the_terms_of_their_maps(form):
    target = overlapping_target()
    maps = to_torch(logit_maps(target))
    plain = PriorAttentionLoss(cross_entropy=form)
    plain(maps, to_torch(target))
    weights = dict(zip(NAMES, (2.0, 0.5, 0.25, 0.0, 3.0), strict=True))
    weighted = PriorAttentionLoss([weights[n] for n in NAMES[:4]], weights["prior"], form)
    total = weighted(maps, to_torch(target))
    wanted = {n: weights[n] * float(t) for n, t in plain.last_terms.items()}
    assert {n: float(t) for n, t in weighted.last_terms.items()} == pytest.approx(wanted)
    assert float(total) == pytest.approx(sum(wanted.values()))


@pytest.mark.parametrize("form", ["binary", "authors"])
@pytest.mark.parametrize("names", [NAMES, NAMES[:4], ("out", "prior"), ("out",)])
def test_last_terms_are_those_of_the_maps_given_and_sum_to_the_total(form, names):
    target = overlapping_target()
    maps = {n: v.requires_grad_() for n, v in to_torch(logit_maps(target)).items() if n in names}
    loss = PriorAttentionLoss(cross_entropy=form)
    total = loss(maps, to_torch(target))
    assert tuple(loss.last_terms) == names
    assert float(sum(loss.last_terms.values())) == pytest.approx(float(total.detach()))
    assert all(float(t) > 0.1 and not t.requires_grad for t in loss.last_terms.values())


def test_a_tensor_counts_as_out():
    target = to_torch(overlapping_target())
    logits = to_torch(logit_maps(overlapping_target()))["out"]
    loss = PriorAttentionLoss((0.7, 9, 9, 9), 9)
    assert float(loss(logits, target)) == float(loss({"out": logits}, target)) > 0


def test_prior_is_compared_with_the_whole_tumor():
    target = overlapping_target()
    prior, tumor = logit_maps(target)["prior"], target[:, 3:]
    loss = PriorAttentionLoss()({"prior": to_torch(prior)}, to_torch(target))
    assert float(loss) == pytest.approx(dice(prior, tumor) + binary_cross_entropy(prior, tumor), rel=1e-5)


@pytest.mark.parametrize("form", ["binary", "authors"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_logits_give_the_value_and_gradients_of_full_precision(form, dtype):
    """The patch has 2^18 voxels, a sum that 16 bits cannot hold."""
    target = to_torch(overlapping_target(1, (64, 64, 64)))
    maps = to_torch(logit_maps(overlapping_target(1, (64, 64, 64))), dtype)
    low = {n: v.clone().requires_grad_() for n, v in maps.items()}
    full = {n: v.float().requires_grad_() for n, v in maps.items()}
    loss = PriorAttentionLoss(cross_entropy=form)
    value, wanted = loss(low, target), loss(full, target)
    assert value.dtype == torch.float32 and float(value) == float(wanted)
    # The loss is scaled as by a GradScaler, because 16 bits cannot resolve the share of a single voxel.
    (value * 2**16).backward()
    (wanted * 2**16).backward()
    for name in NAMES:
        assert low[name].grad.dtype == dtype
        assert torch.equal(low[name].grad, full[name].grad.to(dtype))
        assert torch.isfinite(low[name].grad).all() and low[name].grad.abs().max() > 0


@pytest.mark.parametrize("form", ["binary", "authors"])
@pytest.mark.parametrize("extreme", [-500.0, 500.0, 0.0])
@pytest.mark.parametrize("filled", [0.0, 1.0])
def test_extreme_logits_and_empty_or_full_regions_stay_finite(form, extreme, filled):
    target = torch.full((1, 4, 4, 4, 4), filled)
    maps = {n: torch.full((1, 1 if n == "prior" else 4, 4, 4, 4), extreme).bfloat16() for n in NAMES}
    maps = {n: v.requires_grad_() for n, v in maps.items()}
    value = PriorAttentionLoss(cross_entropy=form)(maps, target)
    value.backward()
    assert torch.isfinite(value)
    assert all(torch.isfinite(v.grad).all() for v in maps.values())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"level_weights": (1, 1, 1)}, ["level_weights", "four", "(1, 1, 1)"]),
        ({"cross_entropy": "softmax"}, ["cross_entropy", "binary", "authors", "softmax"]),
    ],
)
def test_wrong_arguments_are_refused_with_what_is_possible(arguments, said):
    with pytest.raises(ValueError) as caught:
        PriorAttentionLoss(**arguments)
    assert all(words in str(caught.value) for words in said)


def test_nothing_is_kept_for_the_gradient_but_logits_and_target():
    generator = torch.Generator().manual_seed(0)
    target = (torch.rand(1, 4, 6, 6, 6, generator=generator) > 0.5).to(torch.uint8)
    maps = {name: torch.randn(1, 4, 6, 6, 6, generator=generator, dtype=torch.bfloat16) for name in NAMES}
    maps["prior"] = maps["prior"][:, :1].clone()
    given = {value.untyped_storage().data_ptr() for value in (target, *maps.values())}
    leaves = {name: value.requires_grad_() for name, value in maps.items()}
    kept = []

    def pack(tensor):
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        total = PriorAttentionLoss()(leaves, target)
    assert [
        tensor.shape for tensor in kept if tensor.numel() > 1 and tensor.untyped_storage().data_ptr() not in given
    ] == []
    # The gradient still equals the gradient of the formula, in the precision of the logits.
    total.backward()
    exact = {name: value.detach().double().requires_grad_() for name, value in leaves.items()}
    plain = PriorAttentionLoss()
    wanted = sum(
        plain._dice_ce(value.float(), target[:, 3:] if name == "prior" else target, name)
        for name, value in exact.items()
    )
    wanted.backward()
    for name, leaf in leaves.items():
        torch.testing.assert_close(leaf.grad.double(), exact[name].grad, rtol=1e-2, atol=1e-6)
