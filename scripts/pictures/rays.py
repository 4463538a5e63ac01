# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Surfaces of masks as they look from outside, without a graphics card or a window.

For each point of the picture, a ray runs through the volume until it meets the surface. The light comes from the
viewer's upper left. The projection is parallel, so millimeters are equal everywhere in the picture.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from scripts.pictures.planes import affine_of_box, box_of
from torch.nn import functional

LEVEL = 0.5  # of a blurred mask, at its surface
STEP_MM = 1.0  # between two samples of a ray that is near a surface
AMBIENT = 0.3  # brightness of a part that the light does not reach
LIGHT = functional.normalize(torch.tensor([-0.45, 0.6, 1.0]), dim=0)  # its direction, in the camera's axes

Array = npt.NDArray[Any]


def camera_axes(to_viewer: Sequence[float], up: Sequence[float] = (0.0, 0.0, 1.0)) -> Array:
    """Unit vectors to the right and to the top of a picture, and to its viewer, as rows of a matrix (3, 3).

    Args:
        to_viewer: direction from the patient to the viewer: to the right, to the front and up.
        up: direction that points upward in the picture. It need not be at a right angle to ``to_viewer``.

    Example:
        >>> camera_axes((0, 1, 0)).tolist()  # from the front, the patient's left is on the right
        [[-1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0]]
    """
    viewer = np.asarray(to_viewer, float)
    viewer = viewer / np.linalg.norm(viewer)
    right = np.cross(up, viewer)
    right = right / np.linalg.norm(right)
    return np.stack([right, np.cross(viewer, right), viewer]) + 0.0  # no negative zeros


class _Field:
    """A volume that is read at any place, by linear interpolation. Outside it is 0 ("zeros"), or as at its "border"."""

    def __init__(self, values: Array, affine: Array, outside: str = "zeros") -> None:
        self.values = torch.as_tensor(np.ascontiguousarray(values, np.float32))[None, None]
        self.outside = outside
        # grid_sample takes coordinates from -1 to 1, of the last axis first.
        size = np.array(values.shape)
        to_grid = np.diag([*(2 / size), 1.0])
        to_grid[:3, 3] = 1 / size - 1
        inverse = to_grid @ np.linalg.inv(affine)
        self.matrix = torch.as_tensor(inverse[[2, 1, 0], :3].T.copy(), dtype=torch.float32)
        self.offset = torch.as_tensor(inverse[[2, 1, 0], 3].copy(), dtype=torch.float32)

    def at(self, places: torch.Tensor) -> torch.Tensor:
        """Values, (n,), at places in mm, (n, 3)."""
        grid = (places @ self.matrix + self.offset)[None, None, None]
        return functional.grid_sample(self.values, grid, padding_mode=self.outside, align_corners=False)[0, 0, 0, 0]

    def downhill(self, places: torch.Tensor, distance: float) -> torch.Tensor:
        """Unit vectors, (n, 3), in the direction in which the values fall fastest."""
        shifts = torch.eye(3) * distance
        slopes = torch.stack([self.at(places - shift) - self.at(places + shift) for shift in shifts], dim=1)
        return functional.normalize(slopes, dim=1)


class Surface:
    """The surface of a mask.

    Args:
        mask: bool of shape (x, y, z), with at least one voxel.
        affine: matrix from indices to mm, (4, 4).
        color: red, green and blue, from 0 to 1.
        opacity: opacity of a part that faces the viewer, from 0 to 1.
        rim: opacity of a part that the viewer sees edge-on. A translucent surface with an opaque rim looks like glass.
        blur_mm: standard deviation of the Gaussian that smooths the steps between voxels. Parts that are thinner than
            1.3 times this vanish.
        texture: factor of the brightness, (x, y, z), or None.
    """

    def __init__(
        self,
        mask: Array,
        affine: Array,
        color: Sequence[float],
        opacity: float = 1.0,
        rim: float = 1.0,
        blur_mm: float = 0.7,
        texture: Array | None = None,
    ) -> None:
        self.color, self.opacity, self.rim = torch.tensor(color), opacity, rim
        self.texture = None if texture is None else _Field(texture, affine)
        box = box_of(mask)
        sigma = blur_mm / np.linalg.norm(affine[:3, :3], axis=0)
        margin = np.ceil(3 * sigma).astype(int) + 1
        values = np.pad(mask[box], [(m, m) for m in margin]).astype(np.float32)
        # What is blurred needs fewer samples.
        stride = np.maximum(sigma, 1).astype(int)
        values = ndimage.gaussian_filter(values, sigma)[tuple(slice(None, None, s) for s in stride)]
        own = affine_of_box(affine, [slice(along.start - m, None) for along, m in zip(box, margin, strict=True)])
        own[:3, :3] *= stride
        spacing = np.linalg.norm(own[:3, :3], axis=0)
        self.spacing = float(spacing.max())
        self.field = _Field(values, own)
        # No surface is nearer than the next voxel inside, less the diagonal of a voxel. So rays leap over empty space.
        away = ndimage.distance_transform_edt(values < LEVEL, spacing) - np.linalg.norm(spacing)
        self.leap = _Field(away, own, outside="border")
        ends = [(-0.5, size - 0.5) for size in values.shape]
        self.corners: Array = np.stack(np.meshgrid(*ends, indexing="ij"), axis=-1).reshape(-1, 3) @ own[:3, :3].T
        self.corners += own[:3, 3]

    def _meet(self, places: torch.Tensor, axes: torch.Tensor, end: float) -> torch.Tensor:
        """The depth at which each ray meets the surface, (n,), or NaN.

        Rays run from ``places``, (n, 3) along the camera's ``axes``, to the depth ``end``.
        """
        met = torch.full((len(places),), float("nan"))
        going = torch.arange(len(places))
        before, moved = torch.zeros(len(places)), torch.zeros(len(places))
        while len(going):
            at = places @ axes
            now = self.field.at(at)
            hit = now >= LEVEL
            # Between two samples the value is taken to rise evenly.
            part = (LEVEL - before[hit]) / (now[hit] - before[hit])
            met[going[hit]] = places[hit, 2] + (1 - part) * moved[hit]
            step = self.leap.at(at).clamp(min=STEP_MM)
            on = ~hit & (places[:, 2] - step > end)
            going, before, moved, places = going[on], now[on], step[on], places[on]
            places[:, 2] -= moved
        return met

    def seen(self, camera: Array, columns: Array, rows: Array) -> tuple[Array, Array, Array]:
        """What a camera sees at each point of a picture.

        Args:
            camera: the camera's axes (``camera_axes``).
            columns, rows: places of the points along the first and the second axis, in mm.

        Returns:
            Depth toward the viewer in mm (minus infinity where there is nothing), opacity, and color, float32 of the
            shapes (rows, columns), (rows, columns) and (rows, columns, 3).
        """
        shape = (len(rows), len(columns))
        depth, opacity = np.full(shape, -np.inf, np.float32), np.zeros(shape, np.float32)
        color = np.zeros((*shape, 3), np.float32)
        reach = self.corners @ camera.T
        low, high = reach.min(axis=0), reach.max(axis=0)
        beside = (columns >= low[0]) & (columns <= high[0])
        row, column = np.nonzero(((rows >= low[1]) & (rows <= high[1]))[:, None] & beside)
        axes = torch.as_tensor(camera, dtype=torch.float32)
        start = np.stack([columns[column], rows[row], np.full(len(row), high[2])], axis=1)
        places = torch.as_tensor(start, dtype=torch.float32)
        places[:, 2] = self._meet(places, axes, float(low[2]))
        hit = ~places[:, 2].isnan()
        where, places = (row[hit.numpy()], column[hit.numpy()]), places[hit]
        depth[where] = places[:, 2]
        places = places @ axes
        normals = self.field.downhill(places, self.spacing) @ axes.T
        halfway = functional.normalize(LIGHT + torch.tensor([0.0, 0.0, 1.0]), dim=0)
        shade = AMBIENT + (1 - AMBIENT) * (normals @ LIGHT).clamp(0, 1)
        if self.texture is not None:
            shade = shade * self.texture.at(places)
        gloss = 0.25 * (normals @ halfway).clamp(0, 1) ** 40
        facing = normals[:, 2].clamp(0, 1)
        opacity[where] = self.rim + (self.opacity - self.rim) * facing
        color[where] = (shade[:, None] * self.color + gloss[:, None]).clamp(0, 1)
        return depth, opacity, color


def render(
    surfaces: Sequence[Surface], camera: Array, center: Array, size_mm: tuple[float, float], pixels: float
) -> Array:
    """Draw surfaces before black.

    Args:
        surfaces: the surfaces, at least one.
        camera: the camera's axes (``camera_axes``).
        center: place in mm that is in the middle of the picture, (3,).
        size_mm: height and width of the picture.
        pixels: pixels per mm.

    Returns:
        Red, green and blue from 0 to 1, float32 of shape (rows, columns, 3).

    Example:
        >>> cube = Surface(np.ones((8, 8, 8), bool), np.eye(4), color=(1.0, 0.0, 0.0))
        >>> picture = render([cube], camera_axes((0, 1, 0)), np.array([3.5, 3.5, 3.5]), (12.0, 16.0), pixels=1.0)
        >>> picture.shape, picture[0, 0].tolist(), bool(picture[6, 8, 0] > 0.5)
        ((12, 16, 3), [0.0, 0.0, 0.0], True)
    """
    # Each pixel is the mean of four points, so edges are smooth.
    height, width = (2 * round(size * pixels) for size in size_mm)
    x, y, _ = camera @ center
    columns = x + (np.arange(width) - (width - 1) / 2) / (2 * pixels)
    rows = y - (np.arange(height) - (height - 1) / 2) / (2 * pixels)
    layers = [surface.seen(camera, columns, rows) for surface in surfaces]
    depth, opacity, color = (np.stack(kind) for kind in zip(*layers, strict=True))
    picture = np.zeros((height, width, 3), np.float32)
    for layer in np.argsort(depth, axis=0, kind="stable"):  # from the back to the front
        share = np.take_along_axis(opacity, layer[None], axis=0)[0][..., None]
        picture += share * (np.take_along_axis(color, layer[None, ..., None], axis=0)[0] - picture)
    mean: Array = picture.reshape(height // 2, 2, width // 2, 2, 3).mean(axis=(1, 3))
    return mean
