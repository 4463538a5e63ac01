# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""What a run knows of how certain a result is."""

from collections.abc import Callable, Hashable, Mapping
from typing import Any

import nibabel as nib
import numpy as np
from monai.config import KeysCollection
from monai.transforms import MapTransform
from scripts.brats import REGIONS
from scripts.data.regions import labels_to_regions, region_probabilities
from scripts.scores.certainty import SIGNS, intensity_signs, region_signs


class MeasureCertaintyd(MapTransform):
    """Keep the signs of a result's certainty (``scripts.scores.certainty``) under "signs".

    Args:
        keys: key of the probabilities in the input's grid, (4, *size).
        label_map: the transform that turns them into a label map.
        windows: the inferer that ran the network. A calibration holds for one kind.
        exclusive, et_label: as in ``scripts.data.regions``.
    """

    def __init__(
        self,
        keys: KeysCollection,
        label_map: Callable[[Mapping[Hashable, Any]], Mapping[Hashable, Any]],
        windows: object,
        exclusive: bool = False,
        et_label: int = 4,
    ) -> None:
        super().__init__(keys)
        self.label_map = label_map
        self.windows = type(windows).__name__
        self.exclusive = exclusive
        self.et_label = et_label

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Measure the result of one case."""
        item, result = dict(data), self.label_map(data)
        for key in self.key_iterator(item):
            probabilities = region_probabilities(data[key], self.exclusive)
            regions = labels_to_regions(result[key][0], self.et_label)[1:]
            voxel_mm = nib.affines.voxel_sizes(np.asarray(data[key].affine))
            image = item["image"]
            meta = getattr(image, "meta", {})
            signs = region_signs(probabilities, regions, voxel_mm) | intensity_signs(image)
            if "flip_disagreement" in meta:
                signs |= {
                    f"flip_disagreement_{region}": round(float(value), 4)
                    for region, value in zip(REGIONS, meta["flip_disagreement"], strict=True)
                }
            item[SIGNS] = {
                **signs,
                "flips": int(meta.get("flips", 0)),
                "windows": self.windows,
                "absent": sum(not bool(channel.any()) for channel in image),
                "voxel_mm_smallest": round(float(min(voxel_mm)), 4),
                "voxel_mm_largest": round(float(max(voxel_mm)), 4),
            }
        return item
