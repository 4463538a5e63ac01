# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""A small evaluation whose volumes and scores are known."""

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
from scripts.data.datalist import labeled_items
from scripts.data.datalist_file import write_datalist

SIZE = (24, 20, 16)
# The brain's box. Outside of it there is 0.
BRAIN = (slice(2, 22), slice(2, 18), slice(1, 15))
# In LPS order, as in BraTS files: indices run to the left, to the back and up.
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
DICE = {"worst": (0.1, 0.2, 0.3), "best": (0.9, 0.95, 1.0), "middle": (0.5, 0.6, 0.7)}


def known_images() -> dict[str, np.ndarray]:
    """FLAIR grows from slice to slice, T2 is bright on the patient's left, and the others are noise."""
    generator = np.random.default_rng(0)
    images = {name: np.zeros(SIZE, np.int16) for name in ("t1", "t2", "t1ce", "flair")}
    z = np.arange(SIZE[2])
    images["flair"][BRAIN] = np.broadcast_to(100 + 50 * z, SIZE)[BRAIN]
    left = np.arange(SIZE[0])[:, None, None] >= 12
    images["t2"][BRAIN] = np.broadcast_to(np.where(left, 1000, 200), SIZE)[BRAIN]
    for name in ("t1", "t1ce"):
        images[name][BRAIN] = generator.integers(1, 1000, images[name][BRAIN].shape)
    return images


def known_labels() -> np.ndarray:
    """Edema around a core with an enhancing rim on one side. The slices with most tumor are 8, 9 and 7."""
    labels = np.zeros(SIZE, np.uint8)
    labels[6:12, 7:12, 5:9] = 2
    labels[8, 6, 7] = labels[12, 9, 7] = 2
    labels[7:10, 8:11, 6:8] = 1
    labels[7, 8:11, 6] = 4
    return labels


def write_case(folder: Path, name: str, affine: np.ndarray = LPS) -> None:
    """The known case in a folder of BraTS 2020, in the axes of ``affine``."""
    (folder / name).mkdir(parents=True)
    target = nib.orientations.io_orientation(affine)
    for sequence, voxels in {**known_images(), "seg": known_labels()}.items():
        image = nib.Nifti1Image(voxels, LPS)
        turn = nib.orientations.ornt_transform(nib.orientations.io_orientation(LPS), target)
        nib.save(image.as_reoriented(turn), folder / name / f"{name}_{sequence}.nii.gz")


def write_csv(path: Path, lines: list[list]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(lines)


def write_evaluation(folder: Path, data: Path, dice: dict[str, tuple[float, float, float]] = DICE) -> Path:
    """What an evaluation of cases in ``data`` leaves. The predictions are the references without edema."""
    folder.mkdir(parents=True)
    record = {
        "started": "2026-01-01T00:00:00+00:00",
        "command": "python -m monai.bundle run --dataset_dir 'the data'",
        "bundle_version": "0.3.0",
        "phantoms": True,
        "versions": {"python": "3.11.7"},
        "model_file": "model.pt",
        "cases": len(dice),
        "dataset_dir": str(data),
    }
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "config.json").write_text(json.dumps({"evaluation_dir": "output_dir", "learning_rate": 0.125}))
    columns = [f"{m}_{r}" for m in ("dice", "hd95", "volume", "reference_volume") for r in ("ET", "TC", "WT")]
    rows = [[name, *scores, 1, 2, 3, 3, 18, 18, 3, 18, 122] for name, scores in dice.items()]
    write_csv(folder / "scores.csv", [["case", *columns], *rows])
    write_csv(folder / "summary.csv", [["statistic", *columns], ["mean", *np.mean([r[1:] for r in rows], axis=0)]])
    write_datalist({"validation": labeled_items(data)}, data, folder / "datalist.json")
    for name in dice:
        labels = known_labels()
        labels[labels == 2] = 0
        nib.save(nib.Nifti1Image(labels, LPS), folder / f"{name}.nii.gz")
    return folder
