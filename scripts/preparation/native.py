# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""From the grid of prepared sequences back to the grid of a scan."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from scripts.preparation.folder import read_native_grid
from scripts.preparation.grids import Volume, resample

# The key of a case's entry for its ``prepared.json``.
RECORD_KEY = "preparation"


class ToNativeGridd(MapTransform):
    """Bring maps, (channel, *size), to the grid of a scan, by linear interpolation; 0 outside.

    Args:
        keys: keys of the maps.
        sequence: that of the scan. Without it, and in items without ``preparation``, maps stay as they are.
    """

    def __init__(self, keys: KeysCollection, sequence: str | None = None) -> None:
        super().__init__(keys)
        self.sequence = sequence

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Bring the maps of one case back."""
        item = dict(data)
        if self.sequence is None or RECORD_KEY not in item:
            return item
        grid = read_native_grid(item[RECORD_KEY], self.sequence)
        for key in self.key_iterator(item):
            affine = np.asarray(item[key].affine, dtype=float)
            maps = [
                resample(Volume(one, affine), grid.affine, grid.shape, grid.to_prepared).voxels
                for one in np.asarray(item[key].cpu(), dtype=np.float32)
            ]
            item[key] = MetaTensor(torch.from_numpy(np.stack(maps)), affine=torch.as_tensor(grid.affine))
        return item
