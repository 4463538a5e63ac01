# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Ways to run the network over a volume that MONAI's inferers do not have."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import torch
import torch.nn.functional as F
from monai.inferers import Inferer, SimpleInferer, SlidingWindowInferer
from monai.utils import convert_to_dst_type
from scripts.errors import InputError

logger = logging.getLogger(__name__)

# Probabilities this close to 0 or 1 are as good as certain; beyond, float32 logits would become infinite.
SMALLEST_PROBABILITY = 1e-7
# A probability of 2e-9, by sigmoid.
BACKGROUND_LOGIT = -20.0


class BrainWindowInferer(SlidingWindowInferer):
    """MONAI's sliding window that passes over windows without brain, whose voxels are all exactly 0.

    They are background by the data's own definition; their logits are those of a probability of next to 0.

    Args:
        args, kwargs: MONAI's.
        out_channels: output maps of the network.
    """

    def __init__(self, *args: Any, out_channels: int = 4, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.out_channels = out_channels

    def __call__(self, inputs: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Logits of the size of ``inputs``, (batch, channel, *size); the arguments are MONAI's."""

        def windows_with_brain(windows: torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor:
            brain = windows.flatten(1).any(dim=1)
            if bool(brain.all()):
                return network(windows, *rest, **options)
            result = windows.new_full((len(windows), self.out_channels, *windows.shape[2:]), BACKGROUND_LOGIT)
            # Of classes that exclude each other the background is the likeliest.
            result[:, 0] = -BACKGROUND_LOGIT
            if bool(brain.any()):
                result[brain] = network(windows[brain], *rest, **options).to(result.dtype)
            return result

        return super().__call__(inputs, windows_with_brain, *args, **kwargs)


class WholeVolumeInferer(Inferer):
    """The whole volume in one forward, padded with zeros at its ends to the multiple that the network takes.

    Args:
        multiple: what each size must be a multiple of.
    """

    def __init__(self, multiple: int = 16) -> None:
        super().__init__()
        self.multiple = multiple

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Logits of the size of ``inputs``, (batch, channel, *size)."""
        size = inputs.shape[2:]
        wanted = [max(-(-n // self.multiple) * self.multiple, 2 * self.multiple) for n in size]
        before = [(to - n) // 2 for n, to in zip(size, wanted, strict=True)]
        padding = [p for n, to, b in zip(size, wanted, before, strict=True) for p in (to - n - b, b)]
        # Without metadata, which would slow down each of the network's operations.
        plain = torch.as_tensor(inputs).as_subclass(torch.Tensor)
        result = network(F.pad(plain, padding[::-1]), *args, **kwargs)
        for axis, (start, length) in enumerate(zip(before, size, strict=True), 2):
            result = result.narrow(axis, start, length)
        # Mixed precision gives 16 bits, too few for probabilities near 0 and 1.
        return convert_to_dst_type(result, inputs, dtype=torch.float32)[0]


class CompiledInferer(Inferer):
    """One forward of the network as ``torch.compile`` makes it; as it is where that fails, which one warning says.

    What the gradient takes is compiled with the first forward, so that a failure there has the same remedy.

    MONAI's engines can compile as well, but then a machine without compiler or Triton ends the run.

    Args:
        enabled: if false, one forward of the network, as MONAI's ``SimpleInferer`` does.
    """

    def __init__(self, enabled: bool = True) -> None:
        super().__init__()
        self.enabled = enabled
        self.network: Callable[..., Any] | None = None
        self.compiled: Callable[..., Any] | None = None

    def __call__(self, inputs: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """What ``network`` makes of ``inputs``."""
        if not self.enabled:
            return network(inputs, *args, **kwargs)
        # The compiler knows nothing of MONAI's tensors with metadata.
        plain = torch.as_tensor(inputs).as_subclass(torch.Tensor)
        try:
            if self.compiled is None or self.network is not network:
                # Patches are of one size.
                self.network, self.compiled = network, torch.compile(network, dynamic=False)
            # Else the gradient's part is compiled only when it is asked for, where nothing could go on without it.
            with torch._functorch.config.patch(force_non_lazy_backward_lowering=True):
                return self.compiled(plain, *args, **kwargs)
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = " ".join(str(error).split())[:200]
            logger.warning("torch.compile failed (%s); going on without it.", reason)
            self.enabled, self.compiled = False, None
            return network(plain, *args, **kwargs)


class MeanProbability:
    """The mean of several predictions, at the level of probabilities, as logits.

    Args:
        exclusive: the channels exclude each other (softmax) instead of overlapping (sigmoid).
    """

    def __init__(self, exclusive: bool = False) -> None:
        self.exclusive = exclusive
        self.total: torch.Tensor | None = None
        self.count = 0

    def add(self, logits: torch.Tensor) -> None:
        """Take in one prediction, (batch, channel, *size); where it is not finite, neither is the mean."""
        logits = logits.float()
        probability = logits.softmax(dim=1) if self.exclusive else logits.sigmoid()
        # Faults of the network must not pass for certainty.
        probability = probability.masked_fill_(~logits.isfinite(), torch.nan)
        self.total = probability if self.total is None else self.total.add_(probability)
        self.count += 1

    def logits(self) -> torch.Tensor:
        """Logits of the mean, of the same shape; of one prediction at least."""
        assert self.total is not None
        mean = (self.total / self.count).clamp(SMALLEST_PROBABILITY, 1 - SMALLEST_PROBABILITY)
        # The softmax of logarithms that sum to one are the probabilities themselves.
        return mean.log() if self.exclusive else torch.logit(mean)


class FlipInferer(Inferer):
    """Test-time augmentation: the mean over all flips, at the level of probabilities, of another inferer's results.

    The result is again logits, those of the mean, so that nothing that follows need know of it.

    Args:
        inferer: what each flipped volume is given to; one forward by default.
        axes: spatial axes to flip, in all combinations: eight forwards for three.
        exclusive: the channels exclude each other (softmax) instead of overlapping (sigmoid).

    Raises:
        InputError: an axis is not a spatial one or stands there twice.
    """

    def __init__(
        self, inferer: Inferer | None = None, axes: Sequence[int] = (0, 1, 2), exclusive: bool = False
    ) -> None:
        super().__init__()
        if not set(axes) <= {0, 1, 2} or len(set(axes)) != len(axes):
            raise InputError(f"flip axes {list(axes)}: name each of 0, 1, 2 once at most.")
        self.inferer = inferer or SimpleInferer()
        self.flips = [flip for count in range(len(axes) + 1) for flip in combinations(axes, count)]
        self.exclusive = exclusive

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Logits of the mean probability, of the size of ``inputs``, (batch, channel, *size)."""
        mean = MeanProbability(self.exclusive)
        for flip in self.flips:
            dims = [axis + 2 for axis in flip]
            mean.add(torch.flip(self.inferer(torch.flip(inputs, dims), network, *args, **kwargs), dims))
        return mean.logits()
