# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""An imported checkpoint through the authors' whole testing path, voxel for voxel against their program's label map."""

import os
import shlex
from pathlib import Path

import numpy as np
import pytest
from workflows import ROOT, command, voxels

GOLDEN = Path(__file__).parent.parent / "golden"
CASE = "TCGA-FG-6692"
# So many voxels may differ by rounding, because their probability is close to the threshold.
DIFFERENT_VOXELS = 200


def shared() -> Path | None:
    folder = os.environ.get("BRATS_PANET_SHARED")
    return Path(folder) if folder and (Path(folder) / "golden" / f"authors_path_{CASE}.nii.gz").is_file() else None


def label_map(case: Path, folder: Path) -> np.ndarray:
    """Return the bundle's label map of ``case`` with the checkpoint, by the command that the import prints."""
    arguments = [str(GOLDEN / "authors_path_checkpoint.pkl"), str(folder / "model.pt")]
    done = command("scripts.import_checkpoint", *arguments, cwd=folder)
    assert done.returncode == 0, done.stderr
    printed = done.stdout.splitlines()[-1].removesuffix("<folder of cases>")
    python, _, module, *options = shlex.split(printed)
    assert python == "python" and "--network_def#channels" in options
    done = command(module, *options, str(case), "--output_dir", str(folder / "maps"), cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "no record" not in done.stderr
    return voxels(folder / "maps" / f"{case.name}.nii.gz")


def compare(found: np.ndarray, wanted: np.ndarray) -> None:
    assert found.shape == wanted.shape == (240, 240, 155)
    assert set(np.unique(wanted)) == {0, 1, 2, 4}
    assert (found != wanted).sum() <= DIFFERENT_VOXELS


@pytest.mark.slow
@pytest.mark.lab
@pytest.mark.skipif(shared() is None, reason="BRATS_PANET_SHARED names no folder with the authors' label map")
def test_a_real_case_comes_out_as_from_the_authors_program(tmp_path):
    folder = shared()
    assert folder is not None
    found = label_map(folder / "data" / CASE, tmp_path)
    compare(found, voxels(folder / "golden" / f"authors_path_{CASE}.nii.gz"))
    # These voxel counts came with the label map.
    wanted = {1: 715_985, 2: 91_675, 4: 702_069}
    assert all(abs(int((found == label).sum()) - count) <= DIFFERENT_VOXELS for label, count in wanted.items())


@pytest.mark.slow
@pytest.mark.lab
@pytest.mark.skipif(shared() is not None, reason="the authors' own label map is here, and compared with")
def test_a_phantom_comes_out_as_it_did_when_the_real_case_did(phantoms, tmp_path):
    case = next(path for path in phantoms.rglob("BraTS20_Training_001") if path.is_dir())
    compare(label_map(case, tmp_path), voxels(GOLDEN / "authors_path_phantom.nii.gz"))
