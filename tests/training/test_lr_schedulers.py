# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The learning rate has the right values at the points that define its curve."""

import itertools
import math

import pytest
import torch
from scripts.training.lr_schedulers import WarmupFlatCosineLR


def schedule(lr=1e-3, **arguments):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    return WarmupFlatCosineLR(optimizer, **arguments)


def rates(scheduler, steps):
    """Return the learning rates of the first ``steps`` iterations, as the optimizer sees them."""
    found = []
    for _ in range(steps):
        found.append(scheduler.optimizer.param_groups[0]["lr"])
        scheduler.optimizer.step()
        scheduler.step()
    return found


def test_a_position_is_taken_up_in_a_longer_schedule():
    """After a resume with more epochs, the schedule has the new shape and continues at the old position."""
    first = schedule(max_epochs=10, iterations_per_epoch=4, warmup_epochs=2, flat_epochs=3)
    rates(first, 24)
    longer = schedule(max_epochs=20, iterations_per_epoch=4, warmup_epochs=2, flat_epochs=3)
    longer.load_state_dict(first.state_dict())
    assert longer.last_epoch == 24
    longer.optimizer.step()
    longer.step()
    whole = rates(schedule(max_epochs=20, iterations_per_epoch=4, warmup_epochs=2, flat_epochs=3), 26)
    assert longer.optimizer.param_groups[0]["lr"] == whole[25]
    assert all(isinstance(value, (int, float, list)) for value in first.state_dict().values())


@pytest.mark.parametrize(
    ("epoch", "factor"),
    [
        (0, 1e-3),
        (2.5, (1 + 1e-3) / 2),
        (5, 1.0),
        (5.1, 1.0),
        (22, 1.0),
        (39.9, 1.0),
        (40, 1.0),
        (55, 1e-3 + (1 - 1e-3) * (1 + math.sqrt(0.5)) / 2),
        (70, (1 + 1e-3) / 2),
        (100, 1e-3),
        (130, 1e-3),
    ],
)
@pytest.mark.parametrize("per_epoch", [10, 250])
def test_authors_recipe_has_these_factors(epoch, factor, per_epoch):
    scheduler = schedule(max_epochs=100, iterations_per_epoch=per_epoch)
    assert scheduler.factor(round(epoch * per_epoch)) == pytest.approx(factor, rel=1e-12)


def test_optimizer_gets_one_rate_an_iteration_up_flat_and_down():
    found = rates(schedule(lr=0.02, max_epochs=10, iterations_per_epoch=4, warmup_epochs=2, flat_epochs=3), 41)
    up, flat, down = found[:8], found[8:21], found[20:]
    assert up == pytest.approx([0.02 * (1e-3 + (1 - 1e-3) * i / 8) for i in range(8)])
    assert flat == [0.02] * 13
    cosine = [0.02 * (1e-3 + (1 - 1e-3) * (1 + math.cos(math.pi * i / 20)) / 2) for i in range(21)]
    assert down == pytest.approx(cosine)
    assert all(a > b for a, b in itertools.pairwise(down))
    assert found[0] == found[-1] == pytest.approx(2e-5)


def test_a_thousandth_is_first_and_last_factor():
    scheduler = schedule(max_epochs=10, iterations_per_epoch=1, warmup_epochs=1, flat_epochs=1)
    assert [scheduler.factor(i) for i in (0, 1, 2, 6, 10)] == pytest.approx([1e-3, 1, 1, 0.5005, 1e-3])


@pytest.mark.parametrize("max_epochs", [1, 3, 5, 20, 40])
def test_trainings_that_end_before_the_cosine_stay_flat_to_the_end(max_epochs):
    found = rates(schedule(lr=1.0, max_epochs=max_epochs, iterations_per_epoch=2), 2 * max_epochs + 1)
    wanted = [min(1e-3 + (1 - 1e-3) * i / 10, 1.0) for i in range(2 * max_epochs + 1)]
    assert found == pytest.approx(wanted)


def test_one_epoch_of_cosine_ends_at_the_floor():
    scheduler = schedule(max_epochs=41, iterations_per_epoch=2)
    assert [scheduler.factor(i) for i in (79, 80, 81, 82)] == pytest.approx([1, 1, (1 + 1e-3) / 2, 1e-3])


def test_warm_up_and_flat_may_be_left_out():
    scheduler = schedule(max_epochs=4, iterations_per_epoch=1, warmup_epochs=0, flat_epochs=0)
    wanted = [1e-3 + (1 - 1e-3) * (1 + math.cos(math.pi * i / 4)) / 2 for i in range(5)]
    assert [scheduler.factor(i) for i in range(5)] == pytest.approx(wanted)
    assert wanted[0] == 1.0


def test_an_empty_dataset_gives_a_schedule_too():
    """A workflow can be constructed without data, and an epoch then has no iterations."""
    scheduler = schedule(lr=2.0, max_epochs=100, iterations_per_epoch=0)
    assert scheduler.get_last_lr() == [pytest.approx(2e-3)]
    assert scheduler.factor(5) == 1.0


def test_a_restored_schedule_goes_on_where_it_was():
    arguments = {"max_epochs": 10, "iterations_per_epoch": 4, "warmup_epochs": 2, "flat_epochs": 3}
    whole = rates(schedule(**arguments), 40)
    first = schedule(**arguments)
    rates(first, 17)
    state = first.state_dict()
    second = schedule(**arguments)
    second.load_state_dict(state)
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    assert rates(second, 23) == pytest.approx(whole[17:])
