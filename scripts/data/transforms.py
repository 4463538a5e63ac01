# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""MONAI's dictionary transforms for what MONAI has no exact counterpart to; configurations name them."""

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.data.utils import AFFINE_TOL, affine_to_spacing, to_affine_nd, zoom_affine
from monai.transforms import MapTransform, RandomizableTransform, Spacingd
from scripts.brats import EDEMA_LABEL, ET_CHANNEL, SEQUENCES, check_et_label, check_label_values
from scripts.data.postprocessing import (
    checked_thresholds,
    voxel_mm3,
    without_doubtful_tumors,
    without_small_components,
    without_small_et,
)
from scripts.data.regions import labels_to_regions, lesion_box, probabilities_to_regions, regions_to_labels
from scripts.utils.errors import InputError

# Key in the metadata of a map that was cut: the number of voxels of the grid from which it was cut.
GRID_VOXELS = "grid_voxels"
# Key of the volume in ml of the doubtful tumors that the post-processing has removed.
REMOVED_ML = "removed_ml"


class BrainSpacingd(Spacingd):
    """MONAI's ``Spacingd`` in which no background mixes into the brain.

    Images are 0 outside the brain. At its border, plain interpolation gives a mixture of brain and 0, which depends on
    the scanner's offset. So the brain's mask (``!= 0``, of each channel) is interpolated as well, and the value is
    divided by it. Where less than half of a voxel is brain, the image is 0. Images that have the wanted spacing, and
    keys of mode "nearest", are as ``Spacingd`` gives them.

    The rounding of an affine must not matter. Half of an even number of voxels at 1 mm is a box of n + 0.5 voxels at
    2 mm, which ``Spacingd`` rounds up or down by the last digits of a turned affine, and then it may move the grid by
    up to half a voxel. Here the spacing and the box are rounded first, and the grid begins in the box's corner.

    MONAI 1.6 treats every entry whose key begins with the image's key as metadata and updates it. MONAI Label stores
    the text ``image_path`` in the item, and that update fails on a text. So this class does not call it.

    Example:
        >>> item = {"image": MetaTensor(torch.tensor([0.0, 0.0, 0.0, 6, 6, 6, 6, 6]).view(1, 8, 1, 1))}
        >>> BrainSpacingd("image", pixdim=(1.4, 1.0, 1.0), mode="bilinear")(item)["image"].flatten().tolist()
        [0.0, 0.0, 6.0, 6.0, 6.0, 6.0]
    """

    def __call__(self, data: Mapping[Hashable, Any], lazy: bool | None = None) -> dict[Hashable, Any]:
        """Resample the images of one case."""
        item: dict[Hashable, Any] = dict(data)
        for key, mode, padding_mode, align_corners, dtype in self.key_iterator(
            item, self.mode, self.padding_mode, self.align_corners, self.dtype
        ):
            affine, size = self.target(item[key])
            options: dict[str, Any] = {
                "dst_affine": affine,
                "spatial_size": size,
                "mode": mode,
                "padding_mode": padding_mode,
                "align_corners": align_corners,
                "dtype": dtype,
                "lazy": lazy,
            }
            resample = self.spacing_transform.sp_resample
            own, item[key] = item[key], resample(item[key], **options)
            if mode == "nearest" or torch.equal(item[key].affine, own.affine):
                continue
            brain: Any = resample((own != 0).to(torch.float32), **options)
            # Rounding must not decide where exactly half of a voxel is brain.
            inside = brain.as_tensor() > 0.499
            values = item[key].as_tensor()
            item[key].copy_(torch.where(inside, values / brain.as_tensor().clamp(min=0.499), 0))
        return item

    def target(self, image: MetaTensor) -> tuple[torch.Tensor, list[int]]:
        """The affine and the size of the grid of the wanted spacing over an image, (channel, *size)."""
        size = np.array(image.shape[1:])
        axes = len(size)
        affine = np.asarray(to_affine_nd(axes, image.affine.cpu().double()))
        own, wanted = affine_to_spacing(affine, axes), self.spacing_transform.pixdim[:axes]
        # Voxels of 1.0001 mm are resampled as voxels of 1 mm are. As in Spacingd, a spacing that is almost the wanted
        # one stays, and the shear of a sheared affine does not.
        scaled = np.where(abs(own - wanted) <= AFFINE_TOL, own, wanted * own / np.round(own, 3))
        target = zoom_affine(affine, scaled, diagonal=False)
        per_voxel = np.linalg.solve(target[:axes, :axes], affine[:axes, :axes])
        corners = np.array(list(np.ndindex(*[2] * axes))) * (size - 1) @ per_voxel.T
        target[:axes, axes] = affine[:axes, axes] + target[:axes, :axes] @ corners.min(axis=0)
        found = np.round(np.round(np.ptp(corners, axis=0), 3) + 1).astype(int)
        return torch.as_tensor(target), found.tolist()


class CheckLabelsd(MapTransform):
    """Refuse BraTS label maps, (1, *size), with values that their release does not use. The InputError names the file.

    A case says in ``et_label`` and ``edema_label`` what the values of its map mean. ``label_release`` is 0,
    or the year of a release whose maps may hold 3 and 4 (``scripts.brats.LABEL_RELEASES``). Only the user sets it.

    Args:
        keys: keys of label maps.
        et_label: value of ET in all maps, for maps that this bundle made; None for what each case says.
        default_et_label: value of ET for a case that says nothing, such as a case from MONAI Label.
    """

    def __init__(self, keys: KeysCollection, et_label: int | None = None, default_et_label: int = 4) -> None:
        super().__init__(keys)
        self.et_label = et_label
        self.default_et_label = default_et_label

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Check the label maps of one case."""
        item = dict(data)
        et_label, _, release = self.convention(item)
        for key in self.key_iterator(item):
            name = str(getattr(item[key], "meta", {}).get("filename_or_obj", key))
            labels = np.asarray(item[key].cpu())
            # Few voxels are not 0, and only those need sorting.
            check_label_values(np.unique(labels[labels != 0]), et_label, name, release)
        return item

    def convention(self, item: Mapping[Hashable, Any]) -> tuple[int, int, int]:
        """The value of ET, that of edema, and ``label_release`` of one case's maps."""
        if self.et_label is not None:
            return self.et_label, EDEMA_LABEL, 0
        et_label = int(item.get("et_label", self.default_et_label))
        return et_label, int(item.get("edema_label", EDEMA_LABEL)), int(item.get("label_release", 0))


class LabelsToRegionsd(CheckLabelsd):
    """Turn a BraTS label map, (1, *size), into the four regions, uint8 of shape (4, *size).

    ``check`` first checks the values, which copies them to the host; it is not needed after ``CheckLabelsd``, of which
    the other arguments are.

    Example:
        In the Decathlon edema is 1, so only the voxels of value 2 and 3 are in the tumor core:

        >>> item = {"label": torch.tensor([[0, 1, 2, 3]]), "et_label": 3, "edema_label": 1}
        >>> background, et, tc, wt = LabelsToRegionsd("label")(item)["label"].tolist()
        >>> et, tc, wt
        ([0, 0, 0, 1], [0, 0, 1, 1], [0, 1, 1, 1])
    """

    def __init__(
        self, keys: KeysCollection, et_label: int | None = None, default_et_label: int = 4, check: bool = True
    ) -> None:
        super().__init__(keys, et_label, default_et_label)
        self.check = check

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Convert the label maps of one case."""
        item = super().__call__(data) if self.check else dict(data)
        et_label, edema_label, _ = self.convention(item)
        for key in self.key_iterator(item):
            item[key] = labels_to_regions(item[key][0], et_label, edema_label)
        return item


class RequireFinited(MapTransform):
    """Refuse logits, (channel, *size), that hold NaN or infinite values, by an InputError.

    Thresholds would turn NaN into an empty label map, and a sigmoid turns infinity into 1.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Check the predictions of one case."""
        item = dict(data)
        for key in self.key_iterator(item):
            if not bool(torch.isfinite(torch.as_tensor(item[key])).all()):
                case = item.get("case") or getattr(item[key], "meta", {}).get("filename_or_obj", "this case")
                raise InputError(
                    f"{case}: the network's output ({key}) holds NaN or infinite values, so nothing is saved; "
                    "check the weights (--model_file), or compute more exactly with --amp False."
                )
        return item


class ProbabilitiesToLabelMapd(MapTransform):
    """Turn probabilities, (4, *size), into a BraTS label map, uint8 of shape (1, *size): the post-processing.

    The label map is on the CPU, wherever the probabilities are. ``REMOVED_ML`` is set if a doubtful tumor was removed.

    Args:
        keys: keys of probabilities. Their affines give the volume of a voxel; without an affine it is 1 mm^3.
        thresholds: a value for each name in ``scripts.data.postprocessing.THRESHOLDS``; others raise an InputError. A
            volume counts as reached from 0.01 % below it on, since headers round the sizes of voxels.
        exclusive, edema_last, et_label: as in ``scripts.data.regions``.

    Example:
        >>> regions = torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 1], [0, 1, 1, 1]])
        >>> limits = {"min_component_mm3": 0, "min_tumor_probability": 0, "min_et_mm3": 2, "et_per_component": False}
        >>> ProbabilitiesToLabelMapd("pred", limits)({"pred": regions})["pred"].tolist()
        [[0, 2, 1, 1]]
    """

    def __init__(
        self,
        keys: KeysCollection,
        thresholds: Mapping[str, Any],
        exclusive: bool = False,
        et_label: int = 4,
        edema_last: bool = False,
    ) -> None:
        super().__init__(keys)
        self.thresholds = checked_thresholds(thresholds)
        self.exclusive = exclusive
        self.et_label = check_et_label(et_label)
        self.edema_last = edema_last

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Convert the probabilities of one case."""
        item = dict(data)
        for key in self.key_iterator(item):
            limits, mm3 = self.thresholds, voxel_mm3(item[key])
            voxel = mm3 / (1 - 1e-4)
            # All that follows is done on the host. A GPU gives it the regions, and probabilities only where a second
            # tumor is judged.
            regions = probabilities_to_regions(item[key], self.exclusive).cpu()
            regions = without_small_components(regions, limits["min_component_mm3"] / voxel)
            least = limits["min_tumor_probability"]
            regions, removed = without_doubtful_tumors(regions, item[key], least, self.exclusive)
            if removed:
                item[REMOVED_ML] = removed * mm3 / 1000
            regions = without_small_et(regions, limits["min_et_mm3"] / voxel, limits["et_per_component"])
            item[key] = regions_to_labels(regions, self.et_label, self.edema_last)
        return item


class CropToLesiond(MapTransform):
    """Cut label maps, (1, *size), or regions, (4, *size), to the box of all lesions, with a margin of one voxel.

    Overlap and surface distances are equal in the box and in the whole grid, and are computed many times faster, on the
    CPU. The metadata of a map keep the number of voxels of the whole grid, of which the specificity is a share.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Cut the maps of one case."""
        item = dict(data)
        keys = list(self.key_iterator(item))
        item |= {key: item[key].cpu() for key in keys}
        masks = [mask for key in keys for mask in (item[key] if len(item[key]) == 1 else item[key][ET_CHANNEL:])]
        # The surface is found from neighboring voxels, so the lesion needs a margin.
        box = lesion_box(masks, margin=1)
        for key in keys:
            voxels = item[key][0].numel()
            item[key] = item[key][(slice(None), *box)].clone()
            if isinstance(item[key], MetaTensor):
                item[key].meta = {**item[key].meta, GRID_VOXELS: voxels}
        return item


class RandDropSequenced(RandomizableTransform, MapTransform):
    """Sometimes set one sequence of a normalized image, (sequence, *size), to 0: a network learns to do without it.

    A sequence is dropped with the probability ``prob``, and each one is equally likely.
    """

    def __init__(self, keys: KeysCollection, prob: float = 0.1) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        """Drop a sequence of one case, or none."""
        item = dict(data)
        self.randomize(None)
        if self._do_transform:
            where = self.R.random_sample()
            for key in self.key_iterator(item):
                item[key] = _without_channel(item[key], int(where * len(item[key])))
        return item


class WithoutSequenced(MapTransform):
    """Set one sequence of a normalized image, (sequence, *size), to 0, which shows what the sequence is worth.

    The sequences are in the network's order. An unknown name of a sequence raises an InputError.
    """

    def __init__(self, keys: KeysCollection, sequence: str) -> None:
        super().__init__(keys)
        if sequence not in SEQUENCES:
            raise InputError(f"--missing_sequence {sequence}: choose one of {', '.join(SEQUENCES)}.")
        self.channel = SEQUENCES.index(sequence)

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        """Set the sequence of one case to 0."""
        item = dict(data)
        for key in self.key_iterator(item):
            item[key] = _without_channel(item[key], self.channel)
        return item


def _without_channel(image: torch.Tensor, channel: int) -> torch.Tensor:
    image = image.clone()
    image[channel] = 0
    return image
