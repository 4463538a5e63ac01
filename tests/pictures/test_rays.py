# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Surfaces of balls and boxes, whose depth, outline and color are known."""

import numpy as np
import pytest
import torch
from scripts.pictures.rays import AMBIENT, LIGHT, Surface, camera_axes, render

RIGHT = camera_axes((1, 0, 0))
PLACES = np.arange(-19.5, 20)


def ball(center, radius: float, spacing=(1.0, 1.0, 1.0), size: float = 40.0) -> tuple[np.ndarray, np.ndarray]:
    """A ball in a grid around 0, and the affine of the grid."""
    spacing = np.array(spacing)
    counts = (size / spacing).astype(int)
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -(counts - 1) / 2 * spacing
    grid = np.stack(np.meshgrid(*map(np.arange, counts), indexing="ij"), axis=-1) * spacing + affine[:3, 3]
    return np.linalg.norm(grid - center, axis=-1) <= radius, affine


@pytest.mark.parametrize("to_viewer", [(1, 0, 0), (-1, 0, 0), (0, 1, 0), (0.6, 0.7, 0.3)])
@pytest.mark.parametrize("up", [(0, 0, 1), (0.1, 0.2, 1)])
def test_axes_of_a_camera_are_right_handed(to_viewer, up):
    axes = camera_axes(to_viewer, up)
    assert np.allclose(axes @ axes.T, np.eye(3))
    assert np.linalg.det(axes) == pytest.approx(1)
    assert axes[2] @ to_viewer == pytest.approx(np.linalg.norm(to_viewer))
    assert axes[1] @ up > 0


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.8, 1.0, 2.0)])
@pytest.mark.parametrize("to_viewer", [(1, 0, 0), (0, -1, 0), (0.6, 0.7, 0.3)])
def test_depth_and_outline_of_a_ball(spacing, to_viewer):
    """The ball's surface is found to less than a voxel, from each side and in each grid."""
    mask, affine = ball((3, -2, 1), 10, spacing)
    camera = camera_axes(to_viewer)
    depth, opacity, _ = Surface(mask, affine, (1, 1, 1)).seen(camera, PLACES, PLACES[::-1])
    x, y, z = camera @ (3, -2, 1)
    off = np.hypot(PLACES[None] - x, PLACES[::-1, None] - y)
    diagonal = np.linalg.norm(spacing)
    assert np.isinf(depth[off > 10 + diagonal / 2]).all() and not np.isinf(depth[off < 10 - diagonal / 2]).any()
    middle = off < 7
    assert np.abs(depth[middle] - z - np.sqrt(100 - off[middle] ** 2)).max() < diagonal
    assert (opacity == ~np.isinf(depth)).all()


def test_a_face_toward_the_viewer_is_lit_by_the_cosine_of_the_light():
    mask = np.zeros((20, 20, 20), bool)
    mask[4:16, 4:16, 4:16] = True
    # In the middle of the face the normal points to the viewer.
    surface = Surface(mask, np.eye(4), (0.2, 0.5, 0.1), opacity=0.25, rim=0.75)
    depth, opacity, color = surface.seen(RIGHT, np.array([9.5]), np.array([9.5]))
    assert depth[0, 0] == pytest.approx(15.5, abs=0.1)
    assert opacity[0, 0] == pytest.approx(0.25, abs=1e-3)
    halfway = torch.nn.functional.normalize(LIGHT + torch.tensor([0.0, 0.0, 1.0]), dim=0)
    shade, gloss = AMBIENT + (1 - AMBIENT) * float(LIGHT[2]), 0.25 * float(halfway[2]) ** 40
    assert color[0, 0] == pytest.approx([shade * c + gloss for c in (0.2, 0.5, 0.1)], abs=1e-3)
    textured = Surface(mask, np.eye(4), (0.2, 0.5, 0.1), texture=np.full(mask.shape, 0.5))
    assert textured.seen(RIGHT, np.array([9.5]), np.array([9.5]))[2][0, 0, 1] == pytest.approx(
        shade * 0.25 + gloss, abs=1e-3
    )


def test_the_nearer_surface_hides_the_farther_one_unless_it_is_translucent():
    mask = np.zeros((30, 20, 20), bool)
    mask[20:28, 4:16, 4:16] = True
    near = Surface(mask, np.eye(4), (1.0, 0.0, 0.0))
    glass = Surface(mask, np.eye(4), (1.0, 0.0, 0.0), opacity=0.25, rim=0.25)
    far = Surface(mask[::-1], np.eye(4), (0.0, 0.0, 1.0))
    middle = (np.array([14.5, 9.5, 9.5]), (10.0, 10.0), 1.0)
    only_near, only_far = (render([surface], RIGHT, *middle)[5, 5] for surface in (near, far))
    assert only_near[0] > 0.8 and only_far[2] > 0.8
    for order in ([near, far], [far, near]):
        assert np.allclose(render(order, RIGHT, *middle)[5, 5], only_near)
        assert np.allclose(render(order, camera_axes((-1, 0, 0)), *middle)[5, 5], only_far, atol=1e-5)
    assert np.allclose(render([far, glass], RIGHT, *middle)[5, 5], 0.25 * only_near + 0.75 * only_far, atol=1e-5)


def test_directions_in_a_picture():
    """A ball to the front and above is at the right and at the top, seen from the right."""
    mask, affine = ball((0, 10, 5), 4)
    picture = render([Surface(mask, affine, (1, 1, 1))], RIGHT, np.zeros(3), (40.0, 60.0), 2.0)
    assert picture.shape == (80, 120, 3)
    rows, columns = np.nonzero(picture.any(axis=-1))
    # Rows run down, from 20 mm above the middle; columns from 30 mm left of it.
    assert (rows.min() + rows.max() + 1) / 2 == pytest.approx(2 * (20 - 5), abs=1)
    assert (columns.min() + columns.max() + 1) / 2 == pytest.approx(2 * (30 + 10), abs=1)
    assert columns.max() + 1 - columns.min() == pytest.approx(2 * 8, abs=3)


def test_edges_are_smooth():
    mask, affine = ball((0, 0, 0), 10)
    picture = render([Surface(mask, affine, (1, 1, 1))], RIGHT, np.zeros(3), (30.0, 30.0), 1.0)
    levels = set(np.round(picture[..., 0][picture[..., 0] > 0], 3))
    dim = (picture[..., 0] > 0) & (picture[..., 0] < AMBIENT - 0.01)
    assert len(levels) > 4 and dim.any()


def test_layers_thinner_than_the_blur_vanish_as_documented():
    for thick, seen in ((1, False), (2, True)):
        mask = np.zeros((16, 30, 30), bool)
        mask[8 : 8 + thick, 5:25, 5:25] = True
        depth, _, _ = Surface(mask, np.eye(4), (1, 1, 1), blur_mm=1.1).seen(RIGHT, np.array([15.0]), np.array([15.0]))
        assert bool(np.isfinite(depth).all()) is seen
