# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The deep-supervision loss of the Prior Attention Network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn as nn
import torch.nn.functional as F
from monai.losses import DiceLoss
from torch.utils.checkpoint import checkpoint

CROSS_ENTROPIES = ("binary", "authors")


class PriorAttentionLoss(nn.Module):
    """Dice plus cross-entropy over all decoder levels, plus the same of the prior against the whole tumor.

    For each of ``out``, ``level1``, ``level2``, ``level3`` against the regions, and for ``prior`` against the whole
    tumor: Dice with sigmoid and squared denominator, mean over all channels (background included), plus
    cross-entropy. The result is their weighted sum (paper, section III-D).

    The regions overlap (ET lies in TC, TC in WT), so the cross-entropy is BINARY, per channel. MONAI's
    ``DiceCELoss(sigmoid=True)`` takes a softmax cross-entropy on several channels, whatever ``sigmoid`` says, on
    targets that here sum to up to 3. The authors' program did so on the argmax of the targets, which leaves each voxel
    its smallest region, and on the one-channel prior that term is 0; ``cross_entropy="authors"`` is that form.

    With ``exclusive`` the network's channels are classes instead: background, ET, the rest of TC, the rest of WT. The
    Dice term then takes a softmax, the cross-entropy is that of the softmax, and the prior, which is one region, keeps
    sigmoid and binary cross-entropy.

    Args:
        level_weights: weights of out, level1, level2, level3.
        prior_weight: weight of the prior's term.
        cross_entropy: "binary" or "authors"; of no meaning with ``exclusive``.
        exclusive: learn classes that exclude each other instead of regions that overlap.
        whole_tumor_channel: channel of the target that the prior is compared with.

    Raises:
        ValueError: an argument outside the above.
    """

    def __init__(
        self,
        level_weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
        prior_weight: float = 1.0,
        cross_entropy: str = "binary",
        exclusive: bool = False,
        whole_tumor_channel: int = 3,
    ) -> None:
        super().__init__()
        if len(level_weights) != 4:
            raise ValueError(f"level_weights must have four values (out, level1, level2, level3), got {level_weights}.")
        if cross_entropy not in CROSS_ENTROPIES:
            raise ValueError(f"cross_entropy must be one of {CROSS_ENTROPIES}, got {cross_entropy!r}.")
        self.weights = dict(zip(("out", "level1", "level2", "level3"), level_weights, strict=True))
        self.weights["prior"] = prior_weight
        self.cross_entropy = cross_entropy
        self.whole_tumor_channel = whole_tumor_channel
        self.exclusive = exclusive
        self.dice = DiceLoss(sigmoid=True, squared_pred=True)
        self.softmax_dice = DiceLoss(softmax=True, squared_pred=True)
        self.last_terms: dict[str, torch.Tensor] = {}

    def forward(self, prediction: torch.Tensor | Mapping[str, torch.Tensor], target: torch.Tensor) -> torch.Tensor:
        """Total loss, a scalar.

        Args:
            prediction: the network's dict of logit maps, or its tensor of logits alone, which then counts as ``out``.
            target: regions, 0 or 1, of shape (batch, channel, *size).
        """
        terms = self.terms(prediction, target)
        # Kept for logging, on the device, so that keeping them costs no wait.
        self.last_terms = {name: term.detach() for name, term in terms.items()}
        return torch.stack(list(terms.values())).sum()

    def terms(
        self, prediction: torch.Tensor | Mapping[str, torch.Tensor], target: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """The weighted terms by the map's name, each a scalar."""
        maps = {"out": prediction} if isinstance(prediction, torch.Tensor) else prediction
        tumor = target[:, self.whole_tumor_channel : self.whole_tumor_channel + 1]
        if self.exclusive:
            # Each region without the one inside it: background, ET, TC - ET, WT - TC.
            target = torch.cat([target[:, :2], target[:, 2:].float() - target[:, 1:-1]], dim=1)
        return {
            # What each term's gradient needs is some ten maps of full size; made anew there, they are never all kept.
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
        # Scores and targets in float32: a sum over two million voxels is beyond what 16 bits hold.
        logits, target = logits.float(), target.float()
        if self.exclusive and name != "prior":
            exclusive_dice: torch.Tensor = self.softmax_dice(logits, target)
            return exclusive_dice + F.cross_entropy(logits, target.argmax(dim=1))
        dice: torch.Tensor = self.dice(logits, target)
        if self.exclusive or self.cross_entropy == "binary":
            return dice + F.binary_cross_entropy_with_logits(logits, target)
        # One channel alone has softmax probability 1 and cross-entropy 0.
        return dice + F.cross_entropy(logits, target.argmax(dim=1))
