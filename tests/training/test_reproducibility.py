# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Random numbers depend on seed, epoch, rank and case, and on nothing else."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.data import CacheDataset, DataLoader
from monai.transforms import Lambdad, RandGaussianNoised
from scripts.training.reproducibility import EpochSeeds, SeededCompose, choose_algorithms, derive_seed
from torch.utils.data import DistributedSampler

PARTS = st.tuples(st.integers(0, 2**32), st.integers(0, 1000), st.integers(0, 64), st.text(min_size=1))


@given(PARTS, PARTS)
def test_seeds_are_the_same_for_the_same_and_fit_numpy(a, b):
    assert derive_seed(*a) == derive_seed(*a)
    assert 0 <= derive_seed(*a) < 2**32
    if a != b:
        assert derive_seed(*a) != derive_seed(*b)


def test_seeds_do_not_depend_on_the_process():
    """Python's own hash would depend on it. The expected value comes from ``printf 512/1/0/... | b2sum -l 32``."""
    assert derive_seed(512, 1, 0, "BraTS20_Training_001") == 1554526841


CASES = [{"case": name, "image": torch.zeros(1, 4)} for name in ("a", "b", "c", "d")]


def noise(**changes) -> SeededCompose:
    steps = [Lambdad("image", lambda x: x + 1), RandGaussianNoised("image", prob=1.0), RandGaussianNoised("image", 0.5)]
    compose = SeededCompose(steps, **{"seed": 3, "rank": 0, **changes})
    compose.epoch = changes.get("epoch", 0)
    return compose


def drawn(compose: SeededCompose, cases=CASES) -> dict[str, list[float]]:
    return {item["case"]: compose(item)["image"].tolist() for item in cases}


def test_a_case_draws_the_same_whatever_came_before():
    wanted = drawn(noise())
    assert drawn(noise(), CASES[::-1]) == wanted
    assert drawn(noise(), CASES[2:]) == {name: wanted[name] for name in "cd"}
    used = noise()
    drawn(used)
    assert drawn(used) == wanted


@pytest.mark.parametrize("other", ["seed", "rank", "epoch"])
def test_seed_rank_and_epoch_each_change_it(other):
    first = noise()
    second = noise(**({other: 7} if other != "epoch" else {}))
    if other == "epoch":
        second.epoch = 7
    a, b = drawn(first), drawn(second)
    assert all(a[name] != b[name] for name in a)
    assert len({str(values) for values in a.values()}) == len(CASES), "each case draws its own"


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("cache", [0.0, 1.0])
def test_workers_and_cache_change_nothing(workers, cache):
    compose = noise()
    compose.epoch = 5
    loader = DataLoader(CacheDataset(CASES, compose, cache_rate=cache, progress=False), workers, batch_size=1)
    torch.manual_seed(workers)
    got = {batch["case"][0]: batch["image"][0].tolist() for batch in loader}
    again = noise()
    again.epoch = 5
    assert got == drawn(again)


def test_without_a_name_the_image_is_the_case():
    items = [{"image": torch.full((1, 4), float(number))} for number in range(2)]
    first, second = (noise()(item)["image"] - item["image"] for item in items)
    assert not torch.equal(first, second)


def test_before_an_epoch_everything_knows_its_number():
    sampler = DistributedSampler(range(10), num_replicas=1, rank=0, seed=3)
    transform = noise()
    seeds = EpochSeeds(3, 0, sampler, transform)
    draws = {}
    for epoch in (4, 5, 4):
        seeds.epoch_started(SimpleNamespace(state=SimpleNamespace(epoch=epoch)))
        assert (sampler.epoch, transform.epoch) == (epoch, epoch)
        legacy = float(np.random.rand())  # noqa: NPY002 - third-party transforms draw from it
        draw = (random.random(), legacy, torch.rand(1).item(), tuple(sampler))
        assert draws.setdefault(epoch, draw) == draw
    assert all(a != b for a, b in zip(draws[4], draws[5], strict=True))


@pytest.mark.parametrize("deterministic", [True, False])
def test_cudnn_is_deterministic_or_timed(deterministic):
    choose_algorithms(deterministic)
    assert torch.backends.cudnn.deterministic is deterministic
    assert torch.backends.cudnn.benchmark is not deterministic
