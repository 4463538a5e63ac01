# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""From the grid of prepared sequences back to the grid of a scan."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from scripts.preparation.grids import Array, Volume, resample
from scripts.utils.files import read_json

# The key of a case's entry for its ``prepared.json``.
RECORD_KEY = "preparation"


@dataclass(frozen=True)
class NativeGrid:
    """The grid of a scan: affine, shape, and the matrix from its mm to those of the prepared sequences."""

    affine: Array
    shape: tuple[int, ...]
    to_prepared: Array


def read_native_grid(record: str | Path, sequence: str) -> NativeGrid:
    """The grid of a scan by the ``prepared.json`` of its case."""
    scan: Mapping[str, Any] = read_json(record)["scans"][sequence]
    return NativeGrid(np.array(scan["affine"]), tuple(scan["shape"]), np.array(scan["to_prepared"]))


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
