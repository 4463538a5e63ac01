# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Inferers that MONAI does not have."""

import logging
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.inferers import Inferer, SimpleInferer, SlidingWindowInferer
from monai.utils import convert_to_dst_type
from scripts.data.regions import region_probabilities
from scripts.utils.errors import InputError, one_line
from scripts.utils.machine import computes_in

logger = logging.getLogger(__name__)

# Probabilities closer to 0 or 1 are set to this distance, since float32 logits would become infinite.
SMALLEST_PROBABILITY = 1e-7
# The sigmoid of this logit is 2e-9.
BACKGROUND_LOGIT = -20.0


class BrainWindowInferer(SlidingWindowInferer):
    """MONAI's sliding window, except that it does not run the network on windows without brain.

    All voxels of such a window are exactly 0, so they are background by the definition of the data. In the
    ``out_channels`` maps of the network, their logits mean a probability near 0. Other arguments are MONAI's.

    Example:
        >>> volume = torch.zeros(1, 4, 32, 16, 16)
        >>> volume[:, :, :16] = 1.0  # the brain fills one of two windows
        >>> logits = BrainWindowInferer(roi_size=16, sw_batch_size=2, overlap=0.0)(volume, torch.nn.Identity())
        >>> logits[0, 1, 0, 0, 0].item(), logits[0, 1, 31, 0, 0].item()
        (1.0, -20.0)
    """

    def __init__(self, *args: Any, out_channels: int = 4, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.out_channels = out_channels

    def __call__(self, inputs: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Return logits, (batch, channel, *size), of the size of ``inputs``. The arguments are MONAI's."""

        def windows_with_brain(windows: torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor:
            brain = windows.flatten(1).any(dim=1)
            if bool(brain.all()):
                return network(windows, *rest, **options)
            result = windows.new_full((len(windows), self.out_channels, *windows.shape[2:]), BACKGROUND_LOGIT)
            # If classes exclude each other, channel 0 is the background and must win.
            result[:, 0] = -BACKGROUND_LOGIT
            if bool(brain.any()):
                result[brain] = network(windows[brain], *rest, **options).to(result.dtype)
            return result

        return super().__call__(inputs, windows_with_brain, *args, **kwargs)


class WholeVolumeInferer(Inferer):
    """An inferer that runs the network once over the whole volume.

    It pads the volume with zeros, so that each size is a multiple of ``multiple``, and at least twice that.

    Example:
        >>> class Network(torch.nn.Identity):
        ...     def forward(self, x):
        ...         self.size = tuple(x.shape[2:])
        ...         return x
        >>> network = Network()
        >>> logits = WholeVolumeInferer(multiple=16)(torch.zeros(1, 4, 66, 80, 70), network)
        >>> network.size, tuple(logits.shape[2:])
        ((80, 80, 80), (66, 80, 70))
    """

    def __init__(self, multiple: int = 16) -> None:
        super().__init__()
        self.multiple = multiple

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Return logits, (batch, channel, *size), of the size of ``inputs``."""
        size = inputs.shape[2:]
        wanted = [max(-(-n // self.multiple) * self.multiple, 2 * self.multiple) for n in size]
        before = [(to - n) // 2 for n, to in zip(size, wanted, strict=True)]
        padding = [p for n, to, b in zip(size, wanted, before, strict=True) for p in (to - n - b, b)]
        # Metadata would slow down each operation of the network.
        plain = torch.as_tensor(inputs).as_subclass(torch.Tensor)
        result = network(F.pad(plain, padding[::-1]), *args, **kwargs)
        for axis, (start, length) in enumerate(zip(before, size, strict=True), 2):
            result = result.narrow(axis, start, length)
        # Mixed precision gives 16 bits, which are too few for probabilities near 0 and 1.
        return convert_to_dst_type(result, inputs, dtype=torch.float32)[0]


class MixedPrecisionInferer(Inferer):
    """An inferer that lets another inferer run the network in mixed precision, ``dtype`` ("bfloat16" or "float16").

    MONAI's engines do so on GPUs only. A network that another program runs, such as OpenVINO's, is not affected.

    Raises:
        InputError: a CPU is to compute in float16, for which no trainer scales the loss there, or to run a compiled
            network, whose gradients in bfloat16 can be infinite there (``scripts.networks.blocks.Conv3d``).
    """

    def __init__(self, inferer: Inferer, device: torch.device | str, dtype: str, enabled: bool = True) -> None:
        super().__init__()
        self.inferer = inferer
        self.device = torch.device(device)
        self.dtype = dtype
        self.enabled = enabled
        if enabled and self.device.type == "cpu" and dtype == "float16":
            raise InputError(
                "--amp_dtype float16: a CPU mixes precision in bfloat16 only; set --amp_dtype bfloat16 or --amp False."
            )
        if enabled and self.device.type == "cpu" and isinstance(inferer, CompiledInferer) and inferer.enabled:
            raise InputError(
                "--compile True: a compiled network on a CPU gives wrong gradients in mixed precision; leave out "
                "train_fast.yaml, or set --compile False or --amp False."
            )
        if enabled and not computes_in(self.device, dtype):
            logger.warning("--amp True: %s does not compute in %s, so this is very slow.", self.device, dtype)

    def __call__(self, inputs: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Return what the other inferer returns."""
        if not self.enabled:
            return self.inferer(inputs, network, *args, **kwargs)
        with torch.autocast(self.device.type, getattr(torch, self.dtype)):
            return self.inferer(inputs, network, *args, **kwargs)


class CompiledInferer(Inferer):
    """An inferer that runs the network once, compiled by ``torch.compile``.

    If the compilation fails, or Triton cannot tune or start a kernel of the forward pass, a warning says so, and the
    network runs without it, as it does if ``enabled`` is false. MONAI's engines can compile as well, but there a
    machine without a compiler or Triton ends the run.
    """

    def __init__(self, enabled: bool = True) -> None:
        super().__init__()
        self.enabled = enabled
        self.network: Callable[..., Any] | None = None
        self.compiled: Callable[..., Any] | None = None

    def __call__(self, inputs: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Return the output of ``network`` for ``inputs``."""
        if not self.enabled:
            return network(inputs, *args, **kwargs)
        # The compiler does not know MONAI's tensors with metadata.
        plain = torch.as_tensor(inputs).as_subclass(torch.Tensor)
        try:
            if self.compiled is None or self.network is not network:
                # All patches have one size.
                self.network, self.compiled = network, torch.compile(network, dynamic=False)
            # Otherwise torch compiles the backward pass when it runs, and a failure there could not be caught here.
            with torch._functorch.config.patch(force_non_lazy_backward_lowering=True):
                return self.compiled(plain, *args, **kwargs)
        except Exception as error:
            if not is_of_compiler(error):
                raise
            logger.warning("torch.compile failed (%s); going on without it.", one_line(error)[:200])
        self.enabled, self.compiled = False, None
        return network(plain, *args, **kwargs)


def is_of_compiler(error: Exception) -> bool:
    """Whether ``error`` is of torch's compiler, or of Triton, which tunes and starts kernels when they first run."""
    return (
        isinstance(error, torch._dynamo.exc.TorchDynamoException)
        or type(error).__module__.split(".")[0] == "triton"
        or type(error).__module__.startswith("torch._inductor")
        or str(error).startswith("Triton Error")
    )


class MeanProbability:
    """The mean probability of several predictions, as logits, by sigmoid, or by softmax for ``exclusive`` channels.

    Example:
        >>> mean = MeanProbability()
        >>> mean.add(torch.logit(torch.tensor([[[0.9]]])))
        >>> mean.add(torch.logit(torch.tensor([[[0.5]]])))
        >>> round(mean.logits().sigmoid().item(), 4)
        0.7
    """

    def __init__(self, exclusive: bool = False, with_squares: bool = False) -> None:
        self.exclusive = exclusive
        self.total: torch.Tensor | None = None
        # The squares of the regions' probabilities, which only the disagreement needs.
        self.with_squares = with_squares
        self.squares: torch.Tensor | None = None
        self.count = 0

    def add(self, logits: torch.Tensor) -> None:
        """Add one prediction, (batch, channel, *size). Where it is not finite, the mean is not finite either."""
        logits = logits.float()
        probability = logits.softmax(dim=1) if self.exclusive else logits.sigmoid()
        # A fault of the network must not look like a certain result.
        probability = probability.masked_fill_(~logits.isfinite(), torch.nan)
        if self.with_squares:
            squares = self._regions(probability).square()
            self.squares = squares if self.squares is None else self.squares.add_(squares)
        self.total = probability if self.total is None else self.total.add_(probability)
        self.count += 1

    def _regions(self, probability: torch.Tensor) -> torch.Tensor:
        return torch.stack([region_probabilities(one, self.exclusive) for one in probability])

    def logits(self) -> torch.Tensor:
        """Return the logits of the mean, of the predictions' shape. At least one prediction must have been added."""
        assert self.total is not None
        mean = (self.total / self.count).clamp(SMALLEST_PROBABILITY, 1 - SMALLEST_PROBABILITY)
        # The softmax of the logarithms gives back probabilities that sum to one.
        return mean.log() if self.exclusive else torch.logit(mean)

    def disagreement(self) -> torch.Tensor:
        """Variance of the probabilities of ET, TC and WT, summed and divided by the sum of their mean, (batch, 3)."""
        assert self.total is not None and self.squares is not None
        mean = self._regions(self.total / self.count)
        variance = (self.squares / self.count - mean.square()).clamp(min=0)
        return variance.flatten(2).sum(2) / mean.flatten(2).sum(2).clamp(min=SMALLEST_PROBABILITY)


class FlipInferer(Inferer):
    """Test-time augmentation: the mean probability over all flips of a volume.

    The result is the logits of the mean. The metadata of ``inputs`` get ``flips``, the number of flips, and
    ``flip_disagreement`` (``MeanProbability.disagreement``), one for each volume of the batch.

    Args:
        inferer: the inferer for each flipped volume. By default the network runs once over it.
        axes: spatial axes to flip, in all combinations; three axes give eight runs.
        exclusive: the channels exclude each other (softmax) instead of overlapping (sigmoid).

    Raises:
        InputError: an axis is not a spatial axis, or it is named twice.

    Example:
        >>> FlipInferer(axes=[0, 1]).flips
        [(), (0,), (1,), (0, 1)]
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
        """Return the logits of the mean probability, (batch, channel, *size), of the size of ``inputs``."""
        # Only metadata can hand the disagreement on.
        mean = MeanProbability(self.exclusive, with_squares=isinstance(inputs, MetaTensor))
        for flip in self.flips:
            dims = [axis + 2 for axis in flip]
            mean.add(torch.flip(self.inferer(torch.flip(inputs, dims), network, *args, **kwargs), dims))
        if isinstance(inputs, MetaTensor):
            inputs.meta["flips"] = torch.full((len(inputs),), len(self.flips))
            inputs.meta["flip_disagreement"] = torch.as_tensor(mean.disagreement()).cpu()
        return mean.logits()
