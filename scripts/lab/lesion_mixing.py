# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Lesions of one patient in the brain of another patient, as training samples."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, RandomizableTransform
from monai.utils import convert_to_dst_type
from scipy import ndimage
from scripts.brats import patient_name
from scripts.utils.errors import InputError

READING = ("et_label", "edema_label", "label_release")


@dataclass(frozen=True)
class Donor:
    """The box around the lesions of a patient.

    Attributes:
        image: the sequences, (4, *size).
        label: the label map, (1, *size).
        outside: distance of each voxel from the lesions, voxels; 0 inside.
        center: center of the box relative to the brain's box, from 0 to 1 along each axis.
    """

    image: np.ndarray
    label: np.ndarray
    outside: np.ndarray
    center: np.ndarray


class RandCarveMixd(RandomizableTransform, MapTransform):
    """A transform that pastes the lesions of another patient into a brain, at about the same place.

    Tumors are rare, and a network that has seen each of a few tumors in one brain only learns the brain as well. The
    idea is that of CarveMix (Zhang et al., NeuroImage 271, 2023) and TumorCP (Yang et al., MICCAI 2021). Here all
    lesions of the donor are carved out with a margin and pasted with a soft border. They may change sides. Where they
    come to lie outside the brain, nothing is pasted. The margin is healthy tissue of the donor, so it replaces lesions
    of the other brain.

    It comes after the normalization and before patches are cut. A case whose label values have another meaning than
    those of all other patients stays as it is.

    Args:
        keys: the keys of the image, (4, *size), and the label map, (1, *size), in this order.
        data: entries of the patients whose lesions may be pasted. Only training patients may be among them.
        transform: what brings an entry into the form of the samples.
        prob: probability that lesions are pasted.
        margin: range of the margin around the lesions, voxels.
        shift: largest shift along each axis, voxels.

    Raises:
        InputError: (when called) no other patient has a lesion.
    """

    def __init__(
        self,
        keys: KeysCollection,
        data: Sequence[Mapping[str, Any]],
        transform: Callable[[Any], Any],
        prob: float = 0.3,
        margin: tuple[float, float] = (0.5, 3.0),
        shift: int = 6,
    ) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)
        self.data = list(data)
        self.transform = transform
        self.margin = margin
        self.shift = shift
        self.donors: dict[int, Donor | None] = {}

    def donor(self, number: int) -> Donor | None:
        """The lesions of an entry, which is read at its first use; None if it has none."""
        if number not in self.donors:
            image_key, label_key = self.keys
            item = self.transform(dict(self.data[number]))
            image, label = (np.asarray(item[key], dtype=np.float32) for key in (image_key, label_key))
            if not label.any():
                self.donors[number] = None
                return None
            span = ndimage.find_objects((label[0] > 0).astype(np.uint8))[0]
            reach = int(self.margin[1]) + 2
            box = tuple(slice(max(s.start - reach, 0), s.stop + reach) for s in span)
            label_box = label[(slice(None), *box)].copy()
            outside = ndimage.distance_transform_edt(label_box[0] == 0).astype(np.float32)
            center = [(b.start + min(b.stop, n)) / 2 / n for b, n in zip(box, label.shape[1:], strict=True)]
            self.donors[number] = Donor(image[(slice(None), *box)].copy(), label_box, outside, np.array(center))
        return self.donors[number]

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Paste lesions into one case, or leave it as it is."""
        item = dict(data)
        self.randomize(None)
        if not self._do_transform:
            return item
        patient = patient_name(str(item["case"]))
        fitting = [
            number
            for number, entry in enumerate(self.data)
            if patient_name(str(entry["case"])) != patient and all(entry.get(k) == item.get(k) for k in READING)
        ]
        if not fitting:
            return item
        donor = None
        while donor is None:
            if not fitting:
                raise InputError(f"{item['case']}: no other patient has a lesion to mix in; leave lesion mixing out.")
            donor = self.donor(fitting.pop(int(self.R.randint(len(fitting)))))
        flip, margin = self.R.random_sample() < 0.5, self.R.uniform(*self.margin)
        shift = self.R.randint(-self.shift, self.shift + 1, 3)
        image_key, label_key = self.keys
        image = np.array(item[image_key], dtype=np.float32)
        label = np.array(item[label_key], dtype=np.float32)
        lesion, values, outside, center = donor.image, donor.label, donor.outside, donor.center.copy()
        if flip:  # the first axis runs from side to side
            lesion, values, outside = lesion[:, ::-1], values[:, ::-1], outside[::-1]
            center[0] = 1 - center[0]
        size, room = np.array(outside.shape), np.array(image.shape[1:])
        start = np.rint(center * room - size / 2).astype(int) + shift
        there = tuple(slice(max(a, 0), min(a + n, r)) for a, n, r in zip(start, size, room, strict=True))
        here = tuple(slice(t.start - a, t.stop - a) for t, a in zip(there, start, strict=True))
        if any(t.stop <= t.start for t in there):
            return item
        both = (slice(None), *there)
        source = (slice(None), *here)
        brain = image[both].any(axis=0) & lesion[source].any(axis=0)
        # Over about a voxel, the lesion's surroundings become the other brain.
        share = np.clip(margin + 0.5 - outside[here], 0, 1) * brain
        image[both] += share * (lesion[source] - image[both])
        # In the margin the donor's label is 0, and a lesion of this brain is gone.
        replaced = brain & (share >= 0.5)
        label[both] = np.where(replaced, values[source], label[both])
        for key, array in ((image_key, image), (label_key, label)):
            item[key] = convert_to_dst_type(torch.from_numpy(array), item[key])[0]
        return item
