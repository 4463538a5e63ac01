# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Size and cost of a network: its parameters, and the floating-point operations (FLOPs) of one forward pass."""

from collections.abc import Sequence

import torch
from monai.networks.utils import eval_mode
from scripts.networks.protocol import SegmentationNetwork
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode


def parameters(network: torch.nn.Module) -> int:
    """Number of learned values of ``network``. Running statistics and other buffers do not count.

    Example:
        >>> parameters(torch.nn.Conv3d(4, 8, kernel_size=3))
        872
    """
    return sum(parameter.numel() for parameter in network.parameters())


def flops(network: SegmentationNetwork, size: Sequence[int]) -> int:
    """FLOPs of one forward pass in evaluation mode, of one image.

    A multiply-add counts as two operations. Convolutions, transposed convolutions, matrix products and attention count;
    normalization, activation, interpolation and biases do not, as usual. They cost little beside the others. The
    computation runs on shapes alone (torch's meta device), so it takes neither time nor memory.

    Args:
        network: the network, on any device. It is left as it is.
        size: spatial size of the image, in voxels.

    Raises:
        ValueError: the network cannot take an image of this size.

    Example:
        A kernel of 27 voxels and 4 channels gives 108 multiply-adds for each of 8 maps in 4096 voxels:

        >>> class Convolution(torch.nn.Conv3d):
        ...     spatial_dims, size_multiple = 3, 1
        >>> flops(Convolution(4, 8, kernel_size=3, padding=1), (16, 16, 16)) == 2 * 108 * 8 * 16**3
        True
    """
    assert isinstance(network, torch.nn.Module)
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    shapes = {name: tensor.detach().to("meta") for name, tensor in tensors.items()}
    image = torch.empty(1, network.in_channels, *size, device="meta")
    with eval_mode(network), FlopCounterMode(display=False) as counter:
        # DynUNet holds its modules under several names. Without this argument not all of its weights would come back.
        functional_call(network, shapes, (image,), tie_weights=False)
    return int(counter.get_total_flops())
