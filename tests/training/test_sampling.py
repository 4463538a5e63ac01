# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Each epoch mixes a fixed number of cases of each source, by seed and epoch alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripts.errors import InputError
from scripts.training.sampling import MixedSampler


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=4), st.integers(0, 5))
def test_an_epoch_holds_the_wanted_number_of_each_source_without_repetition(sources, epoch):
    sizes = [size for size, _ in sources]
    counts = [min(size, count) for size, count in sources]
    sampler = MixedSampler(sizes, counts, seed=3)
    sampler.set_epoch(epoch)
    drawn = list(sampler)
    assert len(drawn) == len(sampler) == len(set(drawn)) == sum(counts)
    for number, (size, count) in enumerate(zip(sizes, counts, strict=True)):
        start = sum(sizes[:number])
        assert sum(start <= index < start + size for index in drawn) == count


def test_over_the_epochs_all_cases_are_drawn():
    sampler = MixedSampler([2, 30], [None, 5], seed=0)
    seen = set()
    for epoch in range(40):
        sampler.set_epoch(epoch)
        assert list(sampler) == list(sampler)
        seen |= set(sampler)
    assert seen == set(range(32))


def test_ranks_share_an_epoch():
    parts = [MixedSampler([4, 10], [None, 3], num_replicas=2, rank=rank, seed=1) for rank in (0, 1)]
    assert [len(part) for part in parts] == [3, 3]
    assert not set(parts[0]) & set(parts[1])
    assert set(parts[0]) | set(parts[1]) < set(MixedSampler([4, 10], [None, 3], seed=1))


def test_a_source_that_is_too_small_is_refused_when_it_is_drawn_from():
    sampler = MixedSampler([0, 4], [None, 8])  # an absent folder at construction is no fault
    with pytest.raises(InputError, match="An epoch needs 8 cases of a source that has 4"):
        next(iter(sampler))
