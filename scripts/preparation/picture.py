# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""prepared.png: how well the sequences lie on T1ce, where the brain was found, and where the field of view ends."""

import nibabel as nib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scripts.brats import REFERENCE, SEQUENCE_TITLES
from scripts.data.images import in_lps
from scripts.pictures.figure import draw_colors, draw_gray
from scripts.pictures.parts import parts_of
from scripts.pictures.planes import affine_of_box, plane_of
from scripts.preparation.grids import Array, Volume, resample
from scripts.preparation.preparing import Preparation
from scripts.preparation.scans import field_of_view, on_grid
from scripts.utils.errors import printable

PLANES = (("axial", 2), ("coronal", 1), ("sagittal", 0))
TILES_MM = 30
MARGIN = 25  # voxels around the brain
# Heights in the brain from its base to its vertex at which its outline is shown.
LEVELS = (("vertex", 0.93), ("middle", 0.5), ("skull base", 0.18))
EDGE, OUTLINE = "#E69F00", "#56B4E9"


class Slices:
    """Slices of a preparation, in its prepared pose, with the skull."""

    def __init__(self, prepared: Preparation) -> None:
        self.prepared = prepared
        mask = prepared.brain_on(prepared.affine, prepared.shape, prepared.pose)
        self.ends = [
            (int(found[0]), int(found[-1]))
            for found in (np.flatnonzero(mask.any(axes)) for axes in ((1, 2), (0, 2), (0, 1)))
        ]
        self.box = tuple(
            slice(max(low - MARGIN, 0), min(high + MARGIN + 1, size))
            for (low, high), size in zip(self.ends, prepared.shape, strict=True)
        )
        self.mask = mask

    def _plane(self, axis: int, share: float) -> tuple[Array, tuple[int, ...], tuple[slice, ...]]:
        low, high = self.ends[axis]
        at = round(low + share * (high - low))
        box = tuple(slice(at, at + 1) if number == axis else side for number, side in enumerate(self.box))
        return affine_of_box(self.prepared.affine, box), tuple(side.stop - side.start for side in box), box

    def image(self, sequence: str, axis: int, share: float = 0.5) -> tuple[Array, Array]:
        """A slice of a sequence, as it is drawn, and the mask of its field of view."""
        affine, shape, _ = self._plane(axis, share)
        scan, matrix = self.prepared.scans[sequence], self.prepared.to_scan[sequence] @ self.prepared.pose
        found = on_grid(scan, affine, shape, matrix), field_of_view(scan.volume, affine, shape, matrix)
        return plane_of(found[0], axis, 0), plane_of(found[1], axis, 0)

    def brain(self, axis: int, share: float) -> Array:
        """The same slice of the brain's mask."""
        return plane_of(self.mask[self._plane(axis, share)[2]], axis, 0)


def _scaled(plane: Array, inside: Array) -> Array:
    values = plane[inside & (plane > 0)]
    low, high = np.percentile(values, [2, 99]) if values.size else (0.0, 1.0)
    return np.clip((plane - low) / max(high - low, 1e-6), 0, 1)


def _show(ax: Axes, plane: Array, title: str) -> None:
    draw_gray(ax, plane, (0.0, 1.0), (0.0, float(plane.shape[1]), float(plane.shape[0]), 0.0))
    ax.set_title(title, color="white", fontsize=8, pad=2)


def _line(ax: Axes, mask: Array, color: str) -> None:
    if mask.any() and not mask.all():
        rows, columns = (np.arange(size) + 0.5 for size in mask.shape)
        ax.contour(columns, rows, mask, levels=[0.5], colors=color, linewidths=0.7)


def checkerboard(first: Array, second: Array, tile: int = TILES_MM) -> Array:
    """Tiles of two planes by turns.

    Example:
        >>> checkerboard(np.zeros((2, 4)), np.ones((2, 4)), 1).astype(int).tolist()
        [[0, 1, 0, 1], [1, 0, 1, 0]]
    """
    row, column = np.ogrid[tuple(slice(n) for n in first.shape)]
    return np.where((row // tile + column // tile) % 2, second, first)


def picture(prepared: Preparation, label: Volume | None = None, to_label: Array | None = None) -> Figure:
    """The figure. ``label`` is a label map, which is drawn on slices of T1ce as acquired.

    ``to_label`` takes mm of T1ce to mm of the label map.
    """
    slices = Slices(prepared)
    others = [name for name in prepared.scans if name != REFERENCE]
    outlined = [name for name in (REFERENCE, "flair") if name in prepared.scans]
    columns = len(others) + len(outlined) + (label is not None)
    figure = Figure(figsize=(2.3 * columns, 7.6), facecolor="black")
    axes = figure.subplots(3, columns, squeeze=False)
    for row, (plane, axis) in enumerate(PLANES):
        reference, seen = slices.image(REFERENCE, axis)
        brain = slices.brain(axis, 0.5)
        for column, name in enumerate(others):
            image, own = slices.image(name, axis)
            _show(
                axes[row][column],
                checkerboard(_scaled(reference, brain), _scaled(image, brain)),
                f"{SEQUENCE_TITLES[name]} on T1ce, {plane}",
            )
            _line(axes[row][column], seen & own, EDGE)
    for row, (level, share) in enumerate(LEVELS):
        for column, name in enumerate(outlined, len(others)):
            image, seen = slices.image(name, 2, share)
            brain = slices.brain(2, share)
            _show(axes[row][column], _scaled(image, brain), f"{SEQUENCE_TITLES[name]}, {level}")
            _line(axes[row][column], brain, OUTLINE)
            _line(axes[row][column], seen, EDGE)
    if label is not None and to_label is not None:
        _draw_label(axes[:, -1], prepared, label, to_label)
    warned = ", ".join(dict.fromkeys(one.kind for one in prepared.judge.found))
    figure.suptitle(
        printable(f"{prepared.case} - for research only" + f"; WARNING: {warned}" * bool(warned)),
        color="white",
        fontsize=10,
        parse_math=False,
    )
    figure.text(0.01, 0.01, "blue: brain that was found; orange: edge of the field of view", color="white", fontsize=8)
    figure.subplots_adjust(0.005, 0.03, 0.995, 0.93, wspace=0.03, hspace=0.1)
    return figure


def _draw_label(axes: Array, prepared: Preparation, label: Volume, to_label: Array) -> None:
    # Slices as the scanner made them, along their thickest axis, through the largest parts of the tumor.
    scan = prepared.scans[REFERENCE].volume
    labels = resample(label, scan.affine, scan.voxels.shape, to_label, order=0, mode="grid-constant").voxels
    drawn = (scan.voxels, parts_of(labels.astype(np.uint8)), prepared.brain.voxels)
    images = [in_lps(Volume(voxels, scan.affine).as_image()) for voxels in drawn]
    image, parts, brain = (np.asanyarray(one.dataobj) for one in images)
    axis = int(np.argmax(nib.affines.voxel_sizes(images[0].affine)))
    others = tuple(number for number in range(3) if number != axis)
    found = np.flatnonzero(parts.any(axis=others)) if parts.any() else np.arange(parts.shape[axis])
    for ax, share in zip(axes, (0.25, 0.5, 0.75), strict=True):
        at = int(found[int(share * (len(found) - 1))])
        plane, part, inside = (plane_of(volume, axis, at) for volume in (image, parts, brain))
        _show(ax, _scaled(plane, inside > 0), f"label, slice {at + 1} of T1ce")
        draw_colors(ax, part, (0.0, float(plane.shape[1]), float(plane.shape[0]), 0.0))
