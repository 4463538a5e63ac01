# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Pasted lesions bring their labels along, stay inside the brain, and leave the rest of the case as it is."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy import ndimage
from scripts.lab.lesion_mixing import RandCarveMixd
from scripts.utils.errors import InputError

READING = {"et_label": 4, "edema_label": 2, "label_release": 0}
SIZE = (40, 36, 32)


def case(name: str, value: float, lesion: tuple[slice, ...] | None = None, **changes) -> dict:
    """A brain of one value with a lesion of another value, in a box of background."""
    image, label = torch.zeros(4, *SIZE), torch.zeros(1, *SIZE)
    image[:, 4:-4, 4:-4, 4:-4] = value
    if lesion is not None:
        image[(slice(None), *lesion)] = value + 10
        label[(slice(None), *lesion)] = 2
        inner = tuple(slice(s.start + 2, s.stop - 2) for s in lesion)
        label[(slice(None), *inner)] = 4
    return {"case": name, "image": MetaTensor(image), "label": MetaTensor(label), **READING, **changes}


LESION = (slice(22, 30), slice(12, 20), slice(12, 20))
DONOR = case("donor", 1.0, LESION)


def mixed(target: dict, seed: int, data=(DONOR,), **settings) -> dict:
    settings = {"prob": 1.0, "margin": (1.0, 1.0), "shift": 0, **settings}
    mixing = RandCarveMixd(["image", "label"], data, transform=lambda item: item, **settings)
    return mixing.set_random_state(seed)(target)


@pytest.mark.parametrize("seed", range(6))
def test_the_whole_lesion_arrives_with_its_labels_at_its_place_or_mirrored(seed):
    target = case("target", -1.0)
    found = mixed(target, seed)
    place = np.argwhere(found["label"][0].numpy() > 0)
    across = place[:, 0].mean()
    assert across == pytest.approx(25.5) or across == pytest.approx(39 - 25.5)
    assert place[:, 1:].mean(axis=0) == pytest.approx([15.5, 15.5])
    assert (
        torch.bincount(found["label"].flatten().long()).tolist()
        == torch.bincount(DONOR["label"].flatten().long()).tolist()
    )
    tumor = found["label"][0] > 0
    assert (found["image"][:, tumor] == 11).all()
    # Beyond the margin nothing changes.
    far = torch.from_numpy(~_dilated(tumor.numpy(), 2))
    assert torch.equal(found["image"][:, far], target["image"][:, far])
    assert isinstance(found["image"], MetaTensor)
    assert not target["label"].any()  # the input itself is not changed


def test_a_mirrored_lesion_lies_on_the_other_side():
    """Its shape, which is no mirror image of itself, tells whether it was mirrored."""
    donor = case("donor", 1.0, LESION)
    for key in ("image", "label"):
        donor[key][:, 22:24, 12:14] = 0 if key == "label" else 1
    plain = donor["label"][0] > 0
    sides = set()
    for seed in range(6):
        found = mixed(case("target", -1.0), seed, [donor])["label"][0] > 0
        sides.add(bool(found[:20].any()))
        assert torch.equal(found, plain.flip(0) if found[:20].any() else plain)
    assert sides == {True, False}


def test_the_label_is_the_donors_where_half_of_the_image_is():
    """At a distance of 2 voxels from a lesion with a margin of 2, image and label change hands."""
    all_over = (slice(4, 36), slice(4, 32), slice(4, 28))
    found = mixed(case("target", -1.0, all_over), 0, margin=(2.0, 2.0))
    half = found["image"][0] == (9 + 1) / 2
    assert half.sum() > 50 and not found["label"][0, half].any()


def _dilated(mask: np.ndarray, steps: int) -> np.ndarray:
    return ndimage.binary_dilation(mask, np.ones((3, 3, 3)), iterations=steps)


def test_the_margin_replaces_a_lesion_of_the_other_brain():
    """There the image shows healthy tissue of the donor, so the label must not say that a lesion is there."""
    all_over = (slice(4, 36), slice(4, 32), slice(4, 28))
    found = mixed(case("target", -1.0, all_over), 0, margin=(2.0, 2.0))
    healthy = found["image"][0] == 1  # only the donor has this value, in the margin
    assert healthy.sum() > 300
    assert not found["label"][0, healthy].any()
    lesion = found["image"][0] == 9  # the lesion that the brain had
    assert lesion.sum() > 5000 and (found["label"][0, lesion] > 0).all()


def test_patients_without_a_lesion_give_none():
    found = {int((mixed(case("target", -1.0), s, [case("none", 2.0), DONOR])["label"] > 0).sum()) for s in range(8)}
    assert found == {8**3}
    with pytest.raises(InputError, match="target: no other patient has a lesion"):
        mixed(case("target", -1.0), 0, [case("none", 2.0)])


def test_another_visit_is_no_other_patient():
    donor = {**DONOR, "case": "BraTS-GLI-00005-100"}
    assert not mixed(case("BraTS-GLI-00005-101", -1.0), 0, [donor])["label"].any()


def test_both_sides_and_several_donors_occur():
    donors = [DONOR, case("small", 2.0, (slice(10, 15), slice(10, 15), slice(10, 15)))]
    found = [mixed(case("target", -1.0), seed, donors) for seed in range(12)]
    sizes = {int((item["label"] > 0).sum()) for item in found}
    assert sizes == {8**3, 5**3}
    sides = {np.argwhere(item["label"][0].numpy() > 0)[:, 0].mean() > 19.5 for item in found}
    assert sides == {True, False}


def test_nothing_is_pasted_outside_the_brain():
    for seed in range(20):
        target = case("target", -1.0)
        found = mixed(target, seed, shift=20)
        background = target["image"][0] == 0
        assert not found["image"][:, background].any()
        assert not found["label"][:, background].any()


def test_a_lesion_is_neither_pasted_into_its_own_patient_nor_where_labels_are_read_in_another_way():
    for target in (case("donor", -1.0), case("target", -1.0, et_label=3)):
        assert not mixed(target, 0)["label"].any()


def test_the_share_of_mixed_cases_is_the_probability():
    mixing = RandCarveMixd(["image", "label"], [DONOR], transform=lambda item: item, prob=0.3)
    mixing.set_random_state(1)
    count = sum(bool(mixing(case("target", -1.0))["label"].any()) for _ in range(200))
    assert 40 < count < 80
