# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Scores follow the rules for empty regions, and equal closed forms and the scores of other libraries."""

import itk
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.metrics import DiceMetric, compute_surface_dice
from monai.metrics.utils import get_edge_surface_distance
from scipy import ndimage
from scipy.spatial import cKDTree
from scripts.data.transforms import CropToLesiond
from scripts.scores.metrics import (
    WORST_HD95_MM,
    BratsHausdorffDistance95,
    SensitivitySpecificity,
    SurfaceDice,
    surface_hausdorff95,
)

SIZE = (22, 18, 20)
SPACINGS = [(1.0, 1.0, 1.0), (1.0, 2.0, 3.5), (0.7, 0.4, 5.0)]


def dice_metric(**arguments):
    """The metric as train.json defines it."""
    return DiceMetric(include_background=False, ignore_empty=False, **arguments)


def affine(spacing):
    """Make an affine with an unusual order and direction of axes, so that its diagonal does not hold the spacings."""
    matrix = np.zeros((4, 4))
    for column, row in enumerate((2, 0, 1)):
        matrix[row, column] = -spacing[column] if column == 1 else spacing[column]
    matrix[:, 3] = (11, -7, 3, 1)
    return torch.as_tensor(matrix)


def regions(*masks, spacing=None, size=SIZE):
    """Return background and the given regions with a batch axis, as a MetaTensor if there is a spacing."""
    stacked = np.stack([np.zeros(size, bool), *masks])[None].astype(np.float32)
    if spacing is None:
        return torch.as_tensor(stacked)
    return MetaTensor(stacked[0], affine=affine(spacing))[None]


def blob(seed, size=SIZE):
    """Make a random, bumpy region, which may touch the border and consist of several parts."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=size), 2.5, mode="constant")
    return noise > np.quantile(noise, 0.85)


def box(start, edges, size=SIZE):
    mask = np.zeros(size, bool)
    mask[tuple(slice(s, s + n) for s, n in zip(start, edges, strict=True))] = True
    return mask


def surface(mask):
    """Return MONAI's surface: the voxels that an erosion with the 6-neighborhood removes, also at the border."""
    return mask & ~ndimage.binary_erosion(mask, ndimage.generate_binary_structure(3, 1))


def kd_tree_hd95(a, b, spacing):
    a, b = (np.argwhere(surface(mask)) * spacing for mask in (a, b))
    return max(np.percentile(cKDTree(b).query(a)[0], 95), np.percentile(cKDTree(a).query(b)[0], 95))


def itk_distances(of, to, spacing):
    """Return the distances in mm from the surface of ``of`` to the surface of ``to``, by ITK's exact distance map."""
    image = itk.image_view_from_array(np.ascontiguousarray(surface(to).astype(np.uint8)))
    image.SetSpacing([float(s) for s in reversed(spacing)])  # ITK counts axes from the last.
    distances = itk.signed_maurer_distance_map_image_filter(image, squared_distance=False, use_image_spacing=True)
    return np.abs(itk.array_from_image(distances))[surface(of)]


def itk_dice(a, b):
    kind = itk.Image[itk.UC, 3]
    overlap = itk.LabelOverlapMeasuresImageFilter[kind].New()
    overlap.SetSourceImage(itk.image_from_array(a.astype(np.uint8)))
    overlap.SetTargetImage(itk.image_from_array(b.astype(np.uint8)))
    overlap.Update()
    return overlap.GetDiceCoefficient(1)


def hd95(pred, label):
    return BratsHausdorffDistance95()(pred, label).tolist()


def dice(pred, label):
    metric = dice_metric(reduction="none")
    metric(pred, label)
    return metric.aggregate().tolist()


# Empty regions.

EMPTY, SOME, OTHER = np.zeros(SIZE, bool), box((3, 3, 3), (4, 4, 4)), box((10, 9, 9), (2, 2, 2))


def test_worst_distance_is_the_diagonal_of_the_brats_grid():
    # BraTS measures from the first voxel to one voxel past the last along the longer sides.
    assert WORST_HD95_MM == 373.12866
    assert pytest.approx(np.sqrt(240**2 + 240**2 + 155**2), abs=1e-4) == WORST_HD95_MM


@pytest.mark.parametrize(
    ("pred", "label", "dice_score", "distance"),
    [
        (EMPTY, EMPTY, 1.0, 0.0),
        (EMPTY, SOME, 0.0, 373.12866),
        (SOME, EMPTY, 0.0, 373.12866),
        (SOME, SOME, 1.0, 0.0),
        (OTHER, box((10, 9, 10), (2, 2, 2)), 0.5, 1.0),
    ],
    ids=["both empty", "missed", "invented", "equal", "shifted"],
)
@pytest.mark.parametrize("spacing", [None, (1.0, 1.0, 1.0)])
def test_empty_regions_are_scored_by_the_brats_2020_rules(pred, label, dice_score, distance, spacing):
    pred, label = regions(pred, spacing=spacing), regions(label, spacing=spacing)
    assert dice(pred, label) == [[dice_score]]
    assert hd95(pred, label) == [[pytest.approx(distance, rel=1e-6)]]


def test_worst_distance_does_not_depend_on_spacing_and_size():
    size = (5, 4, 3)
    pred = regions(np.ones(size), spacing=(1, 2, 7), size=size)
    assert hd95(pred, torch.zeros_like(pred)) == [[pytest.approx(373.12866)]]


def test_means_count_every_case_empty_ones_included():
    cases = [(SOME, SOME), (EMPTY, EMPTY), (SOME, EMPTY), (EMPTY, SOME)]
    distance = BratsHausdorffDistance95()
    overlap = dice_metric(reduction="mean")
    for pred, label in cases:
        for metric in (distance, overlap):
            metric(regions(*[pred] * 3), regions(*[label] * 3))
    assert distance.aggregate()["val_hd95_TC"] == pytest.approx(2 * 373.12866 / 4)
    assert float(overlap.aggregate()) == pytest.approx(0.5)


# Closed forms.


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_shifted_cube_is_off_by_its_shift_in_mm(spacing, axis):
    start = [4, 4, 4]
    pred = box(start, (6, 6, 6))
    start[axis] += 2
    label = box(start, (6, 6, 6))
    # One face is two steps from the other cube. It has 36 of the 152 surface voxels, which is more than 5 %.
    wanted = [[pytest.approx(2 * spacing[axis], rel=1e-6)]]
    assert hd95(regions(pred, spacing=spacing), regions(label, spacing=spacing)) == wanted
    assert dice(regions(pred), regions(label)) == [[pytest.approx(4 / 6)]]


def test_two_voxels_are_apart_by_their_distance_in_mm():
    spacing = (1.0, 2.0, 3.5)
    pred, label = box((2, 3, 4), (1, 1, 1)), box((5, 7, 6), (1, 1, 1))
    wanted = np.sqrt(3**2 + (4 * 2.0) ** 2 + (2 * 3.5) ** 2)
    assert hd95(regions(pred, spacing=spacing), regions(label, spacing=spacing)) == [[pytest.approx(wanted, rel=1e-6)]]
    assert hd95(regions(pred), regions(label)) == [[pytest.approx(np.sqrt(9 + 16 + 4), rel=1e-6)]]


def test_the_larger_direction_counts_and_the_95th_percentile_is_interpolated():
    """From a line of 30 voxels to its first one, the distances are 0 to 29; in the other direction, it is 0."""
    line, point = box((0, 0, 0), (1, 1, 30), (3, 3, 31)), box((0, 0, 0), (1, 1, 1), (3, 3, 31))
    for pred, label in ((line, point), (point, line)):
        pred, label = regions(pred, size=(3, 3, 31)), regions(label, size=(3, 3, 31))
        assert hd95(pred, label) == [[pytest.approx(0.95 * 29)]]
    # medpy pools the distances of both directions, which would give less.
    assert np.percentile([*range(30), 0], 95) == 27.5 < 0.95 * 29 - 1e-3


# Against other libraries.


@pytest.mark.parametrize("seed", range(5))
def test_dice_of_random_regions_is_itks(seed):
    pred, label = blob(seed), blob(seed + 100)
    expected = itk_dice(pred, label)
    assert 0.01 < expected < 0.99
    assert dice(regions(pred), regions(label)) == [[pytest.approx(expected, rel=1e-6)]]


@pytest.mark.slow
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("seed", range(4))
def test_hd95_of_random_regions_is_that_of_itk_and_of_kd_trees(seed, spacing):
    pred, label = blob(seed), blob(seed + 100)
    ours = hd95(regions(pred, spacing=spacing), regions(label, spacing=spacing))
    by_itk = max(np.percentile(itk_distances(*pair, spacing), 95) for pair in ((pred, label), (label, pred)))
    assert by_itk > 1
    assert ours == [[pytest.approx(by_itk, rel=1e-4)]]
    assert ours == [[pytest.approx(kd_tree_hd95(pred, label, spacing), rel=1e-5)]]


def test_spacing_changes_the_distance_and_comes_from_the_affine():
    pred, label = blob(1), blob(101)
    found = [hd95(regions(pred, spacing=s), regions(label, spacing=s))[0][0] for s in SPACINGS]
    assert len({round(value, 3) for value in found}) == 3
    # Without geometry a voxel counts as 1 mm.
    assert hd95(regions(pred), regions(label))[0][0] == pytest.approx(found[0])


# The metric as the handlers use it.


def test_regions_and_cases_are_scored_one_by_one():
    spacing = (1.0, 2.0, 3.5)
    masks = [(blob(i), blob(i + 50)) for i in range(5)] + [(EMPTY, blob(9))]
    preds = [regions(*(p for p, _ in masks[i : i + 3]), spacing=spacing)[0] for i in (0, 3)]
    labels = [regions(*(m for _, m in masks[i : i + 3]), spacing=spacing)[0] for i in (0, 3)]
    metric = BratsHausdorffDistance95()
    wanted = [kd_tree_hd95(p, m, spacing) if p.any() else WORST_HD95_MM for p, m in masks]
    # MONAI's handler decollates and passes lists of cases without a batch axis.
    scores = metric(preds, labels)
    np.testing.assert_allclose(torch.as_tensor(scores).numpy().ravel(), wanted, rtol=1e-5)
    means = metric.aggregate()
    assert list(means) == ["val_hd95_ET", "val_hd95_TC", "val_hd95_WT"]
    np.testing.assert_allclose(list(means.values()), np.mean(np.reshape(wanted, (2, 3)), axis=0), rtol=1e-5)
    # The same cases give the same scores as a batch.
    stacked = BratsHausdorffDistance95()(torch.stack(preds), torch.stack(labels))
    np.testing.assert_allclose(stacked.numpy().ravel(), wanted, rtol=1e-5)


def test_background_is_not_scored():
    pred, label = regions(SOME), regions(OTHER)
    wanted = hd95(pred, label)
    pred[:, 0], label[:, 0] = 1 - pred[:, 1], 1
    assert hd95(pred, label) == wanted and len(wanted[0]) == 1


def test_a_reset_forgets_and_an_aggregate_without_cases_is_refused():
    metric = BratsHausdorffDistance95()
    metric(regions(SOME), regions(EMPTY))
    metric.reset()
    with pytest.raises(ValueError, match="No case"):
        metric.aggregate()
    metric(regions(SOME, SOME, SOME), regions(SOME, SOME, SOME))
    assert set(metric.aggregate().values()) == {0.0}


def test_tensors_of_two_shapes_or_one_alone_are_refused():
    metric = BratsHausdorffDistance95()
    with pytest.raises(ValueError, match="one shape"):
        metric(regions(SOME), regions(SOME, SOME))
    with pytest.raises(ValueError, match="one shape"):
        metric(regions(SOME))


def test_two_dimensional_distances_in_mm():
    """One of two squares is shifted by 3 voxels along an axis with a spacing of 2 mm."""
    pred, label = torch.zeros(1, 2, 20, 20), torch.zeros(1, 2, 20, 20)
    pred[0, 1, 4:10, 4:10] = 1
    label[0, 1, 7:13, 4:10] = 1
    matrix = torch.diag(torch.tensor([2.0, 1.0, 1.0, 1.0]))
    assert hd95(MetaTensor(pred[0], affine=matrix)[None], MetaTensor(label[0], affine=matrix)[None]) == [[6.0]]
    assert hd95(pred, label) == [[3.0]]


# Sensitivity and specificity.


def sensitivity_specificity(pred, label):
    return SensitivitySpecificity()(pred, label).tolist()


@pytest.mark.parametrize(
    ("pred", "label", "sensitivity", "invented"),
    [(EMPTY, EMPTY, 1, 0), (EMPTY, SOME, 0, 0), (SOME, EMPTY, 0, 64), (SOME, SOME, 1, 0), (OTHER, SOME, 0, 8)],
    ids=["both empty", "missed", "invented", "equal", "beside"],
)
def test_sensitivity_and_specificity_of_empty_regions_are_numbers(pred, label, sensitivity, invented):
    negative = label.size - label.sum()
    wanted = [[sensitivity, pytest.approx((negative - invented) / negative)]]
    assert sensitivity_specificity(regions(pred), regions(label)) == wanted


def test_sensitivity_and_specificity_of_a_region_that_fills_the_grid():
    full = np.ones(SIZE, bool)
    assert sensitivity_specificity(regions(full), regions(full)) == [[1, 1]]
    assert sensitivity_specificity(regions(EMPTY), regions(full)) == [[0, 1]]


@pytest.mark.parametrize("seed", range(3))
def test_the_specificity_of_a_cut_map_is_that_of_the_whole_grid(seed):
    pred, label = blob(seed) & box((2, 2, 2), (9, 9, 9)), blob(seed + 100) & box((4, 2, 2), (9, 9, 9))
    whole = {"pred": regions(pred, spacing=(1, 1, 1))[0], "label": regions(label, spacing=(1, 1, 1))[0]}
    cut = CropToLesiond(["pred", "label"])(whole)
    assert cut["label"].shape[1:] != SIZE
    found, invented, negative = (pred & label).sum(), (pred & ~label).sum(), (~label).sum()
    wanted = [[pytest.approx(found / label.sum()), pytest.approx((negative - invented) / negative)]]
    assert sensitivity_specificity([cut["pred"]], [cut["label"]]) == wanted
    assert sensitivity_specificity(whole["pred"][None], whole["label"][None]) == wanted


# Surface Dice.


def surface_dice(pred, label, tolerances=(0.5, 1.0)):
    return SurfaceDice(tolerances)(pred, label).tolist()


@pytest.mark.parametrize(
    ("pred", "label", "score"),
    [(EMPTY, EMPTY, 1), (EMPTY, SOME, 0), (SOME, EMPTY, 0), (SOME, SOME, 1), (OTHER, SOME, 0)],
    ids=["both empty", "missed", "invented", "equal", "far"],
)
def test_surface_dice_of_empty_regions_is_a_number(pred, label, score):
    assert surface_dice(regions(pred), regions(label)) == [[score, score]]


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("seed", range(4))
def test_surface_dice_of_random_regions_is_monais(seed, spacing):
    """MONAI's function is that of DeepMind's package surface-distance."""
    pred, label, tolerances = blob(seed), blob(seed + 100), [0.5, 1.0, 2.0, 3.3]
    masks = (torch.as_tensor(mask).expand(1, 4, *SIZE) for mask in (pred, label))
    wanted = compute_surface_dice(*masks, tolerances, include_background=True, spacing=spacing, use_subvoxels=True)
    assert 0 < wanted[0, 0] < wanted[0, 3] < 1
    found = surface_dice(regions(pred, spacing=spacing), regions(label, spacing=spacing), tolerances)
    assert found == [pytest.approx(wanted[0].tolist(), rel=1e-5)]


@pytest.mark.parametrize("error", [-1e-6, 0, 1e-6])
def test_a_shift_of_one_voxel_is_within_one_millimeter_whatever_the_affines_rounding(error):
    pred, label = box((4, 4, 4), (6, 6, 6)), box((5, 4, 4), (6, 6, 6))
    spacing = (1 + error, 1.0, 1.0)
    near, far = surface_dice(regions(pred, spacing=spacing), regions(label, spacing=spacing))[0]
    assert 0.5 < near < 0.8 and far == 1


def test_surface_dice_in_two_dimensions():
    """Two squares of 36 pixels are shifted by one. Of both outlines, the sides along the shift coincide."""
    pred, label = torch.zeros(1, 2, 20, 20), torch.zeros(1, 2, 20, 20)
    pred[0, 1, 4:10, 4:10] = label[0, 1, 5:11, 4:10] = 1
    wanted = compute_surface_dice(pred, label, [0.5], spacing=[1.0, 1.0], use_subvoxels=True)
    assert surface_dice(pred, label, [0.5, 1.0]) == [[pytest.approx(float(wanted)), 1.0]]


def test_a_metric_names_each_of_its_scores():
    metric = SurfaceDice([0.5, 2.0])
    metric(regions(SOME, EMPTY, SOME), regions(SOME, SOME, EMPTY))
    metric(regions(EMPTY, EMPTY, SOME), regions(SOME, EMPTY, EMPTY))
    means = {"ET": 0.5, "TC": 0.5, "WT": 0.0}
    wanted = {f"val_surface_dice_{mm}mm_{region}": mean for mm in ("0.5", "2") for region, mean in means.items()}
    assert list(metric.aggregate().items()) == list(wanted.items())


# The Hausdorff distance of surfaces.


def surface_hd95(pred, label, spacing=(1.0, 1.0, 1.0)):
    return surface_hausdorff95(torch.as_tensor(pred), torch.as_tensor(label), spacing[: pred.ndim])


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize(("voxels", "length", "wanted"), [(6, 1.0, 1.0), (7, 1.0, 0.0), (7, 0.5, 0.5), (6, 4.0, 0.0)])
def test_the_end_of_a_line_counts_by_its_area(axis, voxels, length, wanted):
    """The prediction lacks the first voxel of a line, whose voxels are ``length`` mm long and 1 mm thick.

    At each end of the line lie 4 triangles that cut half a millimeter off each of the two thin axes and half a length
    off the long one. They have an area of sqrt(2 length^2 + 1) / 8 each. Between two voxels lie 4 oblique rectangles of
    length * sqrt(1/2). The end has 5.5%, 4.6%, 6.3% and 4.6% of the area in the four cases. It always has more than 5%
    of the points and of the voxels.
    """
    end = 4 * np.sqrt(2 * length**2 + 1) / 8
    share = end / (2 * end + (voxels - 1) * 4 * length * np.sqrt(1 / 2))
    assert (share > 0.05) == (wanted > 0)
    line, missing_one = box((2, 3, 3), (voxels, 1, 1)), box((3, 3, 3), (voxels - 1, 1, 1))
    spacing = np.roll([length, 1.0, 1.0], axis).tolist()
    label, pred = (np.transpose(mask, np.roll(range(3), axis)) for mask in (line, missing_one))
    assert surface_hd95(pred, label, spacing) == surface_hd95(label, pred, spacing) == wanted


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.0, 2.0, 2.0)])
def test_a_cube_inside_another_counts_edges_and_corners_by_their_area(spacing):
    """A cube of 12 voxels holds one of 6 in its middle, so the faces are 3 voxels apart.

    The surface of the large cube has 8 corners of sqrt(3) / 8, 12 edges with 11 points of sqrt(1/2), and 6 faces with
    121 points of 1, in all 821.1. The farthest points are the corners and, on each edge, the two pairs of points that
    lie 2 and 1 voxels outside the small cube's faces. These have 1.7 + 4 * 12 * sqrt(1/2) = 35.7, or 4.3%, so the next
    ones count, which are sqrt(3^2 + 3^2) away. By number of points, the farthest have 56 of 866, or 6.5%.
    """
    large, small = box((3, 3, 3), (12, 12, 12)), box((6, 6, 6), (6, 6, 6))
    wanted = pytest.approx(spacing[0] * np.sqrt(18))
    assert surface_hd95(small, large, spacing) == surface_hd95(large, small, spacing) == wanted


@pytest.mark.parametrize("spacing", SPACINGS)
def test_surfaces_of_single_voxels_are_apart_by_their_distance_in_mm(spacing):
    pred, label = box((4, 5, 6), (1, 1, 1)), box((6, 8, 7), (1, 1, 1))
    # One of the eight corners, which are alike, has this distance.
    assert surface_hd95(pred, label, spacing) == pytest.approx(np.linalg.norm(np.multiply((2, 3, 1), spacing)))
    assert surface_hd95(pred, pred, spacing) == 0


def test_surfaces_at_the_border_of_the_grid_are_closed():
    """A mask that fills the grid has a surface, and a wider grid changes nothing."""
    full, half = np.ones((6, 6, 6), bool), np.zeros((6, 6, 6), bool)
    half[:3] = True
    assert surface_hd95(half, full) == surface_hd95(np.pad(half, 2), np.pad(full, 2)) == 3


@pytest.mark.parametrize(("pixels", "wanted"), [(13, 1.0), (14, 0.0)])
def test_surfaces_in_two_dimensions(pixels, wanted):
    """The end of a line of pixels has 2 corners of sqrt(1/2), and between two pixels lie 2 pieces of 1 mm."""
    end = 2 * np.sqrt(1 / 2)
    assert (end / (2 * end + (pixels - 1) * 2) > 0.05) == (wanted > 0)
    pred, label = np.zeros((2, 20, 5), bool)
    label[2 : 2 + pixels, 2] = pred[3 : 2 + pixels, 2] = True
    assert surface_hd95(pred, label) == wanted


@pytest.mark.parametrize("spacing", SPACINGS)
def test_surface_hd95_of_random_regions_is_that_of_monais_surfaces(spacing):
    """MONAI's surfaces are those of DeepMind's package surface-distance, by which the challenge scores."""
    for seed in range(6):
        pred, label = (torch.as_tensor(blob(s)) for s in (seed, seed + 100))
        edges, distances, areas = get_edge_surface_distance(
            pred, label, spacing=spacing, use_subvoxels=True, symmetric=True
        )
        directed = []
        for edge, nearest, area in zip(edges, distances, areas, strict=True):
            order = nearest.argsort()
            within = area[edge][order].double().cumsum(0)
            directed.append(float(nearest[order][within >= 0.95 * within[-1]][0]))
        assert surface_hd95(pred, label, spacing) == pytest.approx(max(directed), rel=1e-5)
