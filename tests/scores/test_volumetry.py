# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Volumes, lesions and diameters, against closed forms and by invariants."""

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scripts.pictures.planes import slices_through
from scripts.scores.volumetry import Diameters, connected_lesions, measure
from scripts.utils.errors import InputError

NONE = {"ET": 0, "TC": 0, "WT": 0}


def affine_of(axes, origin=(0, 0, 0)) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = axes, origin
    return affine


def rotation(angle: float, axis: int) -> np.ndarray:
    first, second = (a for a in range(3) if a != axis)
    turned = np.eye(3)
    turned[[first, second], [first, second]] = math.cos(angle)
    turned[first, second], turned[second, first] = -math.sin(angle), math.sin(angle)
    return turned


def whole(mask: np.ndarray, affine: np.ndarray) -> Diameters:
    return measure(2 * mask.astype(np.uint8), affine, et_label=4).lesions[0].diameters["WT"]


def test_an_empty_map_measures_nothing():
    found = measure(np.zeros((4, 5, 6), np.uint8), np.eye(4), et_label=4)
    assert json.loads(json.dumps(asdict(found))) == {"volume_ml": NONE, "lesion_count": 0, "lesions": []}


def test_voxels_in_any_byte_order_and_type():
    labels = np.array([0, 1, 4]).reshape(1, 1, 3)
    for dtype in ("<u2", ">i2", "float64", "int64"):
        assert measure(labels.astype(dtype), np.diag([10.0] * 3 + [1]), 4).volume_ml == {"ET": 1, "TC": 2, "WT": 2}


def test_regions_of_each_release():
    labels = np.zeros((5, 1, 1), np.uint8)
    labels[:, 0, 0] = [1, 2, 2, 3, 4]
    unit = affine_of(np.diag([10.0, -10.0, 10.0]))
    # Until 2015 the 3 was core, and since 2024 the 4 is a cavity.
    assert measure(labels, unit, et_label=4).volume_ml == {"ET": 1, "TC": 3, "WT": 5}
    assert measure(labels, unit, et_label=3).volume_ml == {"ET": 1, "TC": 2, "WT": 4}
    # In the Decathlon 1 is edema and 2 is core.
    assert measure(labels, unit, et_label=3, edema_label=1).volume_ml == {"ET": 1, "TC": 3, "WT": 4}
    with pytest.raises(InputError, match="ET label 5"):
        measure(labels, unit, et_label=5)


@pytest.mark.parametrize(
    "axes", [np.diag([1.0, 1.5, 3.0]), rotation(0.3, 0) @ rotation(0.2, 1) @ np.diag([1, -1.5, 3])]
)
def test_a_box(axes):
    """The diagonals of the box and of its slice, and the longest pair that is perpendicular to the second."""
    mask = np.zeros((9, 9, 9), bool)
    mask[1:6, 2:7, 3:6] = True
    found = measure(4 * mask.astype(np.uint8), affine_of(axes, (5, -7, 9)), et_label=4)
    assert found.volume_ml["ET"] == found.volume_ml["WT"] == pytest.approx(mask.sum() * 4.5 / 1000)
    assert found.lesion_count == 1
    diameters = found.lesions[0].diameters["ET"]
    assert diameters == found.lesions[0].diameters["WT"]
    assert diameters.largest_mm == pytest.approx(math.hypot(4 * 1, 4 * 1.5, 2 * 3))
    assert diameters.axial_mm == pytest.approx(math.hypot(4, 6))
    # All pairs of voxels of the slice whose distance along the diagonal is at most half of 1.5 mm.
    points = np.stack(np.meshgrid(np.arange(5.0), 1.5 * np.arange(5), indexing="ij"), axis=-1).reshape(-1, 2)
    along = np.array([4, 6]) / math.hypot(4, 6)
    apart = points[:, None] - points[None]
    near = np.abs(apart @ along) <= 0.75 + 1e-9
    assert diameters.perpendicular_mm == pytest.approx(np.abs(apart @ [-along[1], along[0]])[near].max())


def test_a_perpendicular_may_be_off_by_half_of_the_larger_side_of_a_voxel():
    first, second, _ = np.indices((11, 11, 1))
    mask = np.abs(first - second) <= 2
    points = np.argwhere(mask[:, :, 0]) * [1.0, 2.5]
    along = np.array([1, 2.5]) / math.hypot(1, 2.5)
    apart = points[:, None] - points[None]

    def longest(tolerance: float) -> float:
        return np.abs(apart @ [-along[1], along[0]])[np.abs(apart @ along) <= tolerance].max()

    found = whole(mask, np.diag([1, 2.5, 1, 1]))
    assert found.axial_mm == pytest.approx(10 * math.hypot(1, 2.5))
    assert found.perpendicular_mm == pytest.approx(longest(1.25)) and longest(1.25) > 1.5 * longest(0.5)


def test_a_square_has_two_equal_diagonals_at_right_angles():
    mask = np.zeros((9, 9, 3), bool)
    mask[2:7, 2:7, 1] = True
    found = whole(mask, np.diag([2.0, 2.0, 7.0, 1.0]))
    assert (found.largest_mm, found.axial_mm, found.perpendicular_mm) == pytest.approx([8 * math.sqrt(2)] * 3)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.8, 0.8, 2.0), (2.0, 0.7, 1.0)])
def test_a_sphere(spacing):
    """Centers of voxels lie inside the sphere, and on each ray one lies within a voxel's diagonal of its surface."""
    radius = 15.0
    half = [math.ceil(radius / s) + 1 for s in spacing]
    grid = np.stack(
        np.meshgrid(*[s * np.arange(-h, h + 1) for s, h in zip(spacing, half, strict=True)], indexing="ij"), axis=-1
    )
    found = measure(
        2 * (np.linalg.norm(grid, axis=-1) <= radius).astype(np.uint8), np.diag([*spacing, 1.0]), et_label=4
    )
    # The volume of the shell of voxels that the surface cuts bounds the error; its sign varies along the surface.
    assert found.volume_ml["WT"] == pytest.approx(4 / 3 * math.pi * radius**3 / 1000, rel=0.02)
    diameters, diagonal = found.lesions[0].diameters["WT"], np.linalg.norm(spacing)
    for value in (diameters.largest_mm, diameters.axial_mm, diameters.perpendicular_mm):
        assert 2 * radius - 2 * diagonal <= value <= 2 * radius + 1e-6
    assert found.lesions[0].diameters["ET"] is None


@pytest.mark.parametrize("angle", [0.0, 0.35, 1.2])
def test_an_ellipse_turned_in_its_slice(angle):
    """The diameters of an ellipsoid whose third axis is vertical are its axes, wherever the other two point."""
    half = np.array([20.0, 9.0, 6.0])
    grid = np.stack(np.meshgrid(*[np.arange(-22.0, 23)] * 3, indexing="ij"), axis=-1)
    mask = (((grid @ rotation(angle, 2)) / half) ** 2).sum(axis=-1) <= 1
    found = whole(mask, np.diag([-1.0, -1.0, 1.0, 1.0]))
    diagonal = math.sqrt(3)
    assert 40 - 2 * diagonal <= found.largest_mm <= 40 + 1e-6
    assert 40 - 2 * diagonal <= found.axial_mm <= found.largest_mm + 1e-6
    # The diameter that is found may be tilted by about one voxel in 40, which turns the perpendicular as much.
    assert found.perpendicular_mm == pytest.approx(18, abs=2.5)


def test_an_upright_lesion_has_a_small_axial_diameter():
    mask = np.zeros((5, 5, 30), bool)
    mask[2, 1:4, 2:28] = True
    for order in ([0, 1, 2], [2, 0, 1], [1, 2, 0]):
        # The axis of the grid that runs upward is not always the last one.
        axes = np.eye(3)[:, order]
        found = whole(mask.transpose(order), affine_of(axes))
        assert (found.axial_mm, found.perpendicular_mm) == (2, 0)
        assert found.largest_mm == pytest.approx(math.hypot(25, 2))


def test_a_sheared_grid():
    """The distance follows the affine, not the spacing alone."""
    axes = np.array([[1.0, 0.5, 0], [0, 1, 0], [0, 0, 1]])
    mask = np.zeros((4, 4, 1), bool)
    mask[0, 0, 0] = mask[1, 1, 0] = mask[2, 2, 0] = True
    found = whole(mask, affine_of(axes))
    assert (found.largest_mm, found.axial_mm) == pytest.approx([math.hypot(3, 2)] * 2)


def test_lesions_that_touch_by_a_corner_are_one():
    mask = np.zeros((6, 6, 6), bool)
    mask[0:2, 0:2, 0:2] = mask[2, 2, 2] = True
    mask[5, 5, 5] = True
    assert measure(2 * mask.astype(np.uint8), np.eye(4), et_label=4).lesion_count == 2
    numbers = connected_lesions(mask)
    assert numbers[0, 0, 0] == numbers[2, 2, 2] == 1 and numbers[5, 5, 5] == 2
    mask[4, 4, 4] = mask[3, 3, 3] = True
    assert connected_lesions(mask).max() == 1


def test_the_largest_lesion_is_first_and_enhancing_parts_are_measured_together():
    labels = np.zeros((30, 3, 1), np.uint8)
    labels[1:3, 0, 0] = 4
    labels[10:20, 0, 0] = 2
    labels[[11, 18], 0, 0] = 4
    found = measure(labels, np.diag([2.0, 1.0, 1.0, 1.0]), et_label=4)
    first, second = found.lesions
    assert [lesion.volume_ml["WT"] for lesion in found.lesions] == [0.02, 0.004]
    assert first.diameters == {"ET": Diameters(14, 14, 0), "WT": Diameters(18, 18, 0)}
    assert second.diameters == {"ET": Diameters(2, 2, 0), "WT": Diameters(2, 2, 0)}


SMALL = arrays(np.uint8, (5, 4, 3), elements=st.sampled_from([0, 0, 0, 1, 2, 4]))
SIZES = st.tuples(*[st.sampled_from([0.5, 1.0, 1.25, 3.0])] * 3)


def flat(found) -> list[float]:
    """All numbers in the order of lesions. Lesions of equal volume may come in any order."""
    values = [list(found.volume_ml.values()), [found.lesion_count]]
    lesions = [
        [
            *lesion.volume_ml.values(),
            *(v for d in lesion.diameters.values() for v in (asdict(d).values() if d else [-1])),
        ]
        for lesion in found.lesions
    ]
    return [value for part in [*values, *sorted(lesions, key=lambda own: np.round(own, 6).tolist())] for value in part]


@settings(max_examples=60, deadline=None)
@given(SMALL, SIZES, st.permutations([0, 1, 2]), st.tuples(*[st.booleans()] * 3))
def test_flipped_and_permuted_axes_change_nothing(labels, sizes, order, flips):
    affine = np.diag([*sizes, 1.0])
    changed, other = labels, affine.copy()
    for axis, flip in enumerate(flips):
        if flip:
            changed = np.flip(changed, axis)
            other[:3, 3] += other[:3, axis] * (labels.shape[axis] - 1)
            other[:3, axis] *= -1
    changed, other[:, :3] = changed.transpose(order), other[:, order]
    assert flat(measure(changed, other, 4)) == pytest.approx(flat(measure(labels, affine, 4)), abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(SMALL, SIZES, st.sampled_from([0.25, 2.0, 3.5]))
def test_a_scaled_grid_scales_diameters_and_volumes(labels, sizes, factor):
    found = measure(labels, np.diag([*sizes, 1.0]), 4)
    scaled = measure(labels, np.diag([*np.multiply(sizes, factor), 1.0]), 4)
    assert scaled.lesion_count == found.lesion_count
    assert list(scaled.volume_ml.values()) == pytest.approx([v * factor**3 for v in found.volume_ml.values()])
    for lesion, other in zip(found.lesions, scaled.lesions, strict=True):
        for name, diameters in lesion.diameters.items():
            values = [v * factor for v in asdict(diameters).values()] if diameters else None
            assert (list(asdict(other.diameters[name]).values()) if diameters else None) == (
                pytest.approx(values) if values else None
            )


@settings(max_examples=60, deadline=None)
@given(SMALL, SIZES)
def test_the_largest_diameter_is_that_of_all_pairs(labels, sizes):
    """Against the distances between all voxels. Order: perpendicular <= axial <= largest."""
    for number, lesion in enumerate(measure(labels, np.diag([*sizes, 1.0]), 4).lesions, 1):
        found = lesion.diameters["WT"]
        points = np.argwhere(connected_lesions(labels > 0) == number) * sizes
        distances = np.linalg.norm(points[:, None] - points[None], axis=-1)
        level = points[:, None, 2] == points[None, :, 2]
        assert found.largest_mm == pytest.approx(distances.max())
        assert found.axial_mm == pytest.approx(distances[level].max())
        assert found.perpendicular_mm <= found.axial_mm + 1e-9 <= found.largest_mm + 2e-9


def test_slices_through_a_mask_have_its_largest_areas():
    mask = np.zeros((6, 6, 6), bool)
    mask[1, 1:5, 1:5] = mask[1:4, 2, 3] = True
    assert slices_through([mask]) == [1, 2, 3]
