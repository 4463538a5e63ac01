# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Random deformation of a patch at a fraction of the usual cost, and random transforms on the training's device."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.config import KeysCollection
from monai.data import decollate_batch, list_data_collate
from monai.engines.utils import default_prepare_batch
from monai.networks.layers import gaussian_1d
from monai.transforms import Compose, MapTransform, RandAffineGrid, RandomizableTransform, ToDeviced
from monai.utils import convert_to_dst_type, ensure_tuple_rep


class RandFastElasticd(RandomizableTransform, MapTransform):
    """MONAI's ``Rand3DElasticd``, whose arguments it takes, with displacements of the same statistics, made faster.

    There, uniform noise on every voxel is smoothed by a Gaussian. What is wider than a voxel needs no noise on every
    voxel: here it lies on nodes ``sigma`` voxels apart (one at least), each the center of the same Gaussian, scaled to
    the same variance. Sums of Gaussians are separable, so the field is three products of small matrices, and the last
    of them adds the affine part. Where nothing is drawn, nothing is resampled.

    The random numbers, ``sigma``, ``magnitude`` and affine parameters are drawn on the CPU, so they are the same
    whatever the device that the tensors lie on.

    Args:
        keys: keys of tensors of shape (C, *size), three-dimensional and of one size.
        sigma_range: of the Gaussian's standard deviation, voxels.
        magnitude_range: of the factor on the smoothed noise, which is uniform from -1 to 1; voxels.
        prob: probability of deforming at all.
        rotate_range, shear_range, translate_range, scale_range: as in MONAI's ``RandAffineGrid`` (radians, 1, voxels,
            1).
        mode: ``bilinear`` or ``nearest``, one for all keys or one each.
        padding_mode: as in ``torch.nn.functional.grid_sample``, one for all keys or one each.
    """

    def __init__(
        self,
        keys: KeysCollection,
        sigma_range: tuple[float, float],
        magnitude_range: tuple[float, float],
        prob: float = 0.1,
        rotate_range: Any = None,
        shear_range: Any = None,
        translate_range: Any = None,
        scale_range: Any = None,
        mode: str | Sequence[str] = "bilinear",
        padding_mode: str | Sequence[str] = "reflection",
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)
        self.sigma_range = sigma_range
        self.magnitude_range = magnitude_range
        self.affine_grid = RandAffineGrid(rotate_range, shear_range, translate_range, scale_range, lazy=True)
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
        """Deform the tensors of one case, all alike."""
        item = dict(data)
        self.randomize()
        if not self._do_transform:
            return item
        grid: torch.Tensor | None = None
        for key, mode, padding_mode in self.key_iterator(item, self.mode, self.padding_mode):
            image = item[key]
            if grid is None:
                grid = self.sampling_grid(image.shape[1:], image.device)
            # Without a MetaTensor's bookkeeping on the way.
            plain = torch.as_tensor(image).as_subclass(torch.Tensor)[None].float()
            moved = F.grid_sample(plain, grid, mode=mode, padding_mode=padding_mode, align_corners=False)[0]
            item[key] = convert_to_dst_type(moved, image, dtype=image.dtype)[0]
        return item

    def sampling_grid(self, size: Sequence[int], device: torch.device | str = "cpu") -> torch.Tensor:
        """Where each voxel is taken from, as ``grid_sample`` has it: (1, *size, 3), from -1 to 1, last axis first."""
        self.affine_grid(spatial_size=size, randomize=False, lazy=True)
        affine = torch.as_tensor(self.affine_grid.affine, dtype=torch.float32).cpu()
        # grid_sample counts an axis from -1 to 1 and names the last axis first.
        # Without waiting for the device, which is at work on the sample before.
        move = partial(torch.Tensor.to, device=device, non_blocking=True)
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


def gaussian_basis(size: int, sigma: float) -> torch.Tensor:
    """Gaussians about nodes spread evenly over ``size`` voxels, ``sigma`` apart or a little less: (size, nodes).

    Uniform noise on the nodes gives the variance and the correlation of noise on every voxel smoothed by MONAI's
    Gaussian, whose kernel this is (the integral over each voxel, cut off at 3 ``sigma``); with ``sigma`` up to 1 it is
    the same thing.
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
        ValueError: there is none.
    """
    step = transform.get_index_of_first(lambda step: isinstance(step, ToDeviced))
    if step is None:
        raise ValueError("no ToDeviced among the transforms, so none can be left to the training's device")
    return step


class AugmentBatch:
    """A trainer's ``prepare_batch`` that runs what the loader left of the transforms, on the device.

    Of a ``SeededCompose``, each step's random numbers follow from the case, not from the steps before: the samples are
    those that the loader would have made.

    Args:
        transform: the whole of the transforms; the loader ran those before the first ``ToDeviced``.
        enabled: if false, the loader ran them all.
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
        """Images (B, C, *size) and labels of a batch, on ``device``."""
        if self.enabled:
            start = device_step(self.transform)
            items = [self.transform(item, start=start) for item in decollate_batch(batchdata)]
            batchdata = list_data_collate([{key: item[key] for key in ("image", "label")} for item in items])
        return default_prepare_batch(batchdata, device, non_blocking, **kwargs)
