# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Transforms for the BraTS rules (``scripts.brats``) that have no exact counterpart in MONAI."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, RandomizableTransform, Spacingd
from scipy import ndimage
from scripts.brats import (
    CORE_LABEL,
    EDEMA_LABEL,
    ET_CHANNEL,
    FORMER_EDEMA_KEY,
    SEQUENCES,
    TC_CHANNEL,
    WT_CHANNEL,
    check_et_label,
    check_label_values,
)
from scripts.utils.errors import InputError

# Key in the metadata of a map that was cut: the number of voxels of the grid from which it was cut.
GRID_VOXELS = "grid_voxels"
# Thresholds of the post-processing, with the authors' values: volumes in mm^3, and whether each component of ET counts
# for itself. docs/configuration.md explains them.
THRESHOLDS: dict[str, Any] = {"min_component_mm3": 10, "min_tumor_mm3": 0, "min_et_mm3": 300, "et_per_component": False}


def lesion_box(masks: Iterable[torch.Tensor], margin: int = 0) -> tuple[slice, ...]:
    """The smallest box that holds every non-zero voxel of ``masks``.

    A lesion fills a few per cent of the grid, so a computation in its box takes a fraction of the time.

    Args:
        masks: at least one mask. All have the same shape, (*size).
        margin: voxels to add on each side. The box stays inside the grid.

    Returns:
        One slice for each axis. If every voxel is zero, the box holds one voxel.

    Raises:
        ValueError: there is no mask.

    Example:
        >>> mask = torch.zeros(8, 8)
        >>> mask[2:4, 5] = 1
        >>> lesion_box([mask], margin=1)
        (slice(1, 5, None), slice(4, 7, None))
    """
    together: np.ndarray | None = None
    for mask in masks:
        values = np.asarray(mask.cpu())
        values = values if values.dtype == bool else values != 0
        together = values if together is None else together | values
    if together is None:
        raise ValueError("lesion_box needs at least one mask.")
    box = []
    # Each axis cuts the mask for the next one, so the whole grid is read only once.
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
        edema_label: value of edema. It is 2 in BraTS and 1 in the Medical Segmentation Decathlon, which swaps the
            labels of core and edema.

    Raises:
        InputError: ``et_label`` or ``edema_label`` has another value.

    Example:
        Background, core, edema and enhancing tumor, in this order, give one column each:

        >>> labels_to_regions(torch.tensor([0, 1, 2, 4]), et_label=4).tolist()  # background, ET, TC, WT
        [[1, 0, 0, 0], [0, 0, 0, 1], [0, 1, 0, 1], [0, 1, 1, 1]]
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
        regions: regions that are non-zero inside. The background channel is not read.
        et_label: value of the enhancing tumor, 4 or 3.
        edema_last: let edema (in WT but not in TC) overrule ET, as the authors' program does. The two orders differ
            only where ET lies outside TC.

    Raises:
        InputError: ``et_label`` has another value.

    Example:
        The second voxel is in ET and WT but not in TC:

        >>> regions = torch.tensor([[1, 0, 0, 0], [0, 1, 0, 1], [0, 0, 1, 1], [0, 1, 1, 1]])
        >>> regions_to_labels(regions, et_label=4).tolist()
        [[0, 4, 1, 4]]
        >>> regions_to_labels(regions, et_label=4, edema_last=True).tolist()
        [[0, 2, 1, 4]]
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


class BrainSpacingd(Spacingd):
    """MONAI's ``Spacingd`` in which no background mixes into the brain.

    Images are 0 outside the brain. At its border, plain interpolation gives a mixture of brain and 0, which depends on
    the scanner's offset. So the brain's mask (``!= 0``, of each channel) is interpolated as well, and the value is
    divided by it. Where less than half of a voxel is brain, the image is 0. Images that have the wanted spacing, and
    keys of mode "nearest", are as ``Spacingd`` gives them.

    MONAI 1.6 treats every entry whose key begins with the image's key as metadata and updates it. MONAI Label stores
    the text ``image_path`` in the item, and that update fails on a text. So this class shows MONAI its own keys alone.

    Example:
        >>> from monai.data import MetaTensor
        >>> item = {"image": MetaTensor(torch.tensor([0.0, 0.0, 0.0, 6, 6, 6, 6, 6]).view(1, 8, 1, 1))}
        >>> BrainSpacingd("image", pixdim=(1.4, 1.0, 1.0), mode="bilinear")(item)["image"].flatten().tolist()
        [0.0, 0.0, 6.0, 6.0, 6.0, 6.0]
    """

    def __call__(self, data: Mapping[Hashable, Any], lazy: bool | None = None) -> dict[Hashable, Any]:
        """Resample the images of one case."""
        own: dict[Hashable, Any] = {key: data[key] for key in self.key_iterator(dict(data))}
        resampled: dict[Hashable, Any] = super().__call__(own, lazy)
        for key, mode, padding_mode, align_corners, dtype in self.key_iterator(
            own, self.mode, self.padding_mode, self.align_corners, self.dtype
        ):
            if mode == "nearest" or torch.equal(resampled[key].affine, own[key].affine):
                continue
            brain: Any = self.spacing_transform(
                (own[key] != 0).to(torch.float32),
                mode=mode,
                padding_mode=padding_mode,
                align_corners=align_corners,
                dtype=dtype,
                output_spatial_shape=resampled[key].shape[1:],
            )
            # Rounding must not decide where exactly half of a voxel is brain.
            inside = brain.as_tensor() > 0.499
            values = resampled[key].as_tensor()
            resampled[key].copy_(torch.where(inside, values / brain.as_tensor().clamp(min=0.499), 0))
        return {**data, **resampled}


class CheckLabelsd(MapTransform):
    """Check BraTS label maps, (1, *size), for values that their release does not use. The maps are not changed.

    Args:
        keys: keys of label maps.
        et_label: value of the enhancing tumor in all maps, for maps that this bundle made. If it is None, each case
            says its own value.
        et_label_key: key of the value of the enhancing tumor in the case's release (3 or 4).
        default_et_label: value for a case without that key, such as a case from MONAI Label.
        edema_key: key of the value of edema in the case's release (2, or 1 in the Medical Segmentation Decathlon).
        cavity_key: key of a flag. It says whether 4 may occur beside an ET label of 3. Such a 4 is the resection cavity
            and counts as background. Only the user sets this flag.

    Raises:
        InputError: (when called) a map holds such a value. The message names the file.

    Example:
        >>> item = {"label": torch.tensor([[0, 1, 2, 4]]), "et_label": 3}
        >>> CheckLabelsd("label")({**item, "resection_cavity": 1})["label"].tolist()
        [[0, 1, 2, 4]]
        >>> CheckLabelsd("label")({**item, "label": torch.tensor([[0, 5]])})
        Traceback (most recent call last):
        scripts.utils.errors.InputError: label: unexpected label 5 beside 0, 1, 2, 3; check the file.
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
            labels = np.asarray(item[key].cpu())
            # Few voxels are not 0, and only those need sorting.
            check_label_values(np.unique(labels[labels != 0]), et_label, name, cavity)
        return item

    def convention(self, item: Mapping[Hashable, Any]) -> tuple[int, int, bool]:
        """How to read the label maps of one case.

        Returns:
            The value of ET, the value of edema, and whether 4 may be the resection cavity.
        """
        if self.et_label is not None:
            return self.et_label, EDEMA_LABEL, False
        et_label = int(item.get(self.et_label_key, self.default_et_label))
        edema_label = item.get(self.edema_key, item.get(FORMER_EDEMA_KEY, EDEMA_LABEL))
        return et_label, int(edema_label), bool(item.get(self.cavity_key, 0))


class LabelsToRegionsd(CheckLabelsd):
    """Turn a BraTS label map, (1, *size), into the four regions, uint8 of shape (4, *size).

    Args:
        args, kwargs: as in ``CheckLabelsd``.
        check: check the values first. The check copies them to the host. Set it to False if ``CheckLabelsd`` has
            checked the map before it went to a device.

    Raises:
        InputError: (when called) the map holds a value that its release does not use. The message names the file.

    Example:
        In the Decathlon edema is 1, so only the voxels of value 2 and 3 are in the tumor core:

        >>> item = {"label": torch.tensor([[0, 1, 2, 3]]), "et_label": 3, "edema_label": 1}
        >>> background, et, tc, wt = LabelsToRegionsd("label")(item)["label"].tolist()
        >>> et, tc, wt
        ([0, 0, 0, 1], [0, 0, 1, 1], [0, 1, 1, 1])
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
    """Refuse predictions that hold NaN or infinite values.

    Thresholds would turn NaN into an empty label map. The check belongs before the activation, because a sigmoid turns
    infinity into 1.

    Args:
        keys: keys of logits, (channel, *size).
        case_key: key of the case's name. Without a name the message names the file.

    Raises:
        InputError: (when called) a value is not finite. The message names the case.

    Example:
        >>> RequireFinited("pred")({"pred": torch.tensor([0.5, float("nan")]), "case": "p1"})  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        scripts.utils.errors.InputError: p1: the network's output (pred) holds NaN or infinite values, so nothing ...
    """

    def __init__(self, keys: KeysCollection, case_key: str = "case", allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.case_key = case_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Check the predictions of one case."""
        item = dict(data)
        for key in self.key_iterator(item):
            if not bool(torch.isfinite(torch.as_tensor(item[key])).all()):
                case = item.get(self.case_key) or getattr(item[key], "meta", {}).get("filename_or_obj", "this case")
                raise InputError(
                    f"{case}: the network's output ({key}) holds NaN or infinite values, so nothing is saved; "
                    "check the weights (--model_file), or compute more exactly with --amp False."
                )
        return item


def probabilities_to_regions(probabilities: torch.Tensor, exclusive: bool = False) -> torch.Tensor:
    """Regions, uint8 of shape (4, *size), from probabilities of the same shape.

    Args:
        probabilities: probabilities of the four channels.
        exclusive: the channels are classes that exclude each other (background, ET, the rest of TC, the rest of WT),
            and each voxel takes the most probable class. Otherwise the channels are regions, and a voxel is in each
            region whose probability is at least 0.5.

    Example:
        >>> probabilities_to_regions(torch.tensor([[0.1], [0.4], [0.6], [0.7]])).flatten().tolist()
        [0, 0, 1, 1]
        >>> probabilities_to_regions(torch.tensor([[0.1], [0.5], [0.3], [0.1]]), exclusive=True).flatten().tolist()
        [0, 1, 1, 1]
    """
    if not exclusive:
        return (probabilities >= 0.5).to(torch.uint8)
    likeliest = probabilities.argmax(dim=0)
    tumor = [(likeliest > 0) & (likeliest <= region) for region in (ET_CHANNEL, TC_CHANNEL, WT_CHANNEL)]
    return torch.stack([likeliest == 0, *tumor]).to(torch.uint8)


def region_probabilities(probabilities: torch.Tensor, exclusive: bool = False) -> torch.Tensor:
    """Probabilities of ET, TC and WT, (3, *size), from the probabilities of the network's channels, (4, *size).

    Args:
        probabilities: probabilities of the four channels.
        exclusive: the channels are classes that exclude each other, as in ``probabilities_to_regions``.

    Example:
        >>> region_probabilities(torch.tensor([0.25, 0.25, 0.125, 0.375]), exclusive=True).tolist()
        [0.25, 0.375, 0.75]
    """
    tumor = probabilities[1:]
    return tumor.cumsum(dim=0).clamp(max=1.0) if exclusive else tumor


def uncertainty(probabilities: torch.Tensor) -> torch.Tensor:
    """Entropy of binary probabilities, of the same shape.

    The entropy is 0 for the certain probabilities 0 and 1, and 100 for 0.5. BraTS 2020 asked for this scale (QU-BraTS,
    Mehta et al., MELBA 2022). The entropy of a mean over flips or over an ensemble is high where every member is
    unsure, and also where the members disagree.

    Example:
        >>> uncertainty(torch.tensor([0.0, 0.1, 0.5, 1.0])).round().abs().tolist()
        [0.0, 47.0, 100.0, 0.0]
    """
    p = probabilities.clamp(0, 1)
    return -(torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p)) * (100 / math.log(2))


def threshold_fault(thresholds: Any) -> str:
    """What is wrong with thresholds of the post-processing, in the words of the command line; empty if nothing is.

    Args:
        thresholds: a value for each name in ``THRESHOLDS``.

    Example:
        >>> threshold_fault(THRESHOLDS)
        ''
        >>> threshold_fault({**THRESHOLDS, "min_et_mm3": -1})
        '--thresholds#min_et_mm3 -1: write a volume in mm^3, 0 or more.'
    """
    if not isinstance(thresholds, Mapping):
        return f"--thresholds {thresholds}: set single ones, such as --thresholds#min_et_mm3 100."
    for name, value in {**dict.fromkeys(THRESHOLDS), **thresholds}.items():
        given = f"--thresholds#{name} {value}"
        if name not in THRESHOLDS:
            return f"{given}: no such threshold; choose one of {', '.join(THRESHOLDS)}."
        if name == "et_per_component":
            if not isinstance(value, bool):
                return f"{given}: write True or False."
        elif isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
            return f"{given}: write a volume in mm^3, 0 or more."
    return ""


def voxel_mm3(volume: torch.Tensor) -> float:
    """Volume of a voxel of ``volume`` in mm^3, by its affine; 1 if it has none.

    Example:
        >>> voxel_mm3(MetaTensor(torch.zeros(1, 2, 2, 2), affine=torch.diag(torch.tensor([-2.0, 2.0, 3.0, 1.0]))))
        12.0
    """
    if not isinstance(volume, MetaTensor):
        return 1.0
    return abs(float(torch.linalg.det(torch.as_tensor(volume.affine)[:3, :3].double())))


def small_components(mask: np.ndarray, min_voxels: float) -> np.ndarray:
    """Mark the voxels of ``mask`` that belong to components of fewer than ``min_voxels`` voxels.

    Neighbors share a face (6-connectivity), as in the authors' testing.

    Args:
        mask: mask, bool of shape (*size).
        min_voxels: size of the smallest component that is not marked.

    Returns:
        The small components, bool of shape (*size).

    Example:
        >>> small_components(np.array([True, False, True, True]), min_voxels=2).tolist()
        [True, False, False, False]
    """
    components, _ = ndimage.label(mask)
    return mask & (np.bincount(components.ravel())[components] < min_voxels)


def without_small_components(regions: torch.Tensor, min_voxels: float) -> torch.Tensor:
    """A copy of ``regions`` without components of fewer than ``min_voxels`` voxels, in each region on its own.

    MONAI's ``RemoveSmallObjects`` labels all channels together. There a speck of ET inside TC would count as part of
    TC.

    Args:
        regions: regions, non-zero inside, of shape (4, *size). The background channel is left alone.
        min_voxels: size of the smallest component that stays.

    Example:
        The single voxel of ET is cleared, and the larger TC and WT stay:

        >>> regions = torch.tensor([[1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 1], [0, 1, 1, 1]])
        >>> without_small_components(regions, min_voxels=2).tolist()
        [[1, 0, 0, 0], [0, 0, 0, 0], [0, 1, 1, 1], [0, 1, 1, 1]]
    """
    regions = regions.clone()
    for inside in regions[(slice(ET_CHANNEL, None), *lesion_box(regions[ET_CHANNEL:]))]:
        mask = np.asarray(inside.cpu()) > 0
        if mask.any():
            inside[torch.as_tensor(small_components(mask, min_voxels), device=inside.device)] = 0
    return regions


def without_small_tumors(regions: torch.Tensor, min_voxels: float) -> torch.Tensor:
    """A copy of ``regions`` without tumors of fewer than ``min_voxels`` voxels beside a larger one.

    A tumor is a connected component of all regions together, and it goes with all of them. The largest one always
    stays. A network that has seen few patients often takes bright spots far from the tumor for edema.

    Args:
        regions: regions, non-zero inside, of shape (4, *size).
        min_voxels: size of the smallest tumor that stays beside the largest one.

    Example:
        >>> regions = torch.tensor([[0, 0, 1, 0, 0], [0, 0, 0, 0, 1], [0, 0, 0, 0, 1], [1, 1, 0, 1, 1]])
        >>> without_small_tumors(regions, min_voxels=9).tolist()
        [[0, 0, 1, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0], [1, 1, 0, 0, 0]]
    """
    regions = regions.clone()
    if min_voxels > 0:
        inside = regions[(slice(ET_CHANNEL, None), *lesion_box(regions[ET_CHANNEL:]))]
        components, _ = ndimage.label(np.asarray(inside.cpu()).any(0))
        sizes = np.bincount(components.ravel())
        sizes[0] = 0
        small = (components > 0) & (sizes < min_voxels)[components] & (components != sizes.argmax())
        inside[:, torch.as_tensor(small, device=inside.device)] = 0
    return regions


def without_small_et(regions: torch.Tensor, min_voxels: float, per_component: bool = False) -> torch.Tensor:
    """A copy of ``regions`` in which an enhancing tumor that is too small to be plausible is core.

    If a patient has no ET, a single voxel of predicted ET gives a Dice of 0 (BraTS 2020 rules). This is why the authors
    use a threshold.

    Args:
        regions: regions, non-zero inside, of shape (4, *size).
        min_voxels: size of the smallest ET that stays. The voxels of a smaller one are set in TC and WT.
        per_component: compare the size of each 6-connected component instead of the size of the whole ET.

    Example:
        >>> regions = torch.tensor([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 1], [0, 1, 1, 1]])
        >>> without_small_et(regions, min_voxels=2).tolist()
        [[1, 0, 0, 0], [0, 0, 0, 0], [0, 1, 1, 1], [0, 1, 1, 1]]
    """
    regions = regions.clone()
    inside = regions[(slice(None), *lesion_box([regions[ET_CHANNEL]]))]
    et = np.asarray(inside[ET_CHANNEL].cpu()) > 0
    small = small_components(et, min_voxels) if per_component else et & (et.sum() < min_voxels)
    cleared = torch.as_tensor(small, device=regions.device)
    inside[ET_CHANNEL][cleared] = 0
    inside[TC_CHANNEL][cleared] = 1
    inside[WT_CHANNEL][cleared] = 1
    return regions


class ProbabilitiesToLabelMapd(MapTransform):
    """Turn probabilities, (4, *size), into a BraTS label map, uint8 of shape (1, *size): the post-processing.

    The steps are ``probabilities_to_regions``, ``without_small_components``, ``without_small_tumors``,
    ``without_small_et`` and ``regions_to_labels``.

    Args:
        keys: keys of probabilities. Their affines give the volume of a voxel; without an affine it is 1 mm^3.
        thresholds: a value for each name in ``THRESHOLDS``. A volume counts as reached from 0.01 % below it on, since
            headers round the sizes of voxels.
        exclusive: the channels are classes that exclude each other.
        et_label: value of the enhancing tumor, 4 or 3.
        edema_last: use the authors' order, in which a voxel in ET and WT but not in TC becomes edema.

    Raises:
        InputError: a threshold is missing, unknown or no volume, or ``et_label`` has another value.

    Example:
        >>> regions = torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 1], [0, 1, 1, 1]])
        >>> for mm3 in (1, 2):
        ...     step = ProbabilitiesToLabelMapd("pred", {**THRESHOLDS, "min_component_mm3": 0, "min_et_mm3": mm3})
        ...     step({"pred": regions})["pred"].tolist()
        [[0, 2, 1, 4]]
        [[0, 2, 1, 1]]
    """

    def __init__(
        self,
        keys: KeysCollection,
        thresholds: Mapping[str, Any],
        exclusive: bool = False,
        et_label: int = 4,
        edema_last: bool = False,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if fault := threshold_fault(thresholds):
            raise InputError(fault)
        self.thresholds = dict(thresholds)
        self.exclusive = exclusive
        self.et_label = check_et_label(et_label)
        self.edema_last = edema_last

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Convert the probabilities of one case."""
        item = dict(data)
        for key in self.key_iterator(item):
            component, tumor, et = (
                self.thresholds[name] * (1 - 1e-4) / voxel_mm3(item[key])
                for name in ("min_component_mm3", "min_tumor_mm3", "min_et_mm3")
            )
            regions = probabilities_to_regions(item[key], self.exclusive)
            regions = without_small_components(regions, component)
            regions = without_small_tumors(regions, tumor)
            regions = without_small_et(regions, et, self.thresholds["et_per_component"])
            item[key] = regions_to_labels(regions, self.et_label, self.edema_last)
        return item


class CropToLesiond(MapTransform):
    """Cut prediction and reference to the box that holds both lesions, with a margin of one voxel.

    Overlap and surface distances are equal in the box and in the whole grid. In the box they are computed many times
    faster. The metadata of a map keep the number of voxels of the whole grid (``GRID_VOXELS``), of which the
    specificity is a share.

    Args:
        keys: keys of label maps, (1, *size), or regions, (4, *size). The background channel of regions is not read.

    Example:
        >>> label, pred = torch.zeros(1, 9, 9), torch.zeros(1, 9, 9)
        >>> label[0, 3, 3] = pred[0, 3, 4] = 1
        >>> CropToLesiond(["label", "pred"])({"label": label, "pred": pred})["pred"].tolist()
        [[[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]]]
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Cut the maps of one case."""
        item = dict(data)
        keys = list(self.key_iterator(item))
        masks = [mask for key in keys for mask in (item[key] if len(item[key]) == 1 else item[key][ET_CHANNEL:])]
        # The surface is found from neighboring voxels, so the lesion needs a margin.
        box = lesion_box(masks, margin=1)
        for key in keys:
            voxels = item[key][0].numel()
            item[key] = item[key][(slice(None), *box)].clone()
            if isinstance(item[key], MetaTensor):
                item[key].meta = {**item[key].meta, GRID_VOXELS: voxels}
        return item


def without_channel(image: torch.Tensor, channel: int) -> torch.Tensor:
    """A copy of ``image``, (channel, *size), with zeros in one channel."""
    image = image.clone()
    image[channel] = 0
    return image


class RandDropSequenced(RandomizableTransform, MapTransform):
    """A transform that sometimes sets one sequence to 0, so that a network learns to do without it.

    Args:
        keys: keys of normalized images, (sequence, *size).
        prob: probability that one sequence is dropped. Each sequence is equally likely.

    Example:
        >>> drop = RandDropSequenced("image", prob=1.0).set_random_state(seed=0)
        >>> drop({"image": torch.ones(4, 1)})["image"].flatten().tolist()
        [1.0, 1.0, 0.0, 1.0]
    """

    def __init__(self, keys: KeysCollection, prob: float = 0.1, allow_missing_keys: bool = False) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        """Drop a sequence of one case, or none."""
        item = dict(data)
        self.randomize(None)
        if self._do_transform:
            where = self.R.random_sample()
            for key in self.key_iterator(item):
                item[key] = without_channel(item[key], int(where * len(item[key])))
        return item


class WithoutSequenced(MapTransform):
    """A transform that sets one sequence to 0, as if a case lacked it. It shows what the sequence is worth.

    Args:
        keys: keys of normalized images, (sequence, *size), with the sequences in the network's order.
        sequence: name of the sequence, such as ``flair``.

    Raises:
        InputError: there is no such sequence.

    Example:
        >>> WithoutSequenced("image", "flair")({"image": torch.ones(4, 1)})["image"].flatten().tolist()
        [1.0, 1.0, 1.0, 0.0]
    """

    def __init__(self, keys: KeysCollection, sequence: str, allow_missing_keys: bool = False) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        if sequence not in SEQUENCES:
            raise InputError(f"--missing_sequence {sequence}: choose one of {', '.join(SEQUENCES)}.")
        self.channel = SEQUENCES.index(sequence)

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        """Set the sequence of one case to 0."""
        item = dict(data)
        for key in self.key_iterator(item):
            item[key] = without_channel(item[key], self.channel)
        return item
