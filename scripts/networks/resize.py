# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Linear resizing of feature maps. It is the network's only interpolation."""

import functools

import torch
import torch.nn.functional as F


def resize_like(x: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Resize (batch, channel, *spatial) to the spatial size of ``reference``, bilinear or trilinear.

    Example:
        >>> resize_like(torch.tensor([[[[0.0, 1.0]]]]), torch.zeros(1, 1, 1, 4)).flatten().tolist()
        [0.0, 0.25, 0.75, 1.0]
    """
    if not torch.jit.is_scripting() and not torch.jit.is_tracing():
        in_training = x.requires_grad
        if in_training and prefers_matrices(x):
            return resize_by_matrices(x, list(reference.shape[2:]))
    mode = "trilinear" if x.dim() == 5 else "bilinear"
    return F.interpolate(x, size=reference.shape[2:], mode=mode, align_corners=False)


@torch.jit.unused
def prefers_matrices(x: torch.Tensor) -> bool:
    """Whether matrix products resize ``x`` better than torch's interpolation, in a training.

    On a GPU the gradient of torch's interpolation sums up in no fixed order and in bfloat16. So it is neither
    reproducible nor exact. On a CPU it is slow unless it finds many channels beside each other.
    """
    if x.is_cuda:
        return True
    return x.dim() == 5 and (x.shape[1] < 8 or not x.is_contiguous(memory_format=torch.channels_last_3d))


@torch.jit.unused
def resize_by_matrices(x: torch.Tensor, size: list[int]) -> torch.Tensor:
    """Resize (batch, channel, *spatial) to ``size`` as ``interpolate`` does, by one matrix product for each axis.

    The gradient consists of matrix products, too. With a factor of 2, 4 or 8 the weights are exact in bfloat16.

    Example:
        >>> resize_by_matrices(torch.tensor([[[[0.0, 1.0]]]]), [1, 4]).flatten().tolist()
        [0.0, 0.25, 0.75, 1.0]
    """
    weights_of = linear_weights if torch.compiler.is_compiling() else kept_linear_weights
    # The last axis comes first, because its product needs no other memory layout.
    for axis in range(x.dim() - 1, 1, -1):
        old, new = x.shape[axis], size[axis - 2]
        if old == new:
            continue
        weights = weights_of(old, new, x.device, x.dtype)
        last = axis == x.dim() - 1
        x = x @ weights.T if last else (weights @ x.flatten(axis + 1)).unflatten(-1, x.shape[axis + 1 :])
    return x


def linear_weights(old: int, new: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Matrix (new, old) of linear interpolation from ``old`` to ``new`` points (align_corners=False).

    Example:
        >>> linear_weights(2, 4, torch.device("cpu"), torch.float32).tolist()
        [[1.0, 0.0], [0.75, 0.25], [0.25, 0.75], [0.0, 1.0]]
    """
    position = (torch.arange(new, dtype=torch.float64, device=device) + 0.5) * (old / new) - 0.5
    distance = position.clamp(0, old - 1)[:, None] - torch.arange(old, device=device)
    return (1 - distance.abs()).clamp(min=0).to(dtype)


# A training needs some dozen sizes of matrices. Each is made once, so a step does not pay for them.
kept_linear_weights = functools.cache(linear_weights)
