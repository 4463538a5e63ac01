# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from scripts.scores.certainty import intensity_signs, region_signs


def certain(regions):
    return regions.float()


def test_a_certain_cuboid_has_the_signs_of_its_geometry():
    regions = torch.zeros(3, 10, 12, 14)
    regions[:, 2:5, 3:7, 4:9] = 1  # 3 x 4 x 5 voxels of 1 x 2 x 3 mm
    signs = region_signs(certain(regions), regions, [1.0, 2.0, 3.0])
    for region in ("ET", "TC", "WT"):
        assert signs[f"soft_dice_{region}"] == 1
        assert signs[f"volume_{region}"] == signs[f"probable_{region}"] == 0.36
        # Faces: 2 (4 x 5) of 6 mm^2, 2 (3 x 5) of 3, 2 (3 x 4) of 2.
        assert signs[f"surface_per_volume_{region}"] == pytest.approx((240 + 90 + 48) / 360, abs=1e-4)
        assert signs[f"border_entropy_{region}"] == 0


def test_the_soft_dice_is_the_mean_dice_of_drawn_truths_for_large_regions():
    """The expected Dice of a region is close to this ratio of sums if the voxels are independent."""
    random = np.random.default_rng(3)
    p = torch.as_tensor(random.beta(0.5, 0.5, (1, 20, 20, 20))).repeat(3, 1, 1, 1)
    regions = (p >= 0.5).float()
    found = region_signs(p, regions, [1.0, 1.0, 1.0])["soft_dice_TC"]
    truths = random.random((200, 20, 20, 20)) < p[1].numpy()
    y = regions[1].numpy() > 0
    dice = [2 * (truth & y).sum() / (truth.sum() + y.sum()) for truth in truths]
    assert found == pytest.approx(np.mean(dice), abs=0.003)


def test_the_entropy_is_that_of_both_sides_of_the_border():
    p = torch.zeros(3, 9, 9, 9)
    p[:, 4, 4, 4] = 0.5  # one voxel, six neighbors with 0
    signs = region_signs(p, p >= 0.5, [1.0, 1.0, 1.0])
    assert signs["border_entropy_WT"] == pytest.approx(1 / 7, abs=1e-4)


def test_an_empty_region_has_signs_too():
    p = torch.full((3, 4, 4, 4), 0.25)
    signs = region_signs(p, torch.zeros(3, 4, 4, 4), [1.0, 1.0, 1.0])
    assert (signs["soft_dice_ET"], signs["volume_ET"], signs["probable_ET"]) == (0, 0, 0.016)
    nothing = region_signs(torch.zeros(3, 4, 4, 4), torch.zeros(3, 4, 4, 4), [1.0, 1.0, 1.0])
    assert nothing["soft_dice_ET"] == 1
    assert nothing["probable_ET"] == 0


def test_intensities_are_those_of_the_brain():
    image = torch.zeros(4, 10, 10, 10)
    image[1, 2:8] = torch.arange(1.0, 601.0).reshape(6, 10, 10)
    signs = intensity_signs(image)
    assert signs["intensity_t2_50"] == 300.5
    assert signs["intensity_t2_5"] == pytest.approx(np.percentile(np.arange(1, 601), 5), abs=1e-4)
    assert signs["intensity_t1_50"] == 0
