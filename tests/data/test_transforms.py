# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Label maps and regions, the post-processing and its volumes: the values, and the keys that stay untouched."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.metrics import DiceMetric
from monai.transforms import Compose, Spacingd
from nibabel.affines import from_matvec
from nibabel.eulerangles import euler2mat
from scipy import ndimage
from scripts.brats import check_label_values
from scripts.data.postprocessing import (
    THRESHOLDS,
    voxel_mm3,
    without_doubtful_tumors,
    without_small_components,
    without_small_et,
)
from scripts.data.regions import (
    labels_to_regions,
    lesion_box,
    probabilities_to_regions,
    region_probabilities,
    regions_to_labels,
    uncertainty,
)
from scripts.data.transforms import (
    REMOVED_ML,
    BrainSpacingd,
    CropToLesiond,
    LabelsToRegionsd,
    ProbabilitiesToLabelMapd,
    RequireFinited,
)
from scripts.scores.metrics import BratsHausdorffDistance95
from scripts.utils.errors import InputError
from workflows import CONFIGS

QUICK = settings(max_examples=40, deadline=None, derandomize=True)
AFFINE = torch.tensor([[-1.0, 0, 0, 5], [0, -2.0, 0, 7], [0, 0, 3.0, -4], [0, 0, 0, 1]], dtype=torch.float64)
SHAPES = hnp.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=6)
ET, TC, WT = 1, 2, 3


def meta(values, name="case_seg.nii.gz", dtype=torch.float32):
    return MetaTensor(torch.as_tensor(values, dtype=dtype), affine=AFFINE, meta={"filename_or_obj": name})


def regions_of(et, tc, wt, dtype=torch.uint8):
    et, tc, wt = (np.asarray(mask, bool) for mask in (et, tc, wt))
    return meta(np.stack([~wt, et, tc, wt]), dtype=dtype)


def box(size, start, shape=(20, 20, 20)):
    mask = np.zeros(shape, bool)
    mask[tuple(slice(s, s + n) for s, n in zip(start, size, strict=True))] = True
    return mask


# Resampling.


def test_resampling_touches_its_own_keys_only():
    """In MONAI Label, items also hold the text image_path, on which MONAI's own transform fails."""
    image = meta(torch.rand(1, 6, 5, 4, generator=torch.manual_seed(0)) + 1, "case.nii.gz")
    item = {"image": image, "image_path": "case.nii.gz", "label": 3}
    with pytest.raises(AttributeError):
        Spacingd("image", pixdim=(2.0, 2.0, 2.0))(item)
    done = BrainSpacingd("image", pixdim=(2.0, 2.0, 2.0))(item)
    wanted = Spacingd("image", pixdim=(2.0, 2.0, 2.0))({"image": image})["image"]
    assert wanted.shape != image.shape and torch.allclose(done.pop("image"), wanted)
    assert done == {"image_path": "case.nii.gz", "label": 3}


def cube(values):
    """An image of 1 mm."""
    return MetaTensor(
        torch.as_tensor(values), affine=torch.eye(4, dtype=torch.float64), meta={"filename_or_obj": "case.nii.gz"}
    )


def brain_in_air(seed=0, size=(1, 12, 11, 10)):
    """Values round 100 in a ball with a hole, and 0 elsewhere."""
    grid = torch.stack(torch.meshgrid(*[torch.arange(n) - n / 2 + 0.5 for n in size[1:]], indexing="ij"))
    radius = grid.square().sum(0).sqrt()
    values = 100 + torch.randn(size, generator=torch.manual_seed(seed))
    return values * ((radius < 4.6) & (radius > 1.2))


@pytest.mark.parametrize("pixdim", [(1.7, 1.7, 1.7), (1.3, 0.7, 2.5), (0.5, 0.5, 0.5)])
def test_resampling_keeps_a_brain_of_one_value(pixdim):
    image = cube((brain_in_air() != 0) * 7.0)
    plain = Spacingd("image", pixdim=pixdim)({"image": image})["image"]
    done = BrainSpacingd("image", pixdim=pixdim)({"image": image})["image"]
    assert ((plain > 0.01) & (plain < 6.99)).any(), "plain interpolation mixes"
    inside = done != 0
    assert torch.allclose(done[inside], torch.tensor(7.0)) and torch.equal(inside, plain > 7 * 0.499)
    assert torch.equal(done.affine, plain.affine)


def test_resampled_values_are_the_mean_of_the_brain_beside_them():
    """The first new voxel is the first old one."""
    values = torch.tensor([0.0, 0.0, 4.0, 6.0, 5.0, 7.0, 9.0, 0.0])
    image = cube(values.view(1, 8, 1, 1))
    done = BrainSpacingd("image", pixdim=(1.4, 1.0, 1.0))({"image": image})["image"].flatten()
    where = np.interp(np.arange(len(done)) * 1.4, np.arange(8), np.arange(8))
    total = np.interp(where, np.arange(8), values)
    brain = np.interp(where, np.arange(8), values != 0)
    wanted = np.where(brain >= 0.5, total / np.maximum(brain, 0.5), 0)
    assert np.allclose(done, wanted, atol=1e-5)


def test_resampling_to_the_images_own_spacing_changes_nothing():
    image = cube(brain_in_air())
    assert torch.equal(BrainSpacingd("image", pixdim=(1.0, 1.0, 1.0))({"image": image})["image"], image)


@pytest.mark.parametrize("noise", [0, 1e-4])
@pytest.mark.parametrize("angles", [(0.14, 0, 0), (0.3, 0.2, -0.1), (0, 0, 0.21)], ids=str)
def test_a_turned_header_gives_the_voxels_of_the_straight_one(angles, noise):
    """Each size is even, so at 2 mm the box has n + 0.5 voxels. The affine is rounded to float32, as in files."""
    straight = cube(brain_in_air(size=(1, 12, 10, 14)))
    turn = euler2mat(*angles) * (1 + noise)
    turned = straight.clone()
    turned.affine = torch.as_tensor(from_matvec(turn, [3, -5, 7]).astype(np.float32)).double()
    resample = BrainSpacingd("image", pixdim=(2.0, 2.0, 2.0))
    wanted, found = (resample({"image": image})["image"] for image in (straight, turned))
    assert found.shape == wanted.shape == (1, 6, 6, 8)
    assert torch.allclose(found, wanted, atol=1e-3)
    np.testing.assert_allclose(found.affine, turned.affine.numpy() @ np.diag([2.0, 2, 2, 1]), atol=1e-5)
    back = resample.inverse({"image": found})["image"]
    assert back.shape == turned.shape and torch.allclose(back.affine, turned.affine, rtol=0, atol=1e-9)


def test_resampled_labels_and_the_way_back_are_those_of_monai():
    image, label = cube(brain_in_air()), cube((brain_in_air() != 0) * 4.0)
    options = {"keys": ["image", "label"], "pixdim": (2.0, 1.5, 2.0), "mode": ["bilinear", "nearest"]}
    ours, theirs = (kind(**options) for kind in (BrainSpacingd, Spacingd))
    done, wanted = ours({"image": image, "label": label}), theirs({"image": image, "label": label})
    assert torch.equal(done["label"], wanted["label"])
    done["image"].copy_(wanted["image"])
    back = ours.inverse(done)
    assert torch.equal(back["image"], theirs.inverse(wanted)["image"]) and back["image"].shape == image.shape


@pytest.mark.parametrize("change", [lambda v: v + 1000, lambda v: v + 10000, lambda v: v * 1e6, lambda v: v - 300])
@pytest.mark.parametrize("name", ["train.json", "inference.json"])
def test_an_offset_or_a_factor_does_not_reach_the_network(name, change):
    parser = ConfigParser(ConfigParser.load_config_file(str(CONFIGS / name)))
    parser["spacing"] = [2.0, 2.0, 2.0]
    steps = [name for name in parser["image_transforms"] if name not in ("@load_image", "@channels_first")]
    assert len(steps) == 4
    transform = Compose([parser.get_parsed_content(name.removeprefix("@")) for name in steps])
    values = torch.cat([brain_in_air(seed) for seed in range(4)])
    changed = torch.where(values != 0, change(values.double()).float(), 0)
    plain, other = (transform({"image": cube(v)})["image"] for v in (values, changed))
    assert torch.equal(plain != 0, other != 0) and plain.shape[1] < 7
    assert torch.allclose(plain, other, atol=5e-3) and plain.abs().max() > 1


# Predictions that are not finite.


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_one_value_that_is_not_finite_is_refused_with_the_cases_name(bad, dtype):
    logits = meta(np.random.default_rng(0).normal(size=(4, 5, 6, 7)) * 1e4, "p_t1.nii.gz", dtype)
    item = {"pred_0": logits, "pred_1": logits.clone(), "case": "p", "other": np.nan}
    assert RequireFinited(["pred_0", "pred_1"])(item) == item
    item["pred_1"][2, 3, 4, 5] = bad
    with pytest.raises(InputError) as caught:
        RequireFinited(["pred_0", "pred_1"])(item)
    assert str(caught.value) == (
        "p: the network's output (pred_1) holds NaN or infinite values, so nothing is saved; "
        "check the weights (--model_file), or compute more exactly with --amp False."
    )
    # Entries from other programs have no case name.
    with pytest.raises(InputError, match=r"^p_t1\.nii\.gz: the network's output \(pred_1\)"):
        RequireFinited("pred_1")({"pred_1": item["pred_1"]})
    with pytest.raises(InputError, match=r"^this case: the network's output"):
        RequireFinited("pred_1")({"pred_1": item["pred_1"].as_tensor()})


# Probabilities.


def test_overlapping_regions_begin_at_one_half():
    probabilities = torch.tensor([0.2, 0.4999999, 0.5, 0.9]).reshape(4, 1, 1, 1)
    regions = probabilities_to_regions(probabilities)
    assert regions.dtype == torch.uint8 and regions.flatten().tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("probabilities", "regions"),
    [
        ([0.4, 0.3, 0.2, 0.1], [1, 0, 0, 0]),  # The tumor classes together are likelier.
        ([0.1, 0.4, 0.3, 0.2], [0, 1, 1, 1]),
        ([0.1, 0.3, 0.4, 0.2], [0, 0, 1, 1]),
        ([0.1, 0.2, 0.3, 0.4], [0, 0, 0, 1]),
        ([0.0, 0.0, 0.0, 0.0], [1, 0, 0, 0]),  # The inverse of a crop fills in zeros.
    ],
)
def test_exclusive_classes_give_the_regions_around_the_likeliest(probabilities, regions):
    found = probabilities_to_regions(torch.tensor(probabilities).reshape(4, 1, 1, 1), exclusive=True)
    assert found.flatten().tolist() == regions


def test_probabilities_of_regions_are_channels_or_sums_of_classes():
    probabilities = torch.tensor([0.1, 0.2, 0.3, 0.4]).reshape(4, 1, 1, 1)
    assert region_probabilities(probabilities).flatten().tolist() == pytest.approx([0.2, 0.3, 0.4])
    assert region_probabilities(probabilities, exclusive=True).flatten().tolist() == pytest.approx([0.2, 0.5, 0.9])


@QUICK
@given(hnp.arrays(np.float64, SHAPES, elements=st.floats(0, 1)))
def test_uncertainty_is_the_entropy_in_hundredths_of_a_bit(p):
    got = uncertainty(torch.as_tensor(p)).numpy()
    with np.errstate(divide="ignore", invalid="ignore"):
        wanted = -100 * (np.nan_to_num(p * np.log2(p)) + np.nan_to_num((1 - p) * np.log2(1 - p)))
    assert np.allclose(got, wanted, atol=1e-9)
    assert got.min() >= 0 and got.max() <= 100 + 1e-9


def test_certainty_is_0_and_a_coin_toss_100():
    assert uncertainty(torch.tensor([0.0, 1.0, 0.5])).tolist() == pytest.approx([0, 0, 100])


# The lesion's box.


@QUICK
@given(st.lists(hnp.arrays(bool, st.just((5, 6, 7))), min_size=1, max_size=3), st.integers(0, 2))
def test_the_box_holds_everything_and_nothing_less_would(masks, margin):
    box = lesion_box([torch.as_tensor(mask) for mask in masks], margin)
    together = np.any(masks, axis=0)
    assert together[box].sum() == together.sum()
    if not together.any():
        return
    for axis, (cut, size) in enumerate(zip(box, together.shape, strict=True)):
        found = np.flatnonzero(together.any(axis=tuple(a for a in range(3) if a != axis)))
        assert (cut.start, cut.stop) == (max(found[0] - margin, 0), min(found[-1] + 1 + margin, size))


@QUICK
@given(hnp.arrays(np.uint8, (9, 8, 7), elements=st.sampled_from([0, 0, 0, 1, 2, 4])), st.integers(0, 2**31))
def test_scores_in_the_box_are_those_of_the_whole_grid(labels, seed):
    predicted = np.where(np.random.default_rng(seed).random(labels.shape) > 0.7, labels, 0)
    reference = labels_to_regions(torch.as_tensor(labels), 4)
    item = {"pred": meta(predicted[None]), "label": meta(reference, dtype=torch.uint8)}
    cut = CropToLesiond(["pred", "label"])(item)
    scores = []
    for prediction, target in ((item["pred"], item["label"]), (cut["pred"], cut["label"])):
        regions = labels_to_regions(prediction[0].as_subclass(torch.Tensor), 4)
        pair = (MetaTensor(regions, affine=AFFINE)[None], target[None])
        dice = DiceMetric(include_background=False, ignore_empty=False)(*pair)
        scores.append((dice.tolist(), BratsHausdorffDistance95()(*pair).tolist()))
    assert scores[0] == scores[1]


def test_without_any_lesion_a_box_is_left():
    item = {"pred": meta(np.zeros((1, 4, 4, 4))), "label": meta(np.zeros((4, 4, 4, 4)))}
    cut = CropToLesiond(["pred", "label"])(item)
    assert cut["pred"].shape == (1, 2, 2, 2) and cut["label"].shape == (4, 2, 2, 2)


# Label maps and regions.


@pytest.mark.parametrize("et_label", [3, 4])
def test_each_label_is_in_these_regions(et_label):
    labels = torch.tensor([[[0, 1, 2, et_label]]])
    wanted = [[1, 0, 0, 0], [0, 0, 0, 1], [0, 1, 0, 1], [0, 1, 1, 1]]
    regions = labels_to_regions(labels, et_label)
    assert regions.dtype == torch.uint8
    assert regions.reshape(4, 4).tolist() == wanted


@pytest.mark.parametrize("et_label", [3, 4])
def test_each_combination_of_regions_has_this_label(et_label):
    # ET, TC, WT and the label, by the rule: the ET label in ET, else 1 in TC, else 2 in WT.
    table = {
        (0, 0, 0): 0, (0, 0, 1): 2, (0, 1, 0): 1, (0, 1, 1): 1,
        (1, 0, 0): et_label, (1, 0, 1): et_label, (1, 1, 0): et_label, (1, 1, 1): et_label,
    }  # fmt: skip
    masks = torch.tensor(list(table)).T.reshape(3, 2, 2, 2)
    for background in (0, 1):
        regions = torch.cat([torch.full((1, 2, 2, 2), background), masks])
        labels = regions_to_labels(regions, et_label)
        assert labels.shape == (1, 2, 2, 2) and labels.dtype == torch.uint8
        assert labels.flatten().tolist() == list(table.values())
        # The authors write edema last, so ET and WT without TC become edema, and nothing else changes.
        last = regions_to_labels(regions, et_label, edema_last=True)
        assert last.flatten().tolist() == list({**table, (1, 0, 1): 2}.values())


@QUICK
@given(data=st.data(), et_label=st.sampled_from([3, 4]), edema_last=st.booleans())
def test_label_maps_survive_the_way_to_regions_and_back(data, et_label, edema_last):
    values = st.sampled_from([0, 1, 2, et_label])
    labels = data.draw(hnp.arrays(np.uint8, SHAPES, elements=values))
    item = {"label": meta(labels[None]), "et_label": et_label, "label_release": 0}
    there = LabelsToRegionsd("label")(item)
    back = regions_to_labels(there["label"], et_label, edema_last)
    np.testing.assert_array_equal(np.asarray(back), labels[None])
    et, tc, wt = np.asarray(there["label"][1:], bool)
    assert not (et & ~tc).any() and not (tc & ~wt).any()
    np.testing.assert_array_equal(np.asarray(there["label"][0], bool), ~wt)


@pytest.mark.parametrize("et_label", [0, 1, 2, 5, None])
def test_other_et_labels_are_refused(et_label):
    for call in (
        lambda: labels_to_regions(torch.zeros(2, 2), et_label),
        lambda: regions_to_labels(torch.zeros(4, 2, 2), et_label),
        lambda: ProbabilitiesToLabelMapd("pred", THRESHOLDS, et_label=et_label),
    ):
        with pytest.raises(InputError, match=f"ET label {et_label}: the enhancing tumor is 4 .* or 3"):
            call()


@pytest.mark.parametrize(
    ("values", "et_label", "shown", "remedy"),
    [
        ([0, 1, 2, 3], 4, "3", "set --et_label 3"),
        ([0, 1, 2, 3, 4], 3, "4", "resection cavity"),
        ([0, 4], 3, "4", "set --label_release 2024"),
        ([0, 1, 2, 5], 4, "5", "check the file"),
        ([0, 3, 4, 7], 4, "3, 7", "check the file"),
        ([0, 0.5, 1], 4, "0.5", "check the file"),
        ([-1, 0], 3, "-1", "check the file"),
        ([0, float("nan")], 4, "nan", "check the file"),
    ],
)
def test_unexpected_labels_are_refused_with_file_values_and_remedy(values, et_label, shown, remedy):
    labels = meta(np.asarray(values, np.float32).reshape(1, 1, 1, -1), name="/data/a/a_seg.nii.gz")
    item = {"label": labels, "et_label": et_label, "label_release": 0}
    with pytest.raises(InputError) as caught:
        LabelsToRegionsd("label")(item)
    message = str(caught.value)
    assert message.startswith(f"/data/a/a_seg.nii.gz: unexpected label {shown} beside 0, 1, 2, {et_label}; ")
    assert remedy in message and "\n" not in message


def test_resection_cavity_becomes_background_by_explicit_choice_only():
    labels = meta(np.array([0, 1, 2, 3, 4], np.float32).reshape(1, 1, 1, 5))
    chosen = {"label": labels, "et_label": 3, "label_release": 2024}
    regions = LabelsToRegionsd("label")(chosen)["label"].reshape(4, 5).tolist()
    assert regions == [[1, 0, 0, 0, 1], [0, 0, 0, 1, 0], [0, 1, 0, 1, 0], [0, 1, 1, 1, 0]]
    with pytest.raises(InputError, match="resection cavity"):
        LabelsToRegionsd("label")({**chosen, "label_release": 0})
    # If the transform itself gets the ET label, as for predictions, it does not read the choice from the item either.
    with pytest.raises(InputError, match="resection cavity"):
        LabelsToRegionsd("label", et_label=3)(chosen)
    # Beside an ET of 4, 3 is core.
    core = LabelsToRegionsd("label")({**chosen, "et_label": 4, "label_release": 2015})["label"].reshape(4, 5).tolist()
    assert core == [[1, 0, 0, 0, 0], [0, 0, 0, 0, 1], [0, 1, 0, 1, 1], [0, 1, 1, 1, 1]]
    # The choice permits no other label.
    with pytest.raises(InputError, match="unexpected label 5"):
        check_label_values(np.array([0, 3, 4, 5]), 3, "x", label_release=2024)
    with pytest.raises(InputError, match="unexpected label 3"):
        check_label_values(np.array([0, 3, 4]), 4, "x", label_release=2024)


def test_a_fixed_et_label_overrules_the_items():
    item = {"pred": meta(np.full((1, 1, 1, 1), 4.0)), "et_label": 3}
    assert LabelsToRegionsd("pred", et_label=4)(item)["pred"].flatten().tolist() == [0, 1, 1, 1]


# Small components.


def test_a_speck_of_et_inside_tc_goes_and_tc_stays():
    tc = box((6, 6, 6), (4, 4, 4))
    et = box((1, 1, 3), (6, 6, 6))
    out = without_small_components(regions_of(et, tc, tc), 10)
    assert int(out[ET].sum()) == 0
    np.testing.assert_array_equal(np.asarray(out[TC]), tc)
    np.testing.assert_array_equal(np.asarray(out[WT]), tc)


@pytest.mark.parametrize("channel", [ET, TC, WT])
@pytest.mark.parametrize(("voxels", "stays"), [(9, False), (10, True), (11, True)])
def test_a_component_of_exactly_the_minimum_stays(channel, voxels, stays):
    regions = torch.zeros(4, 20, 20, 20, dtype=torch.uint8)
    regions[channel, 3, 3, 4 : 4 + voxels] = 1
    regions[channel, 10:15, 10:15, 10:15] = 1
    out = without_small_components(regions, 10)
    assert int(out[channel].sum()) == 125 + voxels * stays
    assert int(out.sum()) == 125 + voxels * stays


@pytest.mark.parametrize(
    ("step", "together"),
    [((0, 0, 1), True), ((0, 1, 0), True), ((1, 1, 0), False), ((0, 1, 1), False), ((1, 1, 1), False)],
)
def test_only_voxels_that_share_a_face_are_one_component(step, together):
    regions = torch.zeros(4, 20, 20, 20, dtype=torch.uint8)
    regions[WT, 5, 5, 5:11] = 1
    # The first of six more voxels is one step from the last of the six; joined, they are twelve.
    i, j, k = (n + s for n, s in zip((5, 5, 10), step, strict=True))
    regions[WT, i, j, k : k + 6] = 1
    assert int(regions[WT].sum()) == 12
    out = without_small_components(regions, 10)
    assert int(out[WT].sum()) == (12 if together else 0)


def test_the_background_is_left_alone():
    regions = torch.zeros(4, 8, 8, 8)
    regions[:, 2, 2, 2] = 1
    out = without_small_components(regions, 10)
    assert out.sum(dim=(1, 2, 3)).tolist() == [1, 0, 0, 0]


@QUICK
@given(regions=hnp.arrays(np.uint8, (4, 5, 6, 4), elements=st.integers(0, 1)), min_voxels=st.integers(1, 12))
def test_small_components_equal_brute_force(regions, min_voxels):
    out = without_small_components(torch.as_tensor(regions), min_voxels).numpy()
    wanted = regions.copy()
    for channel in (ET, TC, WT):
        parts, count = ndimage.label(regions[channel], ndimage.generate_binary_structure(3, 1))
        for part in range(1, count + 1):
            if (parts == part).sum() < min_voxels:
                wanted[channel][parts == part] = 0
    np.testing.assert_array_equal(out, wanted)


# Doubtful tumors beside a larger one.


def test_a_doubtful_tumor_goes_with_its_core_and_the_largest_stays_however_doubtful():
    tumor, core = box((6, 6, 6), (2, 2, 2)), box((2, 2, 2), (3, 3, 3))
    far, far_core = box((3, 3, 3), (14, 14, 14)), box((1, 1, 2), (15, 15, 15))
    regions = regions_of(core | far_core, core | far_core, tumor | far)
    # The highest of the three is 1 in 2 of the far tumor's 27 voxels and 0.73 in the others: 0.75 on average.
    probabilities = torch.as_tensor(np.stack([np.ones_like(far), far_core, far_core * 0.9, np.where(far, 0.73, 0.6)]))
    before = regions.clone()
    out, removed = without_doubtful_tumors(regions, probabilities, 0.7501)
    assert removed == far.sum()
    for channel, wanted in ((ET, core), (TC, core), (WT, tumor)):
        np.testing.assert_array_equal(np.asarray(out[channel], bool), wanted)
    assert torch.equal(regions, before)
    assert torch.equal(out.affine, before.affine)
    for least in (0, 0.6, 0.7499):
        assert torch.equal(without_doubtful_tumors(regions, probabilities, least)[0], regions)
    assert torch.equal(without_doubtful_tumors(regions, probabilities, 1)[0], out)


def test_a_core_outside_the_whole_tumor_counts_as_a_part_of_it():
    wt, tc = box((4, 4, 4), (2, 2, 2)), box((4, 4, 4), (6, 2, 2))
    lone = box((2, 2, 2), (14, 14, 14))
    regions = regions_of(np.zeros_like(wt), tc | lone, wt)
    out, _ = without_doubtful_tumors(regions, torch.full((4, *wt.shape), 0.5), 0.9)
    np.testing.assert_array_equal(np.asarray(out[TC], bool), tc)
    np.testing.assert_array_equal(np.asarray(out[WT], bool), wt)


def test_the_probability_of_exclusive_classes_is_their_sum():
    """No class reaches the limit of 0.8; all tumor together does in the second tumor, but not in the third."""
    probabilities = torch.zeros(4, 1, 1, 9)
    probabilities[0] = 1
    probabilities[..., 0:3] = torch.tensor([0.4, 0, 0, 0.6]).reshape(4, 1, 1, 1)
    probabilities[..., 4:6] = torch.tensor([0.1, 0.3, 0, 0.6]).reshape(4, 1, 1, 1)
    probabilities[..., 7:9] = torch.tensor([0.3, 0.2, 0, 0.5]).reshape(4, 1, 1, 1)
    thresholds = {**NONE, "min_tumor_probability": 0.8}
    found = ProbabilitiesToLabelMapd("x", thresholds, exclusive=True)({"x": probabilities})["x"]
    assert found.flatten().tolist() == [2, 2, 2, 0, 2, 2, 0, 0, 0]


def test_the_volume_of_doubtful_tumors_is_told():
    """3 of 5 voxels stay. The other two go as too small or as doubtful; only the latter is told, in ml."""
    probabilities = torch.tensor([0.9, 0.9, 0.9, 0, 0.7, 0.7, 0, 0.6]).expand(4, 1, 1, 8)
    item = {"x": MetaTensor(probabilities, affine=np.diag([10.0, 10, 20, 1]))}
    limits = {**NONE, "min_component_mm3": 2001, "min_tumor_probability": 0.8}
    assert ProbabilitiesToLabelMapd("x", limits)(item)[REMOVED_ML] == pytest.approx(4)
    assert REMOVED_ML not in ProbabilitiesToLabelMapd("x", {**limits, "min_tumor_probability": 0.69})(item)


# Small enhancing tumors.


@pytest.mark.parametrize(("voxels", "stays"), [(299, False), (300, True), (301, True)])
def test_et_below_the_minimum_becomes_core_wherever_it_lies(voxels, stays):
    et = np.zeros((20, 20, 20), bool)
    et.flat[np.arange(voxels) * 3] = True
    tc, wt = box((4, 4, 4), (8, 8, 8)), box((8, 8, 8), (6, 6, 6))
    out = without_small_et(regions_of(et, tc, wt), 300)
    np.testing.assert_array_equal(np.asarray(out[ET], bool), et if stays else np.zeros_like(et))
    np.testing.assert_array_equal(np.asarray(out[TC], bool), tc if stays else tc | et)
    np.testing.assert_array_equal(np.asarray(out[WT], bool), wt if stays else wt | et)


def test_by_component_each_part_of_et_is_judged_for_itself():
    large, small, diagonal = box((5, 5, 4), (1, 1, 1)), box((3, 3, 3), (12, 12, 12)), box((2, 1, 1), (6, 6, 5))
    et = large | small | diagonal
    regions = regions_of(et, np.zeros_like(et), np.zeros_like(et))
    out = without_small_et(regions, 100, per_component=True)
    np.testing.assert_array_equal(np.asarray(out[ET], bool), large)
    np.testing.assert_array_equal(np.asarray(out[TC], bool), small | diagonal)
    np.testing.assert_array_equal(np.asarray(out[WT], bool), small | diagonal)
    # By total volume, all of ET is large enough.
    whole = without_small_et(regions, 100)
    np.testing.assert_array_equal(np.asarray(whole[ET], bool), et)
    assert not whole[TC].any() and not whole[WT].any()


@QUICK
@given(
    regions=hnp.arrays(np.uint8, (4, 4, 5, 4), elements=st.integers(0, 1)),
    min_voxels=st.integers(0, 50),
    per_component=st.booleans(),
)
def test_suppression_equals_brute_force(regions, min_voxels, per_component):
    out = without_small_et(torch.as_tensor(regions), min_voxels, per_component)
    wanted = regions.copy()
    parts, count = ndimage.label(regions[ET]) if per_component else (regions[ET], 1)
    for part in range(1, count + 1):
        if (parts == part).sum() < min_voxels:
            wanted[ET][parts == part] = 0
            wanted[TC][parts == part] = wanted[WT][parts == part] = 1
    np.testing.assert_array_equal(out.numpy(), wanted)


# The whole post-processing, by volumes.

# A voxel of the sheared grid has 12 mm^3. The product of the lengths of its edges is larger.
SHEARED = [[2.0, 1.0, 0.5, 0], [0, 2.0, -1.0, 0], [0, 0, 3.0, 0], [0, 0, 0, 1]]
GRIDS = {
    "0.5 mm": (np.diag([-0.5, -0.5, 0.5, 1]), 0.125),
    "1 mm": (np.diag([-1.0, -1, 1, 1]), 1),
    "2 x 2 x 3 mm": (np.diag([-2.0, -2, 3, 1]), 12),
    "sheared": (np.array(SHEARED), 12),
    "no affine": (None, 1),
}
NONE = {**dict.fromkeys(THRESHOLDS, 0), "et_per_component": False}


def label_map(et, tc, wt, affine, **thresholds):
    """The label map of sure predictions of regions."""
    probabilities = torch.as_tensor(np.stack([~wt, et, tc, wt]), dtype=torch.float32)
    probabilities = probabilities if affine is None else MetaTensor(probabilities, affine=torch.as_tensor(affine))
    return np.asarray(ProbabilitiesToLabelMapd("x", {**NONE, **thresholds})({"x": probabilities})["x"][0])


def component(voxels, shape=(4, 60, 60)):
    """A component of this many voxels, in the first slices."""
    mask = np.zeros(shape, bool)
    mask.reshape(-1)[:voxels] = True
    return mask


NOTHING = np.zeros((4, 60, 60), bool)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("mm3", [10, 24, 300])
def test_a_volume_is_the_same_on_every_grid(grid, mm3):
    affine, voxel = GRIDS[grid]
    assert voxel_mm3(torch.ones(1) if affine is None else MetaTensor(torch.ones(1, 2, 2, 2), affine=affine)) == voxel
    least = int(np.ceil(mm3 / voxel))
    for voxels, stays in ((least, True), (least - 1, False)):
        part = component(voxels)
        kept = part if stays else NOTHING
        found = label_map(NOTHING, NOTHING, part, affine, min_component_mm3=mm3)
        np.testing.assert_array_equal(found, 2 * kept)
        for by_component in (False, True):
            found = label_map(part, part, part, affine, min_et_mm3=mm3, et_per_component=by_component)
            np.testing.assert_array_equal(found, (4 if stays else 1) * part)


@pytest.mark.parametrize(("edge", "stays"), [(0.99999, True), (1 - 1e-6, True), (0.999, False), (1.00001, True)])
def test_what_a_header_rounds_does_not_count(edge, stays):
    """Ten voxels of 9.9999 mm^3 together count as 10 mm^3; ten of 9.99 do not."""
    part = component(10)
    found = label_map(part, part, part, np.diag([1, 1, edge, 1]), min_component_mm3=10)
    np.testing.assert_array_equal(found, 4 * part * stays)


def by_hand(probabilities, voxel, limits, et_label, edema_last):
    """The label map by loops over single components, in mm^3."""
    regions = {name: probabilities[name] >= 0.5 for name in (ET, TC, WT)}
    for name, region in regions.items():
        for part in parts(region):
            if part.sum() * voxel < limits["min_component_mm3"]:
                regions[name] = regions[name] & ~part
    tumors = parts(regions[ET] | regions[TC] | regions[WT])
    largest = max((int(tumor.sum()) for tumor in tumors), default=0)
    first = next((n for n, tumor in enumerate(tumors) if tumor.sum() == largest), None)
    for number, tumor in enumerate(tumors):
        if number != first and probabilities[1:].max(0)[tumor].mean() < limits["min_tumor_probability"]:
            regions = {name: region & ~tumor for name, region in regions.items()}
    for part in parts(regions[ET]) if limits["et_per_component"] else [regions[ET]]:
        if part.sum() * voxel < limits["min_et_mm3"]:
            regions = {ET: regions[ET] & ~part, TC: regions[TC] | part, WT: regions[WT] | part}
    labels = np.zeros(probabilities.shape[1:], np.uint8)
    for place in np.ndindex(labels.shape):
        et, tc, wt = (bool(regions[name][place]) for name in (ET, TC, WT))
        if et and not (edema_last and wt and not tc):
            labels[place] = et_label
        elif tc or wt:
            labels[place] = 1 if tc else 2
    return labels


def parts(mask):
    """The components of a mask, by spreading from voxel to voxel."""
    left, found = {tuple(place) for place in np.argwhere(mask).tolist()}, []
    while left:
        part, edge = np.zeros_like(mask), [min(left)]
        left.remove(edge[0])
        while edge:
            place = edge.pop()
            part[place] = True
            for axis, step in itertools.product(range(mask.ndim), (-1, 1)):
                other = (*place[:axis], place[axis] + step, *place[axis + 1 :])
                if other in left:
                    left.remove(other)
                    edge.append(other)
        found.append(part)
    return found


@QUICK
@given(
    seed=st.integers(0, 10**6),
    voxel=st.sampled_from([0.125, 1, 12]),
    limits=st.tuples(st.integers(0, 30), st.floats(0, 1), st.integers(0, 30), st.booleans()),
    et_label=st.sampled_from([3, 4]),
    edema_last=st.booleans(),
)
def test_the_label_map_is_the_one_by_hand(seed, voxel, limits, et_label, edema_last):
    rng = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(rng.normal(size=(4, 7, 6, 8)), (0, 0.6, 0.6, 0.6))
    probabilities = 1 / (1 + np.exp(-8 * (noise - rng.uniform(-0.2, 0.4))))
    limits = dict(zip(THRESHOLDS, limits, strict=True))
    affine = torch.diag(torch.tensor([-1.0, 1, voxel, 1], dtype=torch.float64))
    step = ProbabilitiesToLabelMapd("x", limits, et_label=et_label, edema_last=edema_last)
    found = step({"x": MetaTensor(torch.as_tensor(probabilities), affine=affine)})["x"]
    np.testing.assert_array_equal(np.asarray(found[0]), by_hand(probabilities, voxel, limits, et_label, edema_last))


@pytest.mark.parametrize(
    ("thresholds", "said"),
    [
        (
            {**THRESHOLDS, "min_et_mm": 5},
            "--thresholds#min_et_mm 5: no such threshold; choose one of min_component_mm3",
        ),
        ({**THRESHOLDS, "min_et_mm3": -1}, "--thresholds#min_et_mm3 -1: write a volume in mm^3, 0 or more."),
        ({**THRESHOLDS, "min_et_mm3": "many"}, "--thresholds#min_et_mm3 many: write a volume in mm^3"),
        ({**THRESHOLDS, "min_et_mm3": True}, "--thresholds#min_et_mm3 True: write a volume in mm^3"),
        ({**THRESHOLDS, "min_component_mm3": float("nan")}, "--thresholds#min_component_mm3 nan: write a volume in"),
        ({**THRESHOLDS, "min_component_mm3": float("inf")}, "--thresholds#min_component_mm3 inf: write a volume in"),
        (
            {**THRESHOLDS, "min_tumor_probability": 83},
            "--thresholds#min_tumor_probability 83: write a probability from 0 to 1.",
        ),
        ({**THRESHOLDS, "et_per_component": 1}, "--thresholds#et_per_component 1: write True or False."),
        ({"min_et_mm3": 5}, "--thresholds#min_component_mm3 None: write a volume in mm^3"),
        (300, "--thresholds 300: set single ones, such as --thresholds#min_et_mm3 100."),
    ],
)
def test_thresholds_that_are_none_are_refused_in_one_line(thresholds, said):
    with pytest.raises(InputError) as caught:
        ProbabilitiesToLabelMapd("x", thresholds)
    assert str(caught.value).startswith(said) and "\n" not in str(caught.value)


# What all transforms keep.

TRANSFORMS = {
    "labels to regions": lambda: LabelsToRegionsd("x", et_label=4),
    "probabilities to label map": lambda: ProbabilitiesToLabelMapd("x", {**THRESHOLDS, "min_et_mm3": 1000}),
}
STEPS = {
    "regions to labels": regions_to_labels,
    "small components": lambda regions: without_small_components(regions, 1000),
    "doubtful tumors": lambda regions: without_doubtful_tumors(regions, torch.zeros(regions.shape), 1)[0],
    "small ET": lambda regions: without_small_et(regions, 1000),
    "small ET by component": lambda regions: without_small_et(regions, 1000, per_component=True),
}


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_geometry_and_other_keys_are_kept_and_the_input_is_not_modified(name, dtype):
    tc = box((4, 4, 4), (2, 2, 2))
    et = box((2, 2, 2), (2, 2, 2))
    values = meta((tc + 3.0 * et)[None], "a_seg.nii.gz", dtype) if name == "labels to regions" else None
    values = regions_of(et, tc, tc, dtype) if values is None else values
    before, item = values.clone(), {"x": values, "other": [1, 2]}
    out = TRANSFORMS[name]()(item)
    assert item["x"] is values and torch.equal(values.as_tensor(), before.as_tensor())
    assert out["other"] is item["other"]
    assert isinstance(out["x"], MetaTensor)
    assert torch.equal(out["x"].affine, AFFINE)
    assert out["x"].meta["filename_or_obj"] == values.meta["filename_or_obj"]
    assert tuple(out["x"].shape[1:]) == (20, 20, 20)
    assert not np.array_equal(np.asarray(out["x"]), np.asarray(values))


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_missing_key_is_an_error_unless_allowed(name):
    with pytest.raises(KeyError, match="x"):
        TRANSFORMS[name]()({"y": 1})
    transform = TRANSFORMS[name]()
    transform.allow_missing_keys = True
    assert transform({"y": 1}) == {"y": 1}


@pytest.mark.parametrize("name", STEPS)
def test_logical_and_probability_like_values_count_as_inside_above_zero(name):
    tc, et = box((4, 4, 4), (2, 2, 2)), box((2, 2, 2), (2, 2, 2))
    whole = regions_of(et, tc, tc)
    wanted = np.asarray(STEPS[name](whole)) > 0
    for values in (whole.bool(), whole.float() * 0.25):
        before = values.clone()
        found = STEPS[name](values)
        assert np.array_equal(np.asarray(found) > 0, wanted)
        assert torch.equal(values, before) and torch.equal(found.affine, AFFINE)


def test_two_dimensional_regions_are_cleaned_too():
    regions = torch.zeros(4, 12, 12)
    for channel, (i, j) in itertools.product((ET, WT), ((2, 2), (8, 3))):
        regions[channel, i, j : j + (2 if channel == ET else 4)] = 1
    out = without_small_components(regions, 3)
    assert out.sum(dim=(1, 2)).tolist() == [0, 0, 0, 8]
