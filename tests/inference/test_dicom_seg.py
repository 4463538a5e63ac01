# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""A DICOM Segmentation object has the same segments for every patient, and what it needs is checked before."""

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from dicom_series import write_case
from scripts.brats import SEQUENCES
from scripts.data.datalist import unlabeled_items
from scripts.inference.dicom_seg import check_source, save_dicom_seg
from scripts.utils.errors import InputError

highdicom = pytest.importorskip("highdicom")
pydicom = pytest.importorskip("pydicom")

SHAPE, AFFINE = (8, 7, 5), np.diag([-1.0, -1.0, 2.0, 1.0])
WEIGHTS = {"file": "/somewhere/starter/model.pt", "checksum": "0123456789abcdef"}
NAMES = ["necrotic and non-enhancing core", "edema", "enhancing tumor"]


@pytest.fixture
def series(tmp_path) -> Path:
    """A file of the first series of a case."""
    rng = np.random.default_rng(0)
    images = {s: nib.Nifti1Image(rng.integers(1, 1000, SHAPE).astype(np.uint16), AFFINE) for s in SEQUENCES}
    folder = write_case(tmp_path / "ann", images)
    change(folder, lambda data: setattr(data, "FrameOfReferenceUID", "1.2.3"))
    return Path(unlabeled_items(folder)[0]["image"][0])


def change(folder: Path, how: Callable) -> None:
    for path in folder.rglob("IM*"):
        data = pydicom.dcmread(path)
        how(data)
        data.save_as(path)


def written(series: Path, labels: np.ndarray, path: Path):
    nib.save(nib.Nifti1Image(labels, AFFINE), path.with_suffix(".nii.gz"))
    save_dicom_seg(path.with_suffix(".nii.gz"), series, 4, path, WEIGHTS)
    return highdicom.seg.segread(path)


@pytest.mark.parametrize("values", [(1, 2, 4), (2,), (1, 4)])
def test_numbers_names_and_colors_do_not_depend_on_what_is_there(series, tmp_path, values):
    labels = np.zeros(SHAPE, np.uint8)
    for value in values:
        labels[value, 2:5, 1:3] = value
    found = written(series, labels, tmp_path / "out.dcm")
    described = [found.get_segment_description(number) for number in (1, 2, 3)]
    assert [one.segment_label for one in described] == NAMES and found.number_of_segments == 3
    assert {one.SegmentDescription for one in described} == {"for research only; weights starter/model.pt 01234567"}
    # Blue, green and orange, as in the pictures.
    colors = [highdicom.color.CIELabColor.from_dicom_value(one.RecommendedDisplayCIELabValue) for one in described]
    for color, expected in zip(colors, ((0, 114, 178), (0, 158, 115), (230, 159, 0)), strict=True):
        assert np.allclose(color.to_rgb(), expected, atol=2)
    assert found.SeriesDescription == "Brain tumor, for research only"
    assert found.ContentDescription == "for research only; weights starter/model.pt 01234567"
    numbers = {1: 1, 2: 2, 4: 3}
    frames = [
        int(frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
        for frame in found.PerFrameFunctionalGroupsSequence
    ]
    assert sorted(set(frames)) == [numbers[value] for value in values]
    for value in values:
        volume = found.get_volume(segment_numbers=[numbers[value]], combine_segments=False)
        assert np.asarray(volume.array).sum() == (labels == value).sum()


@pytest.mark.parametrize("name", ["FrameOfReferenceUID", "SOPInstanceUID"])
def test_what_cannot_be_replaced_is_refused_before_anything_is_segmented(series, name):
    change(series.parent, lambda data: delattr(data, name))
    with pytest.raises(InputError, match=rf"IM\d+: no {name}, without which no DICOM Segmentation object"):
        check_source(series)


def test_what_follows_from_other_elements_may_be_absent(series, tmp_path):
    change(series.parent, lambda data: [delattr(data, name) for name in ("Modality", "SliceThickness")])
    check_source(series)
    found = written(series, np.full(SHAPE, 2, np.uint8), tmp_path / "out.dcm")
    measures = found.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert float(measures.SliceThickness) == 2.0


def test_whatever_highdicom_says_is_one_line(series, monkeypatch):
    def fail(*args, **kwargs):
        raise AttributeError("no such\nelement")

    monkeypatch.setattr(highdicom.seg, "Segmentation", fail)
    with pytest.raises(InputError, match=r"of its series \(no such element\); export the series again, or leave out"):
        check_source(series)
