# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The BraTS 2020 rule for the Hausdorff distance of empty regions.

This module has no Dice metric, because MONAI's ``DiceMetric(ignore_empty=False)`` follows the BraTS rule: Dice is 1 if
both regions are empty, and 0 if one of them is empty.
"""

from __future__ import annotations

from typing import Any

import torch
from monai.data import MetaTensor
from monai.data.utils import affine_to_spacing
from monai.metrics import CumulativeIterationMetric, compute_hausdorff_distance
from monai.metrics.utils import do_metric_reduction
from monai.utils import MetricReduction

# BraTS 2020 gives this distance to a missed or falsely predicted region: the diagonal of its grid of 240 x 240 x 155
# voxels of 1 mm.
WORST_HD95_MM = 373.12866


class BratsHausdorffDistance95(CumulativeIterationMetric):
    """95th percentile of the Hausdorff distance in mm, with the BraTS 2020 rule for empty regions.

    The distance is the larger of the two directed 95th percentiles, as MONAI defines it. Medpy pools both directions
    before it takes the percentile, which gives smaller values. If both regions are empty, the distance is 0. If one of
    them is empty, the distance is 373.12866. MONAI's own metric gives NaN for an empty region and so drops the case
    from the mean.

    Args:
        include_background: whether the first channel is a region to score.
        reduction: reduction that ``aggregate`` applies, as in MONAI's metrics.
        return_with_label: names of the regions, for the reduction "mean_batch". ``aggregate`` then returns a dict.

    Example:
        ET is predicted two voxels beside its place, TC is missed, and WT is absent and not predicted:

        >>> label, pred = torch.zeros(1, 4, 8, 8, 8), torch.zeros(1, 4, 8, 8, 8)
        >>> label[0, 1, 2, 2, 2] = pred[0, 1, 4, 2, 2] = label[0, 2, 2, 2, 2] = 1
        >>> hd95 = BratsHausdorffDistance95(reduction="mean_batch")
        >>> distances = hd95(pred, label)
        >>> [round(distance, 2) for distance in hd95.aggregate().tolist()]
        [2.0, 373.13, 0.0]
    """

    def __init__(
        self,
        include_background: bool = False,
        reduction: MetricReduction | str = MetricReduction.MEAN,
        return_with_label: list[str] | None = None,
    ) -> None:
        super().__init__()
        self.include_background = include_background
        self.reduction = reduction
        self.return_with_label = return_with_label

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor:
        """Distances of shape (batch, regions) from regions, 0 or 1, of shape (batch, channel, *size)."""
        if y is None or y_pred.shape != y.shape:
            raise ValueError(f"Expected two tensors of one shape, got {y_pred.shape} and {getattr(y, 'shape', None)}.")
        spacing = None
        if isinstance(y, MetaTensor):
            # A batch has one affine, or one for each case. Its cases share their grid, so the first affine is enough.
            affine = y.affine.reshape(-1, *y.affine.shape[-2:])[0]
            spacing = affine_to_spacing(affine).tolist()[: y.dim() - 2]
        first = 0 if self.include_background else 1
        # Plain tensors are faster, because metadata slows down each of the many steps on small boxes.
        y_pred, y = (torch.as_tensor(t[:, first:]).as_subclass(torch.Tensor) > 0 for t in (y_pred, y))
        distances = torch.zeros(y.shape[:2], device=y.device)
        for case in range(y.shape[0]):
            for region in range(y.shape[1]):
                a, b = y_pred[case, region], y[case, region]
                if a.any() != b.any():
                    distances[case, region] = WORST_HD95_MM
                elif a.any():
                    distances[case, region] = compute_hausdorff_distance(
                        a[None, None], b[None, None], include_background=True, percentile=95, spacing=spacing
                    )[0, 0]
        return distances

    def aggregate(self, reduction: MetricReduction | str | None = None) -> Any:
        """Reduce the distances of all cases since the last reset.

        Args:
            reduction: reduction to apply instead of the metric's own.

        Returns:
            The reduced distances, or a dict of them by name if ``return_with_label`` is set.

        Raises:
            ValueError: no case has been scored since the last reset.
        """
        values = self.get_buffer()
        if not isinstance(values, torch.Tensor):
            raise ValueError("No case has been scored since the last reset.")
        reduced, _ = do_metric_reduction(values, reduction or self.reduction)
        if self.return_with_label is not None:
            return dict(zip(self.return_with_label, reduced.tolist(), strict=True))
        return reduced
