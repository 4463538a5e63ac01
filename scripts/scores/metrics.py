# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Metrics that score every case, also where a region is empty.

MONAI's metrics give NaN for most empty regions, and NaN silently drops the case from the mean. This module has no Dice
metric, because MONAI's ``DiceMetric(ignore_empty=False)`` follows the BraTS 2020 rule: Dice is 1 if both regions are
empty, and 0 if one of them is empty.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.data.utils import affine_to_spacing
from monai.metrics import CumulativeIterationMetric, compute_hausdorff_distance
from monai.metrics.utils import get_code_to_measure_table
from scipy.spatial import KDTree
from scripts.data.regions import lesion_box
from scripts.data.transforms import GRID_VOXELS
from scripts.scores.table import columns_of

# BraTS 2020 gives this distance to a missed or falsely predicted region: the diagonal of its grid of 240 x 240 x 155
# voxels of 1 mm.
WORST_HD95_MM = 373.12866
# A spacing that was computed from an affine is off by rounding, which must not decide whether a distance of one voxel
# is within a tolerance of 1 mm.
ROUNDING_MM = 1e-4


@dataclass(frozen=True)
class Grid:
    """The grid in which a case is scored."""

    spacing: Sequence[float]  # size of a voxel along each axis in mm
    voxels: int  # of the whole grid, of which a metric may get only the box of the lesion


class RegionMetric(CumulativeIterationMetric):
    """Base of metrics that give ET, TC and WT of every case one score or several.

    A subclass names its ``scores`` (``scripts.scores.table``) and defines ``score``. The buffer has the shape (cases,
    scores x regions), in the order of ``columns_of``.
    """

    scores: Sequence[str]

    @abstractmethod
    def score(self, pred: torch.Tensor, reference: torch.Tensor, grid: Grid) -> Sequence[float]:
        """The scores of one region, from two masks, bool of shape (*size)."""

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor:
        """Scores of shape (batch, scores x regions) from background and regions of shape (batch, channel, *size)."""
        if y is None or y_pred.shape != y.shape:
            raise ValueError(f"Expected two tensors of one shape, got {y_pred.shape} and {getattr(y, 'shape', None)}.")
        grid = _grid(y)
        # Plain tensors are faster, because metadata slows down each of the many steps on small boxes.
        y_pred, y = (torch.as_tensor(t[:, 1:]).as_subclass(torch.Tensor) > 0 for t in (y_pred, y))
        cases = []
        for pred, reference in zip(y_pred, y, strict=True):
            by_region = [self.score(p, r, grid) for p, r in zip(pred, reference, strict=True)]
            cases.append([value for values in zip(*by_region, strict=True) for value in values])
        return torch.tensor(cases, device=y.device)

    def aggregate(self) -> dict[str, float]:
        """Means over all cases since the last reset, by names such as ``val_hd95_ET``.

        Raises:
            ValueError: no case has been scored since the last reset.
        """
        values = self.get_buffer()
        if not isinstance(values, torch.Tensor):
            raise ValueError("No case has been scored since the last reset.")
        names = [f"val_{column}" for column in columns_of(self.scores)]
        return dict(zip(names, values.mean(dim=0).tolist(), strict=True))


def _grid(regions: torch.Tensor) -> Grid:
    """The grid of regions, (batch, channel, *size). Without metadata a voxel counts as 1 mm."""
    voxels, axes = regions[0, 0].numel(), regions.dim() - 2
    if not isinstance(regions, MetaTensor):
        return Grid([1.0] * axes, voxels)
    # A batch has one affine, or one for each case. Its cases share their grid, so the first affine is enough.
    affine = regions.affine.reshape(-1, *regions.affine.shape[-2:])[0]
    voxels = int(torch.as_tensor(regions.meta.get(GRID_VOXELS, voxels)).reshape(-1)[0])
    return Grid(affine_to_spacing(affine).tolist()[:axes], voxels)


def _distances(ours: np.ndarray, theirs: np.ndarray, reach: float = np.inf) -> tuple[np.ndarray, np.ndarray]:
    """How far each of our points, (points, axes), is from the nearest of theirs, and each of theirs from ours.

    It is infinite beyond ``reach``.
    """
    there, _ = KDTree(theirs, leafsize=32).query(ours, distance_upper_bound=reach)
    back, _ = KDTree(ours, leafsize=32).query(theirs, distance_upper_bound=reach)
    return there, back


def surface_hausdorff95(pred: torch.Tensor, reference: torch.Tensor, spacing: Sequence[float]) -> float:
    """95th percentile of the Hausdorff distance of the surfaces of two masks, in mm.

    It is the larger of the two directed 95th percentiles. Each piece of a surface counts by its area, as in the program
    of BraTS-GLI 2023: a directed percentile is the smallest distance within which 95% of the one surface's area lies of
    the other surface. The surfaces are those of ``SurfaceDice``, and the definition is ``compute_robust_hausdorff`` of
    https://github.com/google-deepmind/surface-distance.

    Args:
        pred: mask, bool of shape (*size), not empty, with two or three axes.
        reference: mask of the same shape, not empty.
        spacing: size of a voxel along each axis in mm.

    Example:
        A seventh of the reference is missed, with less than 5% of its area:

        >>> pred, reference = torch.zeros(2, 9, 9, 9).bool()
        >>> pred[1:7, 4, 4] = reference[:7, 4, 4] = True
        >>> surface_hausdorff95(pred, reference, [1.0] * 3)
        0.0
    """
    (ours, own), (theirs, other) = (_surface(mask, spacing) for mask in (pred, reference))
    directed = zip(_distances(ours, theirs), (own, other), strict=True)
    return max(float(np.quantile(mm, 0.95, weights=areas, method="inverted_cdf")) for mm, areas in directed)


class BratsHausdorffDistance95(RegionMetric):
    """95th percentile of the Hausdorff distance in mm, with the BraTS 2020 rule for empty regions.

    If both regions are empty, the distance is 0. If one of them is empty, the distance is 373.12866. Otherwise it is
    MONAI's: the larger of the two directed 95th percentiles. Medpy pools both directions before it takes the
    percentile, which gives smaller values. The distance of BraTS 2023 is ``surface_hausdorff95``.

    Example:
        ET is predicted two voxels beside its place, TC is missed, and WT is absent and not predicted:

        >>> label, pred = torch.zeros(1, 4, 8, 8, 8), torch.zeros(1, 4, 8, 8, 8)
        >>> label[0, 1, 2, 2, 2] = pred[0, 1, 4, 2, 2] = label[0, 2, 2, 2, 2] = 1
        >>> hd95 = BratsHausdorffDistance95()
        >>> distances = hd95(pred, label)
        >>> {name: round(mean, 2) for name, mean in hd95.aggregate().items()}
        {'val_hd95_ET': 2.0, 'val_hd95_TC': 373.13, 'val_hd95_WT': 0.0}
    """

    scores = ("hd95",)

    def score(self, pred: torch.Tensor, reference: torch.Tensor, grid: Grid) -> tuple[float]:
        """The distance of one region."""
        if bool(pred.any()) != bool(reference.any()):
            return (WORST_HD95_MM,)
        if not pred.any():
            return (0.0,)
        masks = pred[None, None], reference[None, None]
        return (float(compute_hausdorff_distance(*masks, True, percentile=95, spacing=list(grid.spacing))),)


class SensitivitySpecificity(RegionMetric):
    """Sensitivity and specificity by voxels of the whole grid.

    The sensitivity is the share of the reference's voxels that are predicted. Where the reference is empty, it is 1 if
    nothing is predicted, and 0 otherwise. The specificity is the share of the other voxels that are not predicted. In a
    grid of 240 x 240 x 155 voxels nearly all voxels are background, so it is always close to 1. Where the reference
    fills the grid, it is 1.

    BraTS 2020 reported both, but it gave no sensitivity to a case with an empty reference. The rule here is that of its
    Dice. MONAI's ``ConfusionMatrixMetric`` would drop such a case, and it would count only the voxels of the box that
    ``CropToLesiond`` leaves.

    Example:
        ET is half found, TC is invented, and WT is absent and not predicted. The grid has 512 voxels:

        >>> label, pred = torch.zeros(1, 4, 8, 8, 8), torch.zeros(1, 4, 8, 8, 8)
        >>> label[0, 1, 0, 0, :2] = pred[0, 1, 0, 0, 1:2] = pred[0, 2, :2] = 1
        >>> SensitivitySpecificity()(pred, label).tolist()
        [[0.5, 0.0, 1.0, 1.0, 0.75, 1.0]]
    """

    scores = ("sensitivity", "specificity")

    def score(self, pred: torch.Tensor, reference: torch.Tensor, grid: Grid) -> tuple[float, float]:
        """Sensitivity and specificity of one region."""
        found, predicted, positive = (int(mask.sum()) for mask in (pred & reference, pred, reference))
        negative = grid.voxels - positive
        sensitivity = found / positive if positive else float(predicted == 0)
        specificity = (negative - (predicted - found)) / negative if negative else 1.0
        return sensitivity, specificity


class SurfaceDice(RegionMetric):
    """Normalized surface Dice: the share of both surfaces that lies within a tolerance of the other one.

    If both regions are empty, the score is 1. If one of them is empty, the score is 0. MONAI gives NaN if both are.

    The surfaces and their areas are those of Nikolov et al. (arXiv 1809.04430), which BraTS uses, too: the surface runs
    between the voxels, and each piece of it counts by its area in mm^2. The scores are those of MONAI's
    ``compute_surface_dice(use_subvoxels=True)``, which takes many times longer (``benchmark scores``).

    Args:
        tolerances: tolerances in mm. The metric gives one score for each.

    Example:
        A cube of ET is predicted one voxel beside its place, so its whole surface is within 1 mm of the other:

        >>> label, pred = torch.zeros(1, 4, 16, 16, 16), torch.zeros(1, 4, 16, 16, 16)
        >>> label[0, 1, 4:10, 4:10, 4:10] = pred[0, 1, 5:11, 4:10, 4:10] = 1
        >>> [round(score, 2) for score in SurfaceDice([0.5, 1.0])(pred, label)[0].tolist()]
        [0.67, 1.0, 1.0, 1.0, 1.0, 1.0]
    """

    def __init__(self, tolerances: Sequence[float] = (0.5, 1.0)) -> None:
        super().__init__()
        self.scores = [f"surface_dice_{tolerance:g}mm" for tolerance in tolerances]
        self.tolerances = [tolerance + ROUNDING_MM for tolerance in tolerances]

    def score(self, pred: torch.Tensor, reference: torch.Tensor, grid: Grid) -> list[float]:
        """The score of one region for each tolerance."""
        if not (pred.any() and reference.any()):
            return [float(not (pred.any() or reference.any()))] * len(self.tolerances)
        (ours, own), (theirs, other) = (_surface(mask, grid.spacing) for mask in (pred, reference))
        there, back = _distances(ours, theirs, max(self.tolerances) + ROUNDING_MM)
        return [
            float((own[there <= tolerance].sum() + other[back <= tolerance].sum()) / (own.sum() + other.sum()))
            for tolerance in self.tolerances
        ]


def _surface(mask: torch.Tensor, spacing: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """The surface of a mask, which is not empty, as points between the voxels.

    Returns:
        The points in mm, of shape (points, axes), and their areas in mm^2, of shape (points,).
    """
    # The table has the area by the code of a point, which is the sum of the weights of the voxels around the point.
    areas, weights = get_code_to_measure_table(tuple(spacing))
    table, corners = areas.numpy(), weights.numpy().reshape((2,) * mask.dim())
    box = lesion_box([mask])
    padded = np.pad(mask[box].cpu().numpy(), 1).astype(np.uint8)
    size = [n - 1 for n in padded.shape]
    codes = np.zeros(size, np.uint8)
    for corner in np.ndindex(corners.shape):
        codes += np.uint8(corners[corner]) * padded[tuple(slice(c, c + n) for c, n in zip(corner, size, strict=True))]
    points = np.argwhere((codes != 0) & (codes != len(table) - 1))
    return (points + [along.start for along in box]) * np.asarray(spacing), table[codes[tuple(points.T)]].astype(float)
