# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""A fast random deformation of patches, and random transforms on the training's device."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.config import KeysCollection
from monai.data import decollate_batch, list_data_collate
from monai.engines.utils import default_prepare_batch
from monai.networks.layers import gaussian_1d
from monai.transforms import (
    Compose,
    MapTransform,
    RandAffineGrid,
    Randomizable,
    RandomizableTransform,
    ToDeviced,
    Transform,
)
from monai.utils import convert_to_dst_type, ensure_tuple_rep


class RandFastElasticd(RandomizableTransform, MapTransform):
    """A faster form of MONAI's ``Rand3DElasticd``, with displacements of the same statistics.

    MONAI draws uniform noise on every voxel and smooths it by a Gaussian. A Gaussian that is wider than a voxel does
    not need noise on every voxel. So this transform draws noise on nodes that are ``sigma`` voxels apart (at least one
    voxel). Each node is the center of the same Gaussian, scaled to the same variance. Sums of Gaussians are separable,
    so the displacement field is a product of three small matrices. The last product adds the affine part. If the
    transform decides not to deform a case, it does not resample it either.

    The random numbers, ``sigma``, ``magnitude`` and the affine parameters are drawn on the CPU, so they do not depend
    on the device of the tensors.

    Args:
        keys: keys of tensors of shape (C, *size), three-dimensional and all of one size.
        sigma_range: range of the Gaussian's standard deviation, voxels.
        magnitude_range: range of the factor on the smoothed noise, voxels. The noise is uniform from -1 to 1.
        prob: probability of a deformation.
        rotate_range, shear_range, scale_range: as in MONAI's ``RandAffineGrid`` (radians, 1, 1).
        mode: ``bilinear`` or ``nearest``, one for all keys or one for each.
        padding_mode: as in ``torch.nn.functional.grid_sample``, one for all keys or one for each.

    Example:
        >>> deform = RandFastElasticd("image", sigma_range=(5, 7), magnitude_range=(50, 150), prob=1.0)
        >>> image = torch.rand(1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
        >>> first, again = (deform.set_random_state(seed=0)({"image": image})["image"] for _ in range(2))
        >>> torch.equal(first, again), torch.equal(first, image)
        (True, False)
    """

    def __init__(
        self,
        keys: KeysCollection,
        sigma_range: tuple[float, float],
        magnitude_range: tuple[float, float],
        prob: float = 0.1,
        rotate_range: Any = None,
        shear_range: Any = None,
        scale_range: Any = None,
        mode: str | Sequence[str] = "bilinear",
        padding_mode: str | Sequence[str] = "reflection",
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)
        self.sigma_range = sigma_range
        self.magnitude_range = magnitude_range
        self.affine_grid = RandAffineGrid(rotate_range, shear_range, None, scale_range, lazy=True)
        self.mode = ensure_tuple_rep(mode, len(self.keys))
        self.padding_mode = ensure_tuple_rep(padding_mode, len(self.keys))
        self.sigma = self.magnitude = 1.0
        self.noise_seed = 0

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> RandFastElasticd:
        """Seed this transform and its affine part."""
        self.affine_grid.set_random_state(seed, state)
        super().set_random_state(seed, state)
        return self

    def randomize(self, data: Any = None) -> None:
        """Draw whether to deform, and how."""
        super().randomize(None)
        if self._do_transform:
            self.magnitude = self.R.uniform(*self.magnitude_range)
            self.sigma = self.R.uniform(*self.sigma_range)
            self.noise_seed = int(self.R.randint(2**31))
            self.affine_grid.randomize()

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        """Deform all tensors of one case in the same way."""
        item = dict(data)
        self.randomize()
        if not self._do_transform:
            return item
        grid: torch.Tensor | None = None
        for key, mode, padding_mode in self.key_iterator(item, self.mode, self.padding_mode):
            image = item[key]
            if grid is None:
                grid = self.sampling_grid(image.shape[1:], image.device)
            # A plain tensor avoids the bookkeeping of a MetaTensor.
            plain = torch.as_tensor(image).as_subclass(torch.Tensor)[None].float()
            moved = F.grid_sample(plain, grid, mode=mode, padding_mode=padding_mode, align_corners=False)[0]
            item[key] = convert_to_dst_type(moved, image, dtype=image.dtype)[0]
        return item

    def sampling_grid(self, size: Sequence[int], device: torch.device | str = "cpu") -> torch.Tensor:
        """Positions from which the voxels are taken, in the form that ``grid_sample`` reads.

        Returns:
            The grid, (1, *size, 3). It counts each axis from -1 to 1 and names the last axis first.
        """
        self.affine_grid(spatial_size=size, randomize=False, lazy=True)
        affine = torch.as_tensor(self.affine_grid.affine, dtype=torch.float32).cpu()
        on_gpu = torch.device(device).type == "cuda"

        def move(values: torch.Tensor) -> torch.Tensor:
            # A copy that blocks, or from memory that is not pinned, waits for the device, which still works on the
            # sample before.
            return (values.pin_memory() if on_gpu else values).to(device, non_blocking=True)

        to_unit = move((torch.diag(2 / torch.tensor(size, dtype=torch.float32)) @ affine[:3]).flip(0))
        matrix, offset = to_unit[:, :3], to_unit[:, 3]
        bases = [move(gaussian_basis(n, self.sigma)) for n in size]
        generator = torch.Generator().manual_seed(self.noise_seed)
        noise = move(torch.rand(3, *(basis.shape[1] for basis in bases), generator=generator)) * 2 - 1
        field = torch.einsum("ac,cxyz->axyz", matrix * self.magnitude, noise)
        field = torch.einsum("axyz,ix->aiyz", field, bases[0])
        field = torch.einsum("aiyz,jy->aijz", field, bases[1])
        x, y, z = (torch.arange(n, device=device) - (n - 1) / 2 for n in size)
        plane = torch.outer(matrix[:, 0], x)[:, :, None] + torch.outer(matrix[:, 1], y)[:, None] + offset[:, None, None]
        along = matrix[:, 2, None, None].expand_as(plane)
        left = torch.cat([field, plane[..., None], along[..., None]], dim=-1)
        right = torch.cat([bases[2].T, torch.ones_like(z)[None], z[None]])
        return (left @ right).permute(1, 2, 3, 0)[None]


class EachSequenced(Randomizable, MapTransform):
    """Random transforms that are drawn for each sequence on its own, and that leave the background 0.

    Scanners differ in each sequence on its own, but MONAI's random transforms treat all channels alike, or they have
    no form for channels.

    Args:
        keys: keys of normalized images, (sequence, *size).
        transforms: MONAI's transforms of arrays. Each gets one sequence, (1, *size).

    Example:
        >>> from monai.transforms import RandShiftIntensity
        >>> shift = EachSequenced("image", [RandShiftIntensity(offsets=0.5, prob=1.0)]).set_random_state(seed=0)
        >>> image = torch.tensor([[0.0, 1.0], [0.0, 1.0]])  # two sequences of one background and one brain voxel
        >>> [[round(value, 2) for value in sequence] for sequence in shift({"image": image})["image"].tolist()]
        [[0.0, 0.66], [0.0, 1.44]]
    """

    def __init__(self, keys: KeysCollection, transforms: Sequence[Transform]) -> None:
        MapTransform.__init__(self, keys)
        self.transforms = Compose(transforms)

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> EachSequenced:
        """Seed the transforms."""
        self.transforms.set_random_state(seed, state)
        return self

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        """Transform the sequences of one case one after the other."""
        item = dict(data)
        for key in self.key_iterator(item):
            # A plain tensor avoids the bookkeeping of a MetaTensor.
            plain = torch.as_tensor(item[key]).as_subclass(torch.Tensor)
            brain = plain.any(dim=0, keepdim=True)
            changed = torch.cat([torch.as_tensor(self.transforms(sequence[None])) for sequence in plain])
            item[key] = convert_to_dst_type(torch.where(brain, changed, 0), item[key])[0]
        return item


def gaussian_basis(size: int, sigma: float) -> torch.Tensor:
    """Gaussians about nodes that lie evenly over ``size`` voxels, ``sigma`` apart or a little less.

    Noise on the nodes, multiplied by this matrix, has the variance and the correlation of noise on every voxel that
    MONAI's Gaussian has smoothed. The kernel is MONAI's: the integral over each voxel, cut off at 3 ``sigma``. With
    ``sigma`` up to 1 there is a node on every voxel, and the two ways are identical.

    Returns:
        The matrix, (size, nodes).

    Example:
        >>> gaussian_basis(128, sigma=8.0).shape
        torch.Size([128, 16])
    """
    nodes = math.ceil(size / max(1.0, sigma))
    spacing = size / nodes
    kernel = gaussian_1d(torch.tensor(sigma), truncated=3.0)
    voxel = torch.arange(size, dtype=torch.float32)[:, None]
    node = (torch.arange(nodes, dtype=torch.float32) + 0.5) * spacing - 0.5
    scaled = (voxel - node) / (math.sqrt(2) * sigma)
    half = 0.5 / (math.sqrt(2) * sigma)
    basis = 0.5 * (torch.erf(scaled + half) - torch.erf(scaled - half))
    basis = torch.where((voxel - node).abs() < len(kernel) / 2, basis, 0)
    return basis * math.sqrt(spacing)


def device_step(transform: Compose) -> int:
    """Position in ``transform`` of the first step that moves a case to a device (``ToDeviced``).

    Raises:
        ValueError: there is no such step.

    Example:
        >>> from monai.transforms import RandFlipd
        >>> device_step(Compose([RandFlipd("image"), ToDeviced("image", "cpu"), RandFlipd("image")]))
        1
    """
    step = transform.get_index_of_first(lambda step: isinstance(step, ToDeviced))
    if step is None:
        raise ValueError("no ToDeviced among the transforms, so none can be left to the training's device")
    return step


class AugmentBatch:
    """A trainer's ``prepare_batch`` that runs, on the device, the transforms that the loader did not run.

    In a ``SeededCompose`` each step's random numbers follow from the case and not from the steps before. So the samples
    are equal to samples that the loader alone would make.

    Args:
        transform: all transforms. The loader has run those before the first ``ToDeviced``.
        enabled: if false, the loader has run all transforms, and none is run here.
    """

    def __init__(self, transform: Compose, enabled: bool = True) -> None:
        self.transform = transform
        self.enabled = enabled

    def __call__(
        self,
        batchdata: dict[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Return images, (B, C, *size), and labels of a batch, on ``device``."""
        if self.enabled:
            start = device_step(self.transform)
            items = [self.transform(item, start=start) for item in decollate_batch(batchdata)]
            batchdata = list_data_collate([{key: item[key] for key in ("image", "label")} for item in items])
        return default_prepare_batch(batchdata, device, non_blocking, **kwargs)
