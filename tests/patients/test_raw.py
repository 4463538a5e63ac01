# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Raw scans get their label map in a grid of their own, with all that a segmentation gives."""

import json
from functools import partial
from pathlib import Path

import jsonschema
import nibabel as nib
import numpy as np
import pytest
from conftest import shared_data
from dicom_series import write_case
from raw_phantoms import made, raw, true_brain
from scripts.brats import EDEMA_LABEL, REFERENCE
from scripts.lab.phantoms.cohort import AFFINE
from scripts.lab.phantoms.raw import SPACING, raw_phantom, save_raw
from scripts.patients import raw as preparing
from scripts.patients import segmentation
from scripts.patients.options import Options
from scripts.patients.raw import raw_items, scans_of
from scripts.patients.segmentation import segment
from scripts.preparation.grids import Volume, resample
from scripts.preparation.native import read_native_grid
from scripts.preparation.preparing import prepare_scans
from scripts.preparation.registration import coarse, rigid
from scripts.utils.errors import InputError
from scripts.utils.files import BUNDLE_ROOT
from workflows import voxels

SCHEMA = json.loads((BUNDLE_ROOT / "docs" / "segmentation_schema.json").read_text())
POSE = {"degrees": 15, "mm": 20}


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return 2 * float((one & other).sum()) / float(one.sum() + other.sum())


@pytest.mark.lab
def test_a_study_of_raw_series_is_segmented_in_the_grid_of_a_scan(tmp_path, training, monkeypatch):
    pytest.importorskip("picsl_greedy")
    phantom = raw(0, **POSE)
    series = {name: nib.Nifti1Image(scan.voxels.astype(np.uint16), scan.affine) for name, scan in phantom.scans.items()}
    study = write_case(tmp_path / "ann", {name: series[name] for name in (REFERENCE, "flair", "t1", "t2")})
    monkeypatch.setattr(segmentation, "openvino_is_installed", lambda: False)
    calls = []

    def prepare(*arguments):
        calls.append(arguments)
        return partial(prepare_scans, find_brain=true_brain(phantom))(*arguments)

    monkeypatch.setattr(preparing, "prepare_scans", prepare)
    options = Options(model=training / "model.pt", device="cpu", prepare=True, probabilities=True, pictures=False)
    with pytest.raises(InputError, match=r"co-register .* or let panet prepare do it"):
        segment([study], tmp_path / "out", options=Options(model=training / "model.pt", device="cpu"))
    (result,) = segment([study], tmp_path / "out", options=options)
    jsonschema.validate(result, SCHEMA)
    assert result["preparation"]["grid_of"] == REFERENCE and len(result["preparation"]["scans"]) == 4
    assert {"moved head"} <= {warning["kind"] for warning in result["warnings"]}
    label_map = nib.load(result["label_map"])
    grid = read_native_grid(result["preparation"]["record"], REFERENCE)
    assert label_map.shape == grid.shape == phantom.scans[REFERENCE].voxels.shape
    np.testing.assert_allclose(label_map.affine, grid.affine, atol=1e-4)
    # The probabilities lie there, too, and the label map is made of them.
    whole = voxels(tmp_path / "out" / "ann" / "ann_prob_whole.nii.gz")
    edema = np.asanyarray(label_map.dataobj) == EDEMA_LABEL
    assert whole.shape == edema.shape and 0 < whole.max() <= 1 and (whole[edema] >= 0.5).all()
    # Again: nothing is prepared a second time, and another grid needs another folder.
    assert segment([study], tmp_path / "out", options=options) == [result] and len(calls) == 1
    with pytest.raises(InputError, match="holds an earlier run with other settings"):
        segment([study], tmp_path / "out", options=Options(**{**vars(options), "native": "flair"}))


@pytest.mark.lab
def test_a_phantom_of_thin_slices_is_segmented_as_its_prepared_form(tmp_path):
    """Slices of 4 to 5.5 mm blur what the prepared form shows; this is about the preparation alone."""
    pytest.importorskip("picsl_greedy")
    images, label = made()
    thin = {name: (x, y, min(z, 2.5)) for name, (x, y, z) in SPACING.items()}
    phantom = raw_phantom(images, label, AFFINE, np.random.default_rng(1), spacing=thin)
    save_raw(phantom, tmp_path / "raw" / "ann")
    (tmp_path / "prepared" / "ann").mkdir(parents=True)
    for name, image in images.items():
        nib.save(Volume(image, AFFINE).as_image(), tmp_path / "prepared" / "ann" / f"ann_{name}.nii.gz")
    found = {}
    for form in ("raw", "prepared"):
        options = Options(prepare=form == "raw", pictures=False)
        (result,) = segment([tmp_path / form / "ann"], tmp_path / "out" / form, options=options)
        found[form] = voxels(Path(result["label_map"])) > 0
    grid = phantom.label
    own = Volume(found["prepared"].astype(np.float32), AFFINE)
    brought = resample(own, grid.affine, grid.voxels.shape, phantom.to_prepared).voxels >= 0.5
    assert dice(found["raw"], brought) >= 0.93


@pytest.mark.lab
@pytest.mark.parametrize(
    ("case", "prepared_form"),
    [("TCGA-FG-6692", {"WT": 0.875, "TC": 0.868, "ET": 0.92}), ("TCGA-DU-7294", {"WT": 0.926})],
)
def test_real_scans_as_acquired_are_segmented_as_well_as_their_prepared_form(case, prepared_form, tmp_path):
    """The reference is the silver label, brought to T1ce. Registration differs from run to run by 0.01 of Dice."""
    pytest.importorskip("picsl_greedy")
    folder = shared_data() / "raw" / case
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here")
    (result,) = segment([folder], tmp_path, options=Options(prepare=True))
    (item,) = raw_items([folder])
    scan, brain = nib.load(scans_of(item)[REFERENCE]), nib.load(tmp_path / case / "prepared" / f"{case}_brain.nii.gz")
    there, inside = Volume(np.asarray(scan.dataobj, np.float32), scan.affine), np.asarray(brain.dataobj) > 0
    official = shared_data() / case
    prepared = nib.load(official / f"{case}_t1ce.nii.gz")
    own = Volume(np.asarray(prepared.dataobj, np.float32), prepared.affine)
    start = read_native_grid(result["preparation"]["record"], REFERENCE).to_prepared
    small = coarse(there)
    mask = resample(there.like(inside.astype(np.float32)), small.affine, small.voxels.shape).voxels > 0.5
    matrix = rigid(small.like(np.where(mask, small.voxels, 0)), coarse(own), start)

    def brought(mask: np.ndarray) -> np.ndarray:
        return resample(own.like(mask.astype(np.float32)), there.affine, inside.shape, matrix).voxels >= 0.5

    silver, found = voxels(official / f"{case}_seg.nii.gz"), voxels(Path(result["label_map"]))
    regions = {"WT": (1, 2, 4), "TC": (1, 4), "ET": (4,)}
    reached = {
        region: dice(np.isin(found, regions[region]), brought(np.isin(silver, regions[region])))
        for region in prepared_form
    }
    assert all(reached[region] >= score - 0.06 for region, score in prepared_form.items()), reached
    expected = result["expected_dice"]["WT"]
    assert expected["low"] <= reached["WT"] <= expected["high"]
    assert dice(inside, brought(own.voxels != 0)) >= 0.96
    tumor = brought(silver > 0)
    assert (tumor & inside).sum() >= 0.99 * tumor.sum()
    picture = tmp_path / case / "prepared" / "prepared.png"
    assert picture.stat().st_size > 100_000
