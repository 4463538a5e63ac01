# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The BraTS 2020 rule for the Hausdorff distance of empty regions.

Dice needs nothing of its own: MONAI's ``DiceMetric(ignore_empty=False)`` is the BraTS rule (both empty 1, one empty 0).
"""

from __future__ import annotations

from typing import Any

import torch
from monai.data import MetaTensor
from monai.data.utils import affine_to_spacing
from monai.metrics import CumulativeIterationMetric, compute_hausdorff_distance
from monai.metrics.utils import do_metric_reduction
from monai.utils import MetricReduction

# Distance for a missed or an invented region: the diagonal of the 240 x 240 x 155 grid at 1 mm (BraTS 2020).
WORST_HD95_MM = 373.12866


class BratsHausdorffDistance95(CumulativeIterationMetric):
    """95th percentile of the Hausdorff distance in mm: the larger of the two directed ones, as MONAI defines it.

    Pooling both directions before the percentile, as medpy does, gives smaller values. Of an empty region (BraTS 2020):
    both empty 0, one empty 373.12866. MONAI's own metric gives NaN there, which drops the case from the mean.

    Args:
        include_background: whether the first channel is a region to score.
        reduction: how ``aggregate`` reduces; see MONAI's metrics.
        return_with_label: with reduction "mean_batch", names of the channels; ``aggregate`` then gives a dict.
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
            # One affine, or one for each case of a batch, which share their grid.
            affine = y.affine.reshape(-1, *y.affine.shape[-2:])[0]
            spacing = affine_to_spacing(affine).tolist()[: y.dim() - 2]
        first = 0 if self.include_background else 1
        # Plain tensors: metadata slows down every one of the many steps on small boxes.
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
        """Reduce the distances of all cases seen since the last reset."""
        values = self.get_buffer()
        if not isinstance(values, torch.Tensor):
            raise ValueError("No case has been scored since the last reset.")
        reduced, _ = do_metric_reduction(values, reduction or self.reduction)
        if self.return_with_label is not None:
            return dict(zip(self.return_with_label, reduced.tolist(), strict=True))
        return reduced
