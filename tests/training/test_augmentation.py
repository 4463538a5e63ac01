# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The fast deformation has MONAI's statistics, moves image and label alike, and depends on the seed alone."""

import math

import numpy as np
import pytest
import torch
from monai.data import MetaTensor, list_data_collate
from monai.networks.layers import GaussianFilter, gaussian_1d
from monai.transforms import (
    CastToTyped,
    Compose,
    Rand3DElasticd,
    RandAxisFlipd,
    RandGaussianNoise,
    RandScaleIntensity,
    RandShiftIntensity,
    RandSpatialCropd,
    ToDeviced,
)
from scripts.data.transforms import RandDropSequenced
from scripts.training.augmentation import AugmentBatch, EachSequenced, RandFastElasticd, device_step, gaussian_basis
from scripts.training.reproducibility import SeededCompose

AUTHORS = {
    "sigma_range": (1, 20),
    "magnitude_range": (0.3, 2.3),
    "rotate_range": [0.5236] * 3,
    "shear_range": [0.1] * 3,
    "scale_range": [0.2] * 3,
    "mode": ["bilinear", "nearest"],
    "padding_mode": "zeros",
}


def elastic(seed: int = 0, **changes) -> RandFastElasticd:
    made = RandFastElasticd(["image", "label"], **{**AUTHORS, "prob": 1.0, **changes})
    made.set_random_state(seed)
    return made


def still(sigma: float, magnitude: float = 1.0) -> dict:
    """Return settings of a deformation without affine part."""
    none = dict.fromkeys(("rotate_range", "shear_range", "scale_range"))
    return {"sigma_range": (sigma, sigma), "magnitude_range": (magnitude, magnitude), **none}


def displacement(made: RandFastElasticd, size: int) -> torch.Tensor:
    """Return the displacements in voxels, (3, size, size, size), of a deformation without affine part."""
    made.randomize()
    grid = made.sampling_grid([size] * 3)[0].flip(-1).permute(3, 0, 1, 2) * size / 2
    center = torch.arange(size) - (size - 1) / 2
    return grid - torch.stack(torch.meshgrid(center, center, center, indexing="ij"))


def correlation(field: torch.Tensor, lag: int) -> float:
    """Return the correlation of a field of mean 0 with itself, ``lag`` voxels further along the last axis."""
    a, b = field[..., :-lag], field[..., lag:]
    return float((a * b).mean() / (a.square().mean() * b.square().mean()).sqrt())


@pytest.mark.parametrize(("sigma", "draws"), [(1.0, 1), (1.7, 1), (3.4, 2), (6.0, 20)])
def test_displacements_have_monais_deviation_and_correlation(sigma, draws):
    """The standard deviation agrees within 5 %; the correlation within 0.05 where MONAI has exp(-1/4) and exp(-1)."""
    size, magnitude = 48, 2.0
    made = elastic(**still(sigma, magnitude))
    ours = torch.stack([displacement(made, size) for _ in range(draws)])
    generator = torch.Generator().manual_seed(1)
    smooth = GaussianFilter(3, sigma, truncated=3.0)
    monai = torch.stack(
        [smooth(torch.rand(1, 3, *[size] * 3, generator=generator) * 2 - 1)[0] * magnitude for _ in range(draws)]
    ).detach()
    # Away from the border, theory gives the deviation without draws.
    norm = float(gaussian_1d(torch.tensor(sigma), truncated=3.0).square().sum().sqrt())
    inner = (..., *[slice(round(2 * sigma), -round(2 * sigma))] * 3)
    expected = magnitude * norm**3 / math.sqrt(3)
    assert float(ours[inner].std()) == pytest.approx(expected, rel=0.05)
    assert float(ours.std()) == pytest.approx(float(monai.std()), rel=0.05), "with the border, where both are weaker"
    for lag in (round(sigma), round(2 * sigma)):
        assert correlation(ours, lag) == pytest.approx(correlation(monai, lag), abs=0.05)
        assert correlation(ours, lag) == pytest.approx(math.exp(-(lag**2) / 4 / sigma**2), abs=0.12)


@pytest.mark.parametrize("sigma", [1.0, 2.0, 5.5, 13.0, 20.0])
def test_deviation_is_even_and_monais_at_each_voxel(sigma):
    """The deviation at each voxel follows from the basis; it is within 4 % of MONAI's, also at the border."""
    size = 128
    ours = gaussian_basis(size, sigma).square().sum(1).sqrt()
    kernel = gaussian_1d(torch.tensor(sigma), truncated=3.0)
    monai = torch.nn.functional.conv1d(torch.ones(1, 1, size), kernel.square()[None, None], padding="same")[0, 0].sqrt()
    assert torch.allclose(ours, monai, rtol=0.04)
    if sigma <= 1:
        assert torch.allclose(ours, monai, rtol=1e-5)


def test_affine_part_is_monais():
    """With the same affine parameters and no displacement, ``Rand3DElasticd`` gives the same image."""
    image = torch.zeros(1, 24, 20, 28)
    image[0, 6:18, 5:12, 4:20] = torch.rand(12, 7, 16, generator=torch.Generator().manual_seed(0))
    chosen = {**AUTHORS, "magnitude_range": (0.0, 0.0), "prob": 1.0, "mode": "bilinear"}
    ours = RandFastElasticd("image", **chosen)
    monai = Rand3DElasticd("image", **chosen)
    for seed in range(5):
        ours.set_random_state(seed), monai.set_random_state(seed)
        # MONAI draws the parameters twice and takes the second draw.
        ours.affine_grid.randomize()
        got = ours({"image": image})["image"]
        assert torch.allclose(got, monai({"image": image})["image"], atol=1e-4), seed
        assert not torch.allclose(got, image, atol=1e-2)


def test_without_strength_it_is_the_identity():
    generator = torch.Generator().manual_seed(0)
    item = {
        "image": MetaTensor(torch.randn(4, 20, 24, 28, generator=generator), meta={"filename_or_obj": "x"}),
        "label": torch.randint(0, 5, (1, 20, 24, 28), generator=generator, dtype=torch.uint8),
    }
    got = elastic(**still(4.0, 0.0))(item)
    assert torch.allclose(got["image"], item["image"], atol=1e-4)
    assert torch.equal(got["label"], item["label"]) and got["label"].dtype == torch.uint8
    assert isinstance(got["image"], MetaTensor) and got["image"].meta["filename_or_obj"] == "x"
    untouched = elastic(prob=0.0)(item)
    assert untouched["image"] is item["image"] and untouched["label"] is item["label"]


@pytest.mark.parametrize("seed", range(3))
def test_image_and_label_stay_together(seed):
    """A ball is both image and label; the deformed image is above one half where the deformed label lies."""
    axes = torch.meshgrid(*[torch.arange(40.0)] * 3, indexing="ij")
    distance = sum((axis - center) ** 2 for axis, center in zip(axes, (18, 20, 23), strict=True)).sqrt()
    item = {"image": torch.sigmoid((10 - distance) * 4)[None], "label": (distance < 10).to(torch.uint8)[None] * 4}
    got = elastic(seed)(item)
    inside = got["image"] > 0.5
    assert set(got["label"].unique().tolist()) == {0, 4}
    # On the surface, rounding moves the label by up to half a voxel.
    overlap = 2 * (inside & (got["label"] == 4)).sum() / (inside.sum() + (got["label"] == 4).sum())
    assert overlap > 0.95
    assert not torch.equal(got["label"], item["label"])


def test_it_deforms_as_often_as_it_should_and_by_the_seed():
    made = elastic(prob=0.5)
    drawn = []
    for seed in range(400):
        made.set_random_state(seed)
        made.randomize()
        drawn.append(made._do_transform)
    assert sum(drawn) == pytest.approx(200, abs=40)
    item = {"image": torch.rand(1, 16, 16, 16), "label": torch.zeros(1, 16, 16, 16)}
    a, b, c = (elastic(seed)(item)["image"] for seed in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_sizes_may_differ_by_axis_and_be_small():
    for size in ((16, 32, 48), (8, 8, 8)):
        grid = elastic(**still(20.0)).sampling_grid(size)
        assert grid.shape == (1, *size, 3) and torch.isfinite(grid).all()


def chain(device: bool = True) -> SeededCompose:
    steps = [
        RandSpatialCropd(["image", "label"], [12, 12, 12], random_size=False),
        *([ToDeviced(["image", "label"], "cpu")] if device else []),
        CastToTyped("image", torch.float32),
        RandAxisFlipd(["image", "label"], 0.5),
        RandFastElasticd(["image", "label"], **{**AUTHORS, "prob": 0.5}),
    ]
    made = SeededCompose(steps, seed=5)
    made.epoch = 3
    return made


def test_what_the_loader_leaves_is_done_to_the_batch_with_the_same_result():
    generator = np.random.default_rng(0)
    items = [
        {
            "case": f"case {number}",
            "image": MetaTensor(torch.from_numpy(generator.normal(size=(2, 16, 18, 20)).astype(np.float16))),
            "label": MetaTensor(torch.from_numpy(generator.integers(0, 4, (1, 16, 18, 20)).astype(np.uint8))),
        }
        for number in range(6)
    ]
    transform = chain()
    whole = list_data_collate([transform(item) for item in items])
    begun = list_data_collate([transform(item, end=device_step(transform)) for item in items])
    assert begun["image"].dtype == torch.float16
    image, label = AugmentBatch(transform)(begun, "cpu")
    assert torch.equal(image, whole["image"]) and torch.equal(label, whole["label"])
    image, label = AugmentBatch(transform, enabled=False)(whole, "cpu")
    assert torch.equal(image, whole["image"])


def test_a_chain_without_a_device_cannot_be_parted():
    with pytest.raises(ValueError, match="no ToDeviced"):
        device_step(chain(device=False))
    assert isinstance(chain(), Compose)


def test_each_sequence_changes_on_its_own_and_the_background_stays():
    image = torch.rand(4, 12, 12, 12, generator=torch.Generator().manual_seed(0)) + 1
    image[:, :3] = 0
    transforms = [RandScaleIntensity(factors=0.5, prob=1.0), RandShiftIntensity(offsets=1.0, prob=1.0)]
    made = EachSequenced("image", transforms).set_random_state(seed=1)
    found = made({"image": MetaTensor(image)})["image"]
    assert isinstance(found, MetaTensor) and not found[:, :3].any()
    lines = []
    for before, after in zip(image[:, 3:], found[:, 3:], strict=True):
        # Both transforms are linear in the intensity: two voxels tell the line, and all others lie on it.
        slope = (after[0, 0, 1] - after[0, 0, 0]) / (before[0, 0, 1] - before[0, 0, 0])
        offset = after[0, 0, 0] - slope * before[0, 0, 0]
        torch.testing.assert_close(torch.as_tensor(after), slope * before + offset, atol=1e-4, rtol=1e-4)
        lines.append((float(slope), float(offset)))
    assert len({round(slope, 3) for slope, _ in lines}) == 4


def test_each_sequence_is_seeded_by_the_case_in_a_seeded_compose():
    transforms = [RandGaussianNoise(prob=1.0)]
    made = SeededCompose([EachSequenced("image", transforms)], seed=5)
    image = torch.ones(4, 6, 6, 6)
    first, again, other = (made({"case": name, "image": image})["image"] for name in ("a", "a", "b"))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert not torch.equal(first[0], first[1])


def test_sequences_are_dropped_one_at_a_time_and_equally_often():
    drop = RandDropSequenced("image", prob=0.4).set_random_state(seed=2)
    image = torch.ones(4, 2, 2, 2)
    found = [drop({"image": image})["image"].flatten(1).any(dim=1) for _ in range(1000)]
    assert image.all()  # the input itself is not changed
    absent = torch.stack([~kept for kept in found])
    assert set(absent.sum(dim=1).tolist()) == {0, 1}
    assert 340 < absent.any(dim=1).sum() < 460
    assert all(60 < count < 145 for count in absent.sum(dim=0).tolist())
