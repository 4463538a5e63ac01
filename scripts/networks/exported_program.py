# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""A network as a program of torch.export."""

import torch
from scripts.networks.protocol import SegmentationNetwork

# torch.export needs an upper bound; this one allows windows larger than any scanner's volume.
MAX_MULTIPLE = 128


def export_network(network: SegmentationNetwork) -> torch.export.ExportedProgram:
    """Return the network in evaluation mode as an exported program, for any batch and any permitted size.

    Args:
        network: takes (batch, ``in_channels``, *size), each size a multiple of its ``size_multiple``.

    Returns:
        A program that maps such a tensor to logits of shape (batch, out_channels, *size). Each size must be at least
        twice the multiple, because torch.export takes a deepest level of one voxel for a constant.
    """
    multiple, channels, dims = network.size_multiple, network.in_channels, network.spatial_dims
    # The sizes differ, so that torch.export does not take two axes for one.
    example = torch.zeros(2, channels, *(multiple * n for n in (2, 3, 4)[:dims]))
    shapes: dict[int, torch.export.Dim] = {0: torch.export.Dim("batch", max=1024)}
    for axis, name in zip(range(2, 2 + dims), ("height", "width", "depth"), strict=False):
        shapes[axis] = multiple * torch.export.Dim(name, max=MAX_MULTIPLE)
    with torch.no_grad():
        return torch.export.export(network.eval(), (example,), dynamic_shapes=(shapes,))
