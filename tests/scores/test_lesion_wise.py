# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Lesion-wise scores of constructed cases have their closed forms, and random ones equal those of plain loops."""

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.metrics.utils import get_code_to_measure_table
from scripts.scores.lesion_wise import (
    IGNORED_MM3,
    WORST,
    WORST_LESION_HD95_MM,
    LesionScore,
    LesionWiseScores,
    lesion_scores,
)
from scripts.scores.metrics import Grid

SIZE = (48, 20, 20)
EMPTY = np.zeros(SIZE, bool)
# A cube of 64 mm^3 and a bar of 50 mm^3 at the far end, and one voxel more or less.
CUBE = ((2, 6), (2, 6), (2, 6))
BAR = ((30, 35), (2, 7), (2, 4))


def box(*ranges, size=SIZE):
    mask = np.zeros(size, bool)
    mask[tuple(slice(*r) for r in ranges)] = True
    return mask


def moved(ranges, *shift):
    return tuple((a + s, b + s) for (a, b), s in zip(ranges, shift, strict=True))


def scores(pred, reference, spacing=(1.0, 1.0, 1.0)):
    voxels = (torch.as_tensor(mask) for mask in (pred, reference))
    return LesionWiseScores().score(*voxels, Grid(spacing, reference.size))


def close(*lesion):
    return LesionScore(*(pytest.approx(value, rel=1e-6) for value in lesion))


# Closed forms.


def test_the_rules_have_the_numbers_of_the_challenge():
    assert (IGNORED_MM3, WORST_LESION_HD95_MM) == (50.0, 374.0)


@pytest.mark.parametrize(
    ("pred", "found", "mean"),
    [(EMPTY, [], (1.0, 0.0)), (box(*CUBE), [WORST], (0.0, 374.0)), (box(*CUBE) | box(*BAR), [WORST] * 2, (0.0, 374.0))],
    ids=["nothing", "one invented", "two invented"],
)
def test_an_empty_reference(pred, found, mean):
    assert lesion_scores(pred, EMPTY) == found
    assert scores(pred, EMPTY) == mean


def test_a_missed_lesion_beside_one_that_is_found():
    reference = box(*CUBE) | box(*moved(CUBE, 28, 0, 0))
    assert lesion_scores(box(*CUBE), reference) == [LesionScore(1.0, 0.0), WORST]
    assert scores(box(*CUBE), reference) == (0.5, 187.0)
    assert scores(EMPTY, reference) == (0.0, 374.0)


def test_an_invented_lesion_counts_whatever_its_size():
    speck = box((40, 41), (15, 16), (15, 16))
    assert lesion_scores(box(*CUBE) | speck, box(*CUBE)) == [LesionScore(1.0, 0.0), WORST]
    assert scores(box(*CUBE) | speck, box(*CUBE)) == (0.5, 187.0)
    # Specks that share a corner are one.
    two = speck | box((41, 42), (16, 17), (16, 17))
    assert scores(box(*CUBE) | two, box(*CUBE)) == (0.5, 187.0)


def test_one_prediction_over_two_lesions_is_compared_with_each_as_a_whole():
    reference = box(*CUBE) | box(*moved(CUBE, 12, 0, 0))
    pred = box((2, 18), (2, 6), (2, 6))
    # Each lesion has 4 of the 16 layers. The face at the other end of the prediction is 12 mm away. With its edges and
    # corners it has 9 + 12 sqrt(1/2) + 4 sqrt(3)/8 = 18.4 mm^2. The 15 rings between both such faces have
    # 12 + 4 sqrt(1/2) = 14.8 mm^2 each, so the far face has 7% of the area.
    assert lesion_scores(pred, reference) == [close(0.4, 12.0), close(0.4, 12.0)]
    assert scores(pred, reference)[0] == pytest.approx(0.4)


def test_a_prediction_cut_in_two_belongs_to_the_lesion_as_a_whole():
    reference = box((2, 12), (2, 6), (2, 6))
    pred = reference & ~box((6, 8), (0, 20), (0, 20))
    assert lesion_scores(pred, reference)[0].dice == pytest.approx(2 * 128 / (128 + 160))
    assert len(lesion_scores(pred, reference)) == 1


@pytest.mark.parametrize(("gap", "count"), [(2, 1), (6, 1), (7, 2)])
def test_a_satellite_that_three_dilations_reach_is_part_of_the_lesion(gap, count):
    """Two dilated lesions are neighbors while at most 6 voxels lie between them."""
    main, satellite = box(*CUBE), box((6 + gap, 10 + gap), (2, 6), (2, 6))
    found = lesion_scores(main, main | satellite)
    assert len(found) == count
    assert found[0].dice == pytest.approx(2 * 64 / (64 + 128) if count == 1 else 1.0)
    assert found[1:] == [WORST] * (count - 1)


@pytest.mark.parametrize(
    ("shift", "touches"),
    [((3, 0, 0), True), ((3, 3, 0), True), ((2, 2, 2), True), ((3, 3, 1), False), ((4, 0, 0), False)],
)
def test_a_prediction_touches_by_the_18_neighborhood(shift, touches):
    """Three steps reach 3 voxels along two axes, but never more than 6 along all three together."""
    last = (5, 5, 5)
    voxel = box(*((a + s, a + s + 1) for a, s in zip(last, shift, strict=True)))
    found = lesion_scores(voxel, box(*CUBE))
    assert len(found) == (1 if touches else 2)
    assert found[0].dice == 0.0 and (found[0].hd95 < 20) is touches


@pytest.mark.parametrize(("extra", "counts"), [(0, False), (1, True), (-1, False)])
def test_a_lesion_of_50_cubic_millimeters_is_left_out_and_one_voxel_more_counts(extra, counts):
    bar = box(*BAR)
    if extra < 0:
        bar[30, 2, 2] = False
    elif extra > 0:
        bar[35, 2, 2] = True
    assert bar.sum() == 50 + extra
    assert lesion_scores(EMPTY, bar) == [WORST] * counts
    assert scores(EMPTY, bar) == ((0.0, 374.0) if counts else (1.0, 0.0))
    # A spacing that comes from an affine may be off in its last digits.
    assert lesion_scores(EMPTY, bar, [1.0000001] * 3) == [WORST] * counts
    assert lesion_scores(EMPTY, bar, [0.9999999] * 3) == [WORST] * counts


@pytest.mark.parametrize(("voxels", "counts"), [(6, False), (7, True)])
def test_the_limit_is_a_volume_in_cubic_millimeters(voxels, counts):
    """A voxel of 2 mm has 8 mm^3, so 6 voxels have 48 mm^3 and 7 voxels have 56."""
    line = box((2, 2 + voxels), (2, 3), (2, 3))
    assert lesion_scores(EMPTY, line, [2.0, 2.0, 2.0]) == [WORST] * counts
    assert lesion_scores(EMPTY, line) == []
    pred = box((3, 2 + voxels), (2, 3), (2, 3))
    # The voxel that is missed has 4.6% of the surface's area (test_metrics.py), so 95% of it lies on the other surface.
    assert lesion_scores(pred, line, [2.0, 2.0, 2.0]) == [close(12 / 13, 0.0)] * counts


def test_the_volume_is_that_of_the_merged_lesion_without_its_dilation():
    # Two bars of 30 voxels each, which only the dilation merges.
    pair = box((2, 8), (2, 7), (2, 3)) | box((2, 8), (2, 7), (6, 7))
    assert lesion_scores(EMPTY, pair) == [WORST]
    assert lesion_scores(EMPTY, box((2, 8), (2, 7), (2, 3))) == []


def test_a_prediction_that_touches_an_ignored_lesion_counts_neither_way():
    reference = box(*CUBE) | box(*BAR)
    large = box((28, 38), (1, 12), (1, 12))
    assert scores(box(*CUBE) | box(*BAR), reference) == (1.0, 0.0)
    assert scores(box(*CUBE) | large, reference) == (1.0, 0.0)
    # It touches the dilated lesion, 3 voxels away, and not the lesion.
    assert scores(box(*CUBE) | box((37, 38), (2, 3), (2, 3)), reference) == (1.0, 0.0)
    assert scores(box(*CUBE) | box((38, 39), (2, 3), (2, 3)), reference) == (0.5, 187.0)
    assert scores(large, box(*BAR)) == (1.0, 0.0)


def test_a_prediction_over_an_ignored_lesion_and_one_that_counts_belongs_to_the_latter():
    reference = box(*CUBE) | box((14, 16), (2, 6), (2, 6))  # 64 and 32 mm^3
    pred = box((2, 16), (2, 6), (2, 6))
    (found,) = lesion_scores(pred, reference)
    assert found.dice == pytest.approx(2 * 64 / (64 + 14 * 16))


def test_a_component_beside_a_lesion_has_no_dice_but_a_distance():
    (found,) = lesion_scores(box(*moved(CUBE, 6, 0, 0)), box(*CUBE))
    assert found == close(0.0, 6.0)


def test_distances_are_in_millimeters():
    (found,) = lesion_scores(box((2, 6), (2, 6), (2, 8)), box(*CUBE), [1.0, 1.0, 2.5])
    assert found == close(2 * 64 / (64 + 96), 5.0)


# Against plain loops.


def neighbors(voxel, most):
    """Yield the voxels that differ by one along at most ``most`` axes."""
    for step in itertools.product((-1, 0, 1), repeat=3):
        if 0 < sum(map(abs, step)) <= most:
            yield tuple(v + s for v, s in zip(voxel, step, strict=True))


def parts(voxels):
    """Return the 26-connected parts of a set of voxels."""
    left, found = set(voxels), []
    while left:
        part, waiting = set(), [left.pop()]
        while waiting:
            voxel = waiting.pop()
            part.add(voxel)
            for other in neighbors(voxel, 3):
                if other in left:
                    left.remove(other)
                    waiting.append(other)
        found.append(part)
    return found


def loop_surface(voxels, spacing):
    """Return the points between voxels through which the surface runs, and their areas by MONAI's table."""
    table, weights = get_code_to_measure_table(tuple(spacing))
    codes = Counter()
    for voxel in voxels:
        for corner, weight in zip(itertools.product((0, 1), repeat=3), weights.flatten().tolist(), strict=True):
            codes[tuple(v - c for v, c in zip(voxel, corner, strict=True))] += weight
    areas = {point: float(table[code]) for point, code in codes.items() if code < 255}
    return np.array(list(areas)) * spacing, list(areas.values())


def loop_hd95(a, b, spacing):
    """Return the larger distance within which 95% of one surface's area lies of the other surface."""
    (ours, own), (theirs, other) = (loop_surface(voxels, spacing) for voxels in (a, b))
    distances = np.linalg.norm(ours[:, None] - theirs[None], axis=-1)
    found = []
    for nearest, areas in ((distances.min(axis=1), own), (distances.min(axis=0), other)):
        within = 0.0
        for distance, area in sorted(zip(nearest, areas, strict=True)):
            within += area
            if within >= 0.95 * sum(areas):
                found.append(distance)
                break
    return max(found)


def loop_lesions(pred, reference, spacing):
    pred, reference = ({tuple(map(int, v)) for v in np.argwhere(mask)} for mask in (pred, reference))
    near = set(reference)
    for _ in range(3):
        near |= {n for voxel in near for n in neighbors(voxel, 2)}
    components, found, known = parts(pred), [], set()
    for neighborhood in parts(near):
        lesion = reference & neighborhood
        own = [i for i, component in enumerate(components) if component & neighborhood]
        known |= set(own)
        if len(lesion) * np.prod(spacing) <= 50:
            continue
        together = set().union(*(components[i] for i in own))
        if together:
            dice = 2 * len(lesion & together) / (len(lesion) + len(together))
            found.append((dice, loop_hd95(together, lesion, spacing)))
        else:
            found.append((0.0, 374.0))
    return found + [(0.0, 374.0)] * (len(components) - len(known))


@st.composite
def phantoms(draw):
    """Draw two masks of boxes in a small grid, so that lesions merge, touch and miss each other, also at the border."""
    size = draw(st.tuples(*[st.integers(8, 22)] * 3))
    masks = []
    for _ in range(2):
        mask = np.zeros(size, bool)
        for _ in range(draw(st.integers(0, 4))):
            start = [draw(st.integers(0, n - 1)) for n in size]
            mask[tuple(slice(s, s + draw(st.integers(1, 5))) for s in start)] = True
        masks.append(mask)
    return masks


@settings(max_examples=60, deadline=None)
@given(phantoms(), st.sampled_from([(1.0, 1.0, 1.0), (2.0, 2.0, 2.0), (1.0, 0.5, 3.0)]))
def test_random_phantoms_have_the_lesions_of_plain_loops(masks, spacing):
    found = [(lesion.dice, lesion.hd95) for lesion in lesion_scores(*masks, spacing)]
    wanted = loop_lesions(*masks, np.array(spacing))
    assert len(found) == len(wanted)
    np.testing.assert_allclose(np.array(sorted(found)), np.array(sorted(wanted)), rtol=1e-5, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(phantoms(), st.integers(0, 9))
def test_the_room_around_the_lesions_does_not_matter(masks, room):
    wider = [np.pad(mask, room) for mask in masks]
    assert sorted(map(str, lesion_scores(*wider))) == sorted(map(str, lesion_scores(*masks)))


# The metric as the handlers use it.


def test_cases_and_regions_are_scored_one_by_one_in_the_order_of_the_names():
    two = box(*CUBE) | box(*moved(CUBE, 28, 0, 0))
    label, pred = (np.zeros((4, *SIZE), np.float32) for _ in range(2))
    label[1:] = two
    pred[1], pred[2] = two, box(*CUBE)
    # In voxels of 0.5 mm, each cube has 8 mm^3 and is left out.
    fine = torch.diag(torch.tensor([0.5, 0.5, 0.5, 1.0]))
    metric = LesionWiseScores()
    found = metric([MetaTensor(pred), MetaTensor(pred)], [MetaTensor(label), MetaTensor(label, affine=fine)])
    assert torch.as_tensor(found).tolist() == [[1.0, 0.5, 0.0, 0.0, 187.0, 374.0], [1.0, 1.0, 1.0, 0.0, 0.0, 0.0]]
    wanted = {"dice_ET": 1, "dice_TC": 0.75, "dice_WT": 0.5, "hd95_ET": 0, "hd95_TC": 93.5, "hd95_WT": 187}
    assert list(metric.aggregate().items()) == [(f"val_lesion_{name}", mean) for name, mean in wanted.items()]
