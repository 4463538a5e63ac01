# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The deep-supervision loss of the Prior Attention Network."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn as nn
import torch.nn.functional as F
from monai.losses import DiceLoss
from torch.utils.checkpoint import checkpoint

CROSS_ENTROPIES = ("binary", "authors")
WHOLE_TUMOR = 3  # channel of the regions


class PriorAttentionLoss(nn.Module):
    """Weighted sum of Dice and cross-entropy losses over all decoder levels and the prior.

    ``out``, ``level1``, ``level2`` and ``level3`` are compared with the regions, and ``prior`` with the whole tumor.
    Each comparison is a Dice loss plus a cross-entropy. The Dice loss has a sigmoid and a squared denominator. It is
    the mean over all channels, including the background. The result is the weighted sum of these terms (paper, section
    III-D).

    The regions overlap (ET lies in TC, TC lies in WT), so the cross-entropy is BINARY in each channel. MONAI's
    ``DiceCELoss`` does not fit. With several channels it takes a softmax cross-entropy even with ``sigmoid=True``, but
    the targets here sum to up to 3. The authors' program takes a softmax cross-entropy on the argmax of the targets,
    which leaves only the smallest region of each voxel. On the prior, which has one channel, that term is 0.
    ``cross_entropy="authors"`` selects the form of the authors' program.

    With ``exclusive`` the network's channels are classes: background, ET, the rest of TC, the rest of WT. Dice and
    cross-entropy then use a softmax. The prior is a single region, so it keeps the sigmoid and the binary
    cross-entropy.

    Args:
        level_weights: weights of ``out``, ``level1``, ``level2`` and ``level3``.
        prior_weight: weight of the term of ``prior``.
        cross_entropy: "binary" or "authors". It has no effect with ``exclusive``.
        exclusive: learn classes that exclude each other instead of regions that overlap.

    Raises:
        ValueError: an argument has an invalid value.

    Example:
        All-zero logits give each voxel a probability of 0.5, so the binary cross-entropy is log 2, about 0.69. The
        weight halves the term of the prior:

        >>> target = torch.zeros(1, 4, 8, 8, 8)
        >>> target[:, 0] = 1
        >>> prediction = {"out": torch.zeros_like(target), "prior": torch.zeros(1, 1, 8, 8, 8)}
        >>> loss = PriorAttentionLoss(prior_weight=0.5)
        >>> round(float(loss(prediction, target)), 2)
        2.34
        >>> {name: round(float(term), 2) for name, term in loss.last_terms.items()}
        {'out': 1.49, 'prior': 0.85}
    """

    def __init__(
        self,
        level_weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
        prior_weight: float = 1.0,
        cross_entropy: str = "binary",
        exclusive: bool = False,
    ) -> None:
        super().__init__()
        if len(level_weights) != 4:
            raise ValueError(f"level_weights must have four values (out, level1, level2, level3), got {level_weights}.")
        if cross_entropy not in CROSS_ENTROPIES:
            raise ValueError(f"cross_entropy must be one of {CROSS_ENTROPIES}, got {cross_entropy!r}.")
        self.weights = dict(zip(("out", "level1", "level2", "level3"), level_weights, strict=True))
        self.weights["prior"] = prior_weight
        self.cross_entropy = cross_entropy
        self.exclusive = exclusive
        self.dice = DiceLoss(sigmoid=True, squared_pred=True)
        self.softmax_dice = DiceLoss(softmax=True, squared_pred=True)
        self.last_terms: dict[str, torch.Tensor] = {}

    def forward(self, prediction: torch.Tensor | Mapping[str, torch.Tensor], target: torch.Tensor) -> torch.Tensor:
        """Total loss, a scalar.

        Args:
            prediction: dict of logit maps from the network, or one tensor of logits, which counts as ``out``.
            target: regions, 0 or 1, of shape (batch, channel, *size).
        """
        terms = self.terms(prediction, target)
        # The terms are kept for logging. They stay on the device, so that nothing waits for a copy.
        self.last_terms = {name: term.detach() for name, term in terms.items()}
        return torch.stack(list(terms.values())).sum()

    def terms(
        self, prediction: torch.Tensor | Mapping[str, torch.Tensor], target: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """The weighted terms, scalars by the name of the map; the arguments are the same as in ``forward``."""
        maps = {"out": prediction} if isinstance(prediction, torch.Tensor) else prediction
        tumor = target[:, WHOLE_TUMOR : WHOLE_TUMOR + 1]
        if self.exclusive:
            # The classes are the background, ET, TC without ET, and WT without TC.
            target = torch.cat([target[:, :2], target[:, 2:].float() - target[:, 1:-1]], dim=1)
        return {
            # The gradient of a term needs about ten maps of full size. The backward pass computes them again, term by
            # term, so that they never take memory all at once.
            name: self.weights[name]
            * checkpoint(
                self._dice_ce,
                logits,
                tumor if name == "prior" else target,
                name,
                use_reentrant=False,
                preserve_rng_state=False,
            )
            for name, logits in maps.items()
        }

    def _dice_ce(self, logits: torch.Tensor, target: torch.Tensor, name: str) -> torch.Tensor:
        # Float32 is needed, because 16 bits cannot hold a sum over two million voxels.
        logits, target = logits.float(), target.float()
        if self.exclusive and name != "prior":
            exclusive_dice: torch.Tensor = self.softmax_dice(logits, target)
            return exclusive_dice + F.cross_entropy(logits, target.argmax(dim=1))
        dice: torch.Tensor = self.dice(logits, target)
        if self.exclusive or self.cross_entropy == "binary":
            return dice + F.binary_cross_entropy_with_logits(logits, target)
        # A single channel has softmax probability 1, so its cross-entropy is 0.
        return dice + F.cross_entropy(logits, target.argmax(dim=1))
