# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Transforms for the BraTS rules (``scripts.brats``) that MONAI has no exact counterpart of."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, Spacingd
from scipy import ndimage
from scripts.brats import (
    CORE_LABEL,
    EDEMA_LABEL,
    ET_CHANNEL,
    FORMER_EDEMA_KEY,
    TC_CHANNEL,
    WT_CHANNEL,
    check_et_label,
    check_label_values,
)
from scripts.errors import InputError


def lesion_box(masks: Iterable[torch.Tensor], margin: int = 0) -> tuple[slice, ...]:
    """The smallest box, of a grid of (*size), that holds everything non-zero in ``masks``, each of shape (*size).

    A lesion fills a few per cent of the grid, so what is done in its box alone takes a fraction of the time.

    Args:
        masks: at least one, of one size.
        margin: voxels to add on each side, as far as the grid goes.

    Returns:
        One slice an axis; where nothing is non-zero, a box of one voxel.
    """
    together: np.ndarray | None = None
    for mask in masks:
        values = np.asarray(mask.cpu())
        values = values if values.dtype == bool else values != 0
        together = values if together is None else together | values
    if together is None:
        raise ValueError("lesion_box needs at least one mask.")
    box = []
    # Axis by axis on what is left, so that the whole grid is looked at once.
    for axis in range(together.ndim):
        found = np.flatnonzero(together.any(axis=tuple(a for a in range(together.ndim) if a != axis)))
        first, last = (found[0], found[-1]) if len(found) else (0, 0)
        box.append(slice(max(int(first) - margin, 0), min(int(last) + 1 + margin, together.shape[axis])))
        together = together[(slice(None),) * axis + (box[-1],)]
    return tuple(box)


def labels_to_regions(labels: torch.Tensor, et_label: int, edema_label: int = EDEMA_LABEL) -> torch.Tensor:
    """Regions, uint8 of shape (4, *size), from a label map of shape (*size).

    Args:
        labels: the label map.
        et_label: value of the enhancing tumor, 4 or 3.
        edema_label: value of edema: 2, or 1 in the Medical Segmentation Decathlon, which has it the other way round.

    Raises:
        InputError: another ``et_label`` or ``edema_label``.
    """
    check_et_label(et_label)
    if edema_label not in (1, 2):
        raise InputError(f"edema label {edema_label!r}: edema is 2 (BraTS) or 1 (Medical Segmentation Decathlon).")
    et = labels == et_label
    tc = et | (labels == 3 - edema_label)
    wt = tc | (labels == edema_label)
    return torch.stack([~wt, et, tc, wt]).to(torch.uint8)


def regions_to_labels(regions: torch.Tensor, et_label: int = 4, edema_last: bool = False) -> torch.Tensor:
    """Label map, uint8 of shape (1, *size), from regions of shape (4, *size).

    Args:
        regions: non-zero where a voxel is in the region; the background channel is not read.
        et_label: value of the enhancing tumor, 4 or 3.
        edema_last: let edema (in WT, not in TC) overrule ET, as the authors' program does. They differ only where
            ET lies outside TC.
    """
    check_et_label(et_label)
    labels = torch.zeros_like(regions[:1], dtype=torch.uint8)
    box = lesion_box(regions[ET_CHANNEL:])
    et, tc, wt = (regions[c][box] > 0 for c in (ET_CHANNEL, TC_CHANNEL, WT_CHANNEL))
    inside = labels[0][box]
    inside[wt] = EDEMA_LABEL
    inside[tc] = CORE_LABEL
    inside[et & ~(wt & ~tc) if edema_last else et] = et_label
    return labels


class KeySpacingd(Spacingd):
    """MONAI's ``Spacingd``, which sees nothing of an item but its own keys.

    MONAI 1.6 updates whatever stands under a key that begins with the image's, as if it were metadata. MONAI Label puts
    the text ``image_path`` there, on which that fails.
    """

    def __call__(self, data: Mapping[Hashable, Any], lazy: bool | None = None) -> dict[Hashable, Any]:
        """Resample the images of one case."""
        own = {key: data[key] for key in self.key_iterator(dict(data))}
        return {**data, **super().__call__(own, lazy)}


class CheckLabelsd(MapTransform):
    """Refuse BraTS label maps, (1, *size), that hold a value which their release does not use; change nothing.

    Args:
        keys: keys of label maps.
        et_label: the enhancing tumor's value in maps that this bundle made.
        et_label_key: else, key of the value it has in the case's release (3 or 4).
        default_et_label: the value where an entry has no such key, as those that MONAI Label brings.
        edema_key: key of edema's value in the case's release (2; 1 in the Medical Segmentation Decathlon).
        cavity_key: key of whether 4 may occur beside an ET label of 3, as resection cavity (then background). That
            is the user's explicit choice, never inferred.

    Raises:
        InputError: there is such a value; the message names the file.
    """

    def __init__(
        self,
        keys: KeysCollection,
        et_label: int | None = None,
        et_label_key: str = "et_label",
        cavity_key: str = "resection_cavity",
        allow_missing_keys: bool = False,
        default_et_label: int = 4,
        edema_key: str = "edema_label",
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.et_label = et_label
        self.et_label_key = et_label_key
        self.default_et_label = default_et_label
        self.edema_key = edema_key
        self.cavity_key = cavity_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Check the label maps of one case."""
        item = dict(data)
        et_label, _, cavity = self.convention(item)
        for key in self.key_iterator(item):
            name = str(getattr(item[key], "meta", {}).get("filename_or_obj", key))
            check_label_values(np.unique(item[key].cpu()), et_label, name, cavity)
        return item

    def convention(self, item: Mapping[Hashable, Any]) -> tuple[int, int, bool]:
        """Values of ET and of edema in a case's label maps, and whether 4 may be the resection cavity."""
        if self.et_label is not None:
            return self.et_label, EDEMA_LABEL, False
        et_label = int(item.get(self.et_label_key, self.default_et_label))
        edema_label = item.get(self.edema_key, item.get(FORMER_EDEMA_KEY, EDEMA_LABEL))
        return et_label, int(edema_label), bool(item.get(self.cavity_key, 0))


class LabelsToRegionsd(CheckLabelsd):
    """Turn a BraTS label map, (1, *size), into the four regions, uint8 of shape (4, *size).

    Args:
        args, kwargs: as in ``CheckLabelsd``.
        check: check the values first, which brings them to the host; False where ``CheckLabelsd`` has done so before
            they went to a device.

    Raises:
        InputError: the map holds a value that its release does not use; the message names the file.
    """

    def __init__(self, *args: Any, check: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.check = check

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Convert the label maps of one case."""
        item = super().__call__(data) if self.check else dict(data)
        et_label, edema_label, _ = self.convention(item)
        for key in self.key_iterator(item):
            item[key] = labels_to_regions(item[key][0], et_label, edema_label)
        return item


class RequireFinited(MapTransform):
    """Refuse predictions that hold NaN or infinite values, of which thresholds would make an empty label map.

    Before the activation: a sigmoid makes 1 of infinity.

    Args:
        keys: keys of logits, (channel, *size).
        case_key: key of the case's name; where an entry has none, its file is named.

    Raises:
        InputError: (when called) a value is not finite; the message names the case.
    """

    def __init__(self, keys: KeysCollection, case_key: str = "case", allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.case_key = case_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Look at the predictions of one case."""
        item = dict(data)
        for key in self.key_iterator(item):
            if not bool(torch.isfinite(torch.as_tensor(item[key])).all()):
                case = item.get(self.case_key) or getattr(item[key], "meta", {}).get("filename_or_obj", "this case")
                raise InputError(
                    f"{case}: the network's output ({key}) holds NaN or infinite values, so nothing is saved; "
                    "check the weights (--model_file), or compute more exactly with --amp False."
                )
        return item


class ProbabilitiesToRegionsd(MapTransform):
    """Turn probabilities, (4, *size), into regions, uint8 of the same shape.

    Args:
        keys: keys of probabilities.
        exclusive: the channels are classes that exclude each other (background, ET, the rest of TC, the rest of WT),
            of which each voxel takes the likeliest; otherwise they are the regions, each at 0.5 and above.
    """

    def __init__(self, keys: KeysCollection, exclusive: bool = False, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.exclusive = exclusive

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Convert the probabilities of one case."""
        item = dict(data)
        for key in self.key_iterator(item):
            if self.exclusive:
                likeliest = item[key].argmax(dim=0)
                tumor = [(likeliest > 0) & (likeliest <= region) for region in (ET_CHANNEL, TC_CHANNEL, WT_CHANNEL)]
                item[key] = torch.stack([likeliest == 0, *tumor]).to(torch.uint8)
            else:
                item[key] = (item[key] >= 0.5).to(torch.uint8)
        return item


def region_probabilities(probabilities: torch.Tensor, exclusive: bool = False) -> torch.Tensor:
    """Probabilities of ET, TC and WT, (3, *size), from those of the network's four channels, (4, *size)."""
    tumor = probabilities[1:]
    return tumor.cumsum(dim=0).clamp(max=1.0) if exclusive else tumor


def uncertainty(probabilities: torch.Tensor) -> torch.Tensor:
    """Entropy of binary probabilities, from 0 (certain, 0 or 1) to 100 (0.5), of the same shape.

    The scale is the one that BraTS 2020 asked for (QU-BraTS, Mehta et al., MELBA 2022). Of the mean over flips or over
    an ensemble, entropy grows both where every member is unsure and where they disagree.
    """
    p = probabilities.clamp(0, 1)
    return -(torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p)) * (100 / math.log(2))


def small_components(mask: np.ndarray, min_voxels: int) -> np.ndarray:
    """Where ``mask``, bool of shape (*size), has components of fewer than ``min_voxels`` voxels; of the same shape.

    Neighbors share a face (6-connectivity), as in the authors' testing.
    """
    components, _ = ndimage.label(mask)
    return mask & (np.bincount(components.ravel())[components] < min_voxels)


class RemoveSmallComponentsd(MapTransform):
    """Clear connected components of fewer than ``min_voxels`` voxels, in each channel for itself.

    MONAI's ``RemoveSmallObjects`` labels all channels together, so that a speck of ET inside TC would count as part of
    TC.

    Args:
        keys: keys of regions, non-zero inside, of shape (channel, *size).
        min_voxels: the smallest component that stays.
        channels: the channels to clean; the background's is left alone.
    """

    def __init__(
        self,
        keys: KeysCollection,
        min_voxels: int = 10,
        channels: tuple[int, ...] = (ET_CHANNEL, TC_CHANNEL, WT_CHANNEL),
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.min_voxels = min_voxels
        self.channels = channels

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Clean the regions of one case."""
        item = dict(data)
        for key in self.key_iterator(item):
            regions = item[key].clone()
            box = lesion_box([regions[channel] for channel in self.channels])
            for channel in self.channels:
                inside = regions[channel][box]
                mask = np.asarray(inside.cpu()) > 0
                if mask.any():
                    inside[torch.as_tensor(small_components(mask, self.min_voxels), device=inside.device)] = 0
            item[key] = regions
        return item


class SuppressSmallEnhancingTumord(MapTransform):
    """Clear an enhancing tumor too small to be believed; its voxels become core (set in TC and WT).

    A false ET in a patient without one scores Dice 0 (BraTS 2020 rules), hence the authors' threshold.

    Args:
        keys: keys of regions, non-zero inside, of shape (4, *size).
        min_voxels: the smallest ET that stays.
        per_component: judge each 6-connected component for itself instead of the whole volume.
    """

    def __init__(
        self, keys: KeysCollection, min_voxels: int = 300, per_component: bool = False, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.min_voxels = min_voxels
        self.per_component = per_component

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Suppress in one case."""
        item = dict(data)
        for key in self.key_iterator(item):
            regions = item[key].clone()
            inside = regions[(slice(None), *lesion_box([regions[ET_CHANNEL]]))]
            et = np.asarray(inside[ET_CHANNEL].cpu()) > 0
            if self.per_component:
                small = small_components(et, self.min_voxels)
            else:
                small = et if et.sum() < self.min_voxels else np.zeros_like(et)
            if small.any():
                cleared = torch.as_tensor(small, device=regions.device)
                inside[ET_CHANNEL][cleared] = 0
                inside[TC_CHANNEL][cleared] = 1
                inside[WT_CHANNEL][cleared] = 1
            item[key] = regions
        return item


class RegionsToLabelsd(MapTransform):
    """Turn regions, (4, *size), into a BraTS label map, uint8 of shape (1, *size).

    A voxel is ET's label where ET, else 1 where TC, else 2 where WT, else 0.

    Args:
        keys: keys of regions, non-zero inside.
        et_label: value of the enhancing tumor, 4 or 3.
        edema_last: the authors' order, in which a voxel in ET and WT but not in TC becomes edema.

    Raises:
        InputError: another ``et_label``.
    """

    def __init__(
        self, keys: KeysCollection, et_label: int = 4, edema_last: bool = False, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.et_label = check_et_label(et_label)
        self.edema_last = edema_last

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Convert the regions of one case."""
        item = dict(data)
        for key in self.key_iterator(item):
            item[key] = regions_to_labels(item[key], self.et_label, self.edema_last)
        return item


class CropToLesiond(MapTransform):
    """Cut prediction and reference to the box that holds both lesions, and one voxel around it.

    Overlap and surface distances in the box are those in the whole grid, and found many times faster.

    Args:
        keys: keys of label maps, (1, *size), or regions, (4, *size), whose background channel is not looked at.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Cut the maps of one case."""
        item = dict(data)
        keys = list(self.key_iterator(item))
        masks = [mask for key in keys for mask in (item[key] if len(item[key]) == 1 else item[key][ET_CHANNEL:])]
        # Surfaces are found by what lies beside them, hence the margin.
        box = lesion_box(masks, margin=1)
        for key in keys:
            item[key] = item[key][(slice(None), *box)].clone()
        return item
