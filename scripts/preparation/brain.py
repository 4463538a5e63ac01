# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The mask of the brain in a head."""

from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from scripts.inference.openvino import OpenVINONetwork
from scripts.preparation.brain_network import BrainNetwork
from scripts.preparation.grids import Array, Volume, isotropic_grid, resample
from scripts.preparation.packages import BRAIN_WEIGHTS, file_of
from scripts.utils.files import BUNDLE_ROOT

# The network was trained at this spacing, with at least this many voxels along an axis.
STEP_MM = 1.5
LEAST = 128
CACHE = BUNDLE_ROOT / "models" / "openvino"


class BrainFinder:
    """Finds the brain in any sequence of a head. The network is converted once, and kept in ``cache_dir``."""

    def __init__(self, cache_dir: Path = CACHE) -> None:
        self.network = OpenVINONetwork(BrainNetwork(), str(file_of(*BRAIN_WEIGHTS)), str(cache_dir))

    def __call__(self, head: Volume) -> Volume:
        """The probability of brain on cubes along the axes of ``head``: of one component without holes."""
        grid = isotropic_grid(head, STEP_MM)
        # Cubic interpolation, since slices are thick.
        voxels = resample(head, *grid, order=3, mode="nearest").voxels
        size = [max(LEAST, -(-n // BrainNetwork.size_multiple) * BrainNetwork.size_multiple) for n in voxels.shape]
        padded = np.zeros((1, 1, *size), np.float32)
        padded[0, 0][tuple(slice(n) for n in voxels.shape)] = (voxels - voxels.mean()) / max(voxels.std(), 1e-6)
        with torch.inference_mode():
            found = self.network(torch.from_numpy(padded)).softmax(1)[0, 1].numpy()
        probability = found[tuple(slice(n) for n in voxels.shape)]
        inside = probability >= 0.5
        brain = largest_filled(inside)
        return Volume(np.where(brain == inside, probability, brain).astype(np.float32), grid[0])


def largest_filled(mask: Array) -> Array:
    """The largest component of a mask, without holes.

    Example:
        >>> largest_filled(np.array([[1, 0, 1, 1, 1], [0, 0, 1, 0, 1], [0, 0, 1, 1, 1]]) > 0).astype(int).tolist()
        [[0, 0, 1, 1, 1], [0, 0, 1, 1, 1], [0, 0, 1, 1, 1]]
    """
    components, number = ndimage.label(mask)
    if number == 0:
        return np.asarray(mask, bool)
    found: Array = ndimage.binary_fill_holes(components == np.bincount(components.ravel())[1:].argmax() + 1)
    return found
