# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""A classifier of single voxels, which shows what the intensities alone tell about the tumor.

It knows the four intensities of a voxel and nothing of its neighbors. A cohort on which it does badly asks for more
than a rule for voxels.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from scripts.brats import CORE_LABEL, EDEMA_LABEL, NONENHANCING_LABEL
from scripts.data.images import read_image, voxels_of

# Intensities are clipped at this many standard deviations from the mean of the brain.
RANGE = 4.0
# Bins for each sequence. With four sequences there are 331,776 cells, of which a brain fills a few thousand.
BINS = 24

Cells = npt.NDArray[np.intp]
Mask = npt.NDArray[np.bool_]


def cells_of(images: npt.NDArray[np.generic]) -> Cells:
    """Number of each voxel's cell in a grid of the four normalized intensities.

    Each sequence is normalized over the voxels to mean 0 and standard deviation 1, as the bundle normalizes brains.

    Args:
        images: intensities of the voxels of one brain, of shape (sequence, voxel).

    Example:
        >>> cells_of(np.array([[1.0, 3.0]])), BINS
        (array([ 9, 15]), 24)
    """
    values = images.astype(np.float64)
    spread = values.std(axis=1, keepdims=True)
    values = (values - values.mean(axis=1, keepdims=True)) / np.where(spread == 0, 1, spread)
    bins = np.clip((values + RANGE) / (2 * RANGE) * BINS, 0, BINS - 1).astype(np.intp)
    cells: Cells = np.ravel_multi_index(tuple(bins), (BINS,) * len(bins))
    return cells


class VoxelClassifier:
    """A histogram of the intensities of tumor and of other tissue.

    The cells that count as tumor are those in which tumor is likeliest. Their number is chosen so that the Dice over
    all voxels of the training is the highest that any choice of cells reaches.

    Args:
        sequences: number of sequences.

    Example:
        >>> classifier = VoxelClassifier(sequences=1)
        >>> classifier.add(np.array([3, 3, 3, 7, 7]), np.array([False, False, True, True, True]))
        >>> classifier.predict(np.array([3, 7, 8]))
        array([False,  True, False])
    """

    def __init__(self, sequences: int = 4) -> None:
        self.tumor = np.zeros(BINS**sequences, np.int64)
        self.all = np.zeros_like(self.tumor)

    def add(self, cells: Cells, tumor: Mask) -> None:
        """Learn from a case: the cells of its voxels, and whether each voxel is tumor."""
        self.all += np.bincount(cells, minlength=self.all.size)
        self.tumor += np.bincount(cells[tumor], minlength=self.all.size)

    def predict(self, cells: Cells) -> Mask:
        """Whether each voxel is tumor. A cell that no voxel of the training fell into is none."""
        order = np.argsort(-self.tumor / np.maximum(self.all, 1), kind="stable")
        dice = 2 * np.cumsum(self.tumor[order]) / (np.cumsum(self.all[order]) + max(self.tumor.sum(), 1))
        chosen = np.zeros(self.all.size, bool)
        chosen[order[: int(dice.argmax()) + 1]] = True
        found: Mask = (chosen & (self.tumor > 0))[cells]
        return found


def voxels_of_case(item: Mapping[str, Any]) -> tuple[np.ndarray, Mask]:
    """The voxels of a case's brain, (4, voxels), and whether each is whole tumor.

    The brain is where any image is not 0.

    Args:
        item: a datalist entry of four images with a label map.

    Raises:
        InputError: a file cannot be read.
    """
    images = np.stack([voxels_of(read_image(path), path) for path in item["image"]])
    labels = voxels_of(read_image(item["label"]), item["label"])
    brain = np.any(images != 0, axis=0)
    tumor = np.isin(labels[brain], (CORE_LABEL, EDEMA_LABEL, NONENHANCING_LABEL, item["et_label"]))
    return images[:, brain], tumor


def dice(found: Mask, tumor: Mask) -> float:
    """Dice of two masks; 1 if both are empty.

    Example:
        >>> dice(np.array([True, True, False]), np.array([True, False, False]))
        0.6666666666666666
    """
    total = int(found.sum()) + int(tumor.sum())
    return 2 * int((found & tumor).sum()) / total if total else 1.0
