# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Label maps come back in the grid of the images, whatever the order of axes, voxel size, angle or type of voxels.

The network of these runs has a known answer (``tiny.ShiftedThresholds``). It moves what it finds by some voxels of its
own grid, to the left, to the front and up. So the answer is right only if the network saw the head in the orientation
and in the scale of BraTS.
"""

import itertools
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import itk
import nibabel as nib
import numpy as np
import pytest
import torch
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from tiny import ShiftedThresholds
from workflows import bundle_run, voxels

# Lesions in mm: the radii of WT, TC and ET around one center, which lies off the middle of the brain.
CENTER = np.array([9.0, -7.0, 4.0])
RADII = {2: 15.0, 1: 12.0, 4: 8.0}
BRAIN_RADII = np.array([30.0, 36.0, 27.0])
BRIGHT = {"t1": (), "t2": (1, 4), "t1ce": (4,), "flair": (1, 2, 4)}
OBLIQUE = nib.eulerangles.euler2mat(0.3, 0.2, -0.4)


@dataclass(frozen=True)
class Grid:
    """A grid, whose middle is at the middle of the brain.

    Attributes:
        name: name of the case.
        shape: numbers of voxels.
        spacing: sizes of a voxel in mm.
        axes: the directions of the axes, for ``as_reoriented``.
        rotation: turns the axes.
        dtype: type of the images' voxels.
    """

    name: str
    shape: tuple[int, int, int] = (72, 84, 66)
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
    axes: str = "LPS"
    rotation: np.ndarray | None = None
    dtype: type = np.int16

    @property
    def lps(self) -> np.ndarray:
        """Affine before the axes are put into their order."""
        matrix = np.diag([-1.0, -1.0, 1.0]) @ np.diag(self.spacing)
        matrix = matrix if self.rotation is None else self.rotation @ matrix
        return nib.affines.from_matvec(matrix, -matrix @ ((np.array(self.shape) - 1) / 2))

    def labels(self, moved: bool = False) -> np.ndarray:
        """The label map before the axes are put into their order; ``moved`` as the network moves it."""
        axes = self.lps[:3, :3] / np.linalg.norm(self.lps[:3, :3], axis=0)
        center = CENTER + (axes @ ShiftedThresholds.SHIFT if moved else 0)
        distance = np.linalg.norm(self.places() - center, axis=-1)
        found = np.zeros(self.shape, np.uint8)
        for value, radius in RADII.items():
            found[distance <= radius] = value
        return found

    def places(self) -> np.ndarray:
        """Place of each voxel in mm, (*shape, 3)."""
        return nib.affines.apply_affine(self.lps, np.stack(np.indices(self.shape), axis=-1))

    def in_order(self, values: np.ndarray) -> nib.Nifti1Image:
        """An image of this grid."""
        image = nib.Nifti1Image(values, self.lps)
        return image.as_reoriented(ornt_transform(io_orientation(self.lps), axcodes2ornt(self.axes)))

    def write(self, root: Path) -> None:
        """Write the case's four images."""
        brain = (np.abs(self.places() / BRAIN_RADII) ** 2).sum(axis=-1) <= 1
        labels = self.labels()
        old = not self.name.startswith("BraTS-")
        names = {"t1": "t1n", "t2": "t2w", "t1ce": "t1c", "flair": "t2f"}
        (root / self.name).mkdir(parents=True)
        for sequence, bright in BRIGHT.items():
            noise = np.random.default_rng(list(f"{self.name}_{sequence}".encode())).uniform(290, 310, self.shape)
            values = np.where(brain, noise + 400 * np.isin(labels, bright), 0).astype(self.dtype)
            suffix = f"_{sequence}" if old else f"-{names[sequence]}"
            nib.save(self.in_order(values), root / self.name / f"{self.name}{suffix}.nii.gz")


THICK: dict[str, Any] = {"shape": (72, 84, 22), "spacing": (1.0, 1.0, 3.0)}
GRIDS = [
    *(Grid(f"BraTS2021_0001{number}", axes=axes) for number, axes in enumerate(("LPS", "PIR", "RAS", "SLA", "LAS"))),
    # The grid and the type of BraTS 2025. The directions of its axes are RAS here.
    Grid("BraTS-GLI-00009-000", shape=(182, 218, 182), axes="RAS", dtype=np.float32),
    Grid("BraTS2021_00015", shape=(90, 96, 80), rotation=OBLIQUE),
    Grid("BraTS2021_00016", **THICK),
    Grid("BraTS2021_00017", **THICK, axes="PIR"),
    Grid("BraTS2021_00018", shape=(100, 88, 42), spacing=(0.9, 1.1, 2.0), rotation=OBLIQUE, axes="ASR"),
    # Its ET has 2.1 ml, which are fewer voxels than the 300 mm^3 of the post-processing.
    Grid("BraTS2021_00019", shape=(36, 42, 22), spacing=(2.0, 2.0, 3.0)),
]
# Here the network moves the lesions by whole voxels, and every third of its slices is one of the thick ones.
EXACT = [grid for grid in GRIDS if grid.spacing in ((1, 1, 1), (1, 1, 3))]
OTHERS = [grid for grid in GRIDS if grid not in EXACT]


def segmented(root: Path, cases: Sequence[Any], window: int) -> tuple[Path, Path]:
    """Write cases and segment them; return their folder and that of their label maps."""
    for case in cases:
        case.write(root / "cases")
    torch.save(ShiftedThresholds().state_dict(), root / "model.pt")
    bundle_run(
        "inference.json",
        dataset_dir=str(root / "cases"),
        output_dir=str(root / "maps"),
        model_file=str(root / "model.pt"),
        network_def={"_target_": "tiny.ShiftedThresholds"},
        roi_size=[window] * 3,
        num_workers=0,
    )
    return root / "cases", root / "maps"


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    """The folder of the cases and the folder of the label maps that inference made of them."""
    return segmented(tmp_path_factory.mktemp("grids"), GRIDS, 96)


def dice(first: np.ndarray, second: np.ndarray) -> float:
    return float(2 * (first & second).sum() / (first.sum() + second.sum()))


@pytest.mark.slow
@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: grid.name)
def test_the_label_map_has_the_shape_and_the_affine_of_the_images(folders, grid):
    cases, maps = folders
    result = nib.load(maps / f"{grid.name}.nii.gz")
    for file in (cases / grid.name).iterdir():
        image = nib.load(file)
        assert result.shape == image.shape
        np.testing.assert_array_equal(result.affine, image.affine)
    assert result.get_data_dtype() == np.uint8


@pytest.mark.slow
@pytest.mark.parametrize("grid", EXACT, ids=lambda grid: grid.name)
def test_every_voxel_is_the_known_answer(folders, grid):
    found = voxels(folders[1] / f"{grid.name}.nii.gz")
    np.testing.assert_array_equal(found, np.asanyarray(grid.in_order(grid.labels(moved=True)).dataobj))
    assert set(np.unique(found)) == {0, 1, 2, 4}


@pytest.mark.parametrize("grid", OTHERS, ids=lambda grid: grid.name)
def test_resampled_and_back_the_label_map_is_close_to_the_known_answer(folders, grid):
    """The surface of a region is off by a quarter of the longest edge of a voxel at most, on average.

    A surface that is off by d on average spoils a volume of d times its area. Of a ball that is the share 3 d / r, and
    the Dice is lower than 1 by half of this share.
    """
    found = voxels(folders[1] / f"{grid.name}.nii.gz")
    wanted = np.asanyarray(grid.in_order(grid.labels(moved=True)).dataobj)
    off = max(grid.spacing) / 4
    for region, radius in (((4,), RADII[4]), ((1, 4), RADII[1]), ((1, 2, 4), RADII[2])):
        score = dice(np.isin(found, region), np.isin(wanted, region))
        # 0.91, 0.94 and 0.95 are asked for; 0.96, 0.97 and 0.97 were measured.
        assert score >= 1 - 3 * off / radius / 2


# Headers. A small head in files whose headers say in several ways where it lies.

KINDS = ("sform", "qform", "neither", "different", "fourth", "negative", "nifti2", "micron", "meter", "pixdim")
AXES = ("LPS", "PIR", "RAS", "SLA", "LAS")
SIZES = ((1.0, 1.0, 1.0), (1.0, 1.0, 1.5), (0.9, 1.3, 1.1))
HEAD = np.array([20.0, 22.0, 19.0])
TUMOR = {2: 14.0, 1: 12.5, 4: 11.0}
MIDDLE = np.array([1.0, -1.0, 1.0])
ITK_TO_NIBABEL = np.diag([-1.0, -1.0, 1.0, 1.0])


def at_byte(path: Path, offset: int, form: str, *values: float) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(struct.pack(form, *values))


@dataclass(frozen=True)
class Headed:
    """A case whose header is of a kind, with axes in some directions and voxels of some size."""

    kind: str
    axes: str
    spacing: tuple[float, float, float]

    @property
    def name(self) -> str:
        return f"{self.kind}_{self.axes}_{SIZES.index(self.spacing)}"

    def plain(self, labels: bool) -> nib.Nifti1Image:
        """The labels, or the distances from the middle of the head as a share of its radii, in an ordinary image."""
        shape = np.ceil((2 * HEAD + 3) / self.spacing).astype(int)
        lps = np.diag([-1.0, -1.0, 1.0]) @ np.diag(self.spacing)
        affine = nib.affines.from_matvec(lps, np.array([5.0, -8.0, 11.0]) - lps @ ((shape - 1) / 2))
        places = (np.stack(np.indices(shape), axis=-1) - (shape - 1) / 2) @ lps.T
        values = np.linalg.norm(places / HEAD, axis=-1)
        if labels:
            values = ball(np.linalg.norm(places - MIDDLE, axis=-1))
        turn = ornt_transform(io_orientation(affine), axcodes2ornt(self.axes))
        return nib.Nifti1Image(values.astype(np.float32), affine).as_reoriented(turn)

    def write(self, root: Path) -> None:
        distance, labels = self.plain(labels=False), np.asanyarray(self.plain(labels=True).dataobj)
        (root / self.name).mkdir(parents=True)
        for sequence, bright in BRIGHT.items():
            noise = np.random.default_rng(list(f"{self.name}_{sequence}".encode()))
            values = noise.integers(290, 311, labels.shape) + 400 * np.isin(labels, bright)
            values = np.where(np.asanyarray(distance.dataobj) <= 1, values, 0).astype(np.int16)
            self.save(values, distance.affine, root / self.name / f"{self.name}_{sequence}.nii")

    def save(self, values: np.ndarray, affine: np.ndarray, path: Path) -> None:
        factor = {"micron": 1000, "meter": 0.001}.get(self.kind, 1)
        affine = np.diag([factor, factor, factor, 1]) @ affine
        if self.kind == "pixdim":
            affine[:3, :3] *= 1.0001
        image = (nib.Nifti2Image if self.kind == "nifti2" else nib.Nifti1Image)(
            values[..., None] if self.kind == "fourth" else values, affine
        )
        image.header.set_xyzt_units({1000: "micron", 0.001: "meter"}.get(factor, "mm"))
        moved = affine.copy()
        moved[:3, 3] += 30
        image.set_sform(affine, 0 if self.kind in ("qform", "neither") else 4)
        image.set_qform(moved if self.kind == "different" else affine, 0 if self.kind in ("sform", "neither") else 1)
        nib.save(image, path)
        if self.kind == "negative":
            at_byte(path, 80, "<3f", *-np.array(self.spacing))
        if self.kind == "pixdim":
            at_byte(path, 76, "<4f", 1, *self.spacing)
            at_byte(path, 252, "<h", 0)
            at_byte(path, 256, "<6f", *[0] * 6)

    def answer(self, affine: np.ndarray) -> np.ndarray:
        """The label map that the network finds, given where the header puts the voxels (mm)."""
        labels = self.plain(labels=True)
        own = nib.affines.voxel_sizes(labels.affine)
        middle = np.linalg.inv(labels.affine) @ [*(np.array([5.0, -8.0, 11.0]) + MIDDLE), 1]
        shift = np.zeros(3)
        for axis, (along, way) in enumerate(io_orientation(affine)):
            shift[axis] = ShiftedThresholds.SHIFT[int(along)] * way * (1 if along == 2 else -1)
        places = (np.stack(np.indices(labels.shape), axis=-1) - middle[:3]) * own - shift
        return ball(np.linalg.norm(places, axis=-1))


def ball(distance: np.ndarray) -> np.ndarray:
    found = np.zeros(distance.shape, np.uint8)
    for value, radius in TUMOR.items():
        found[distance <= radius] = value
    return found


def by_itk(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The voxels of a file and its affine, in nibabel's convention, as ITK reads them."""
    image = itk.imread(str(path))
    axes = itk.array_from_matrix(image.GetDirection())[:3, :3] * np.array(image.GetSpacing())[:3]
    affine = nib.affines.from_matvec(axes, np.array(image.GetOrigin())[:3])
    return itk.array_from_image(image).T, ITK_TO_NIBABEL @ affine


HEADED = [Headed(*values) for values in itertools.product(KINDS, AXES, SIZES)]


@pytest.fixture(scope="module")
def headed(tmp_path_factory) -> tuple[Path, Path]:
    """The folder of the cases with odd headers and the folder of their label maps."""
    return segmented(tmp_path_factory.mktemp("headers"), HEADED, 48)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_whatever_the_header_the_label_map_lies_where_the_scan_lies(headed, kind):
    for case in [case for case in HEADED if case.kind == kind]:
        file = headed[0] / case.name / f"{case.name}_t1.nii"
        image, made = nib.load(file), nib.load(headed[1] / f"{case.name}.nii.gz")
        voxels_found, place = by_itk(headed[1] / f"{case.name}.nii.gz")
        # nibabel takes the numbers of the header as they are.
        np.testing.assert_allclose(made.affine, image.affine, rtol=1e-6)
        assert made.header.get_xyzt_units()[0] == image.header.get_xyzt_units()[0]
        unit = {"micron": 0.001, "meter": 1000}.get(kind, 1)
        affine = np.diag([unit, unit, unit, 1]) @ image.affine
        # Without a form ITK begins at 0, where it finds the images, too.
        wanted = by_itk(file)[1] if kind == "neither" else affine
        np.testing.assert_allclose(place, wanted, atol=1e-4)
        found = np.asanyarray(made.dataobj)
        assert found.shape == image.shape[:3]
        np.testing.assert_array_equal(voxels_found, found)
        answer = case.answer(affine)
        for region in ((4,), (1, 4), (1, 2, 4)):
            score = dice(np.isin(found, region), np.isin(answer, region))
            assert score > (0.99 if case.spacing == SIZES[0] else 0.95), (case.name, region, score)
