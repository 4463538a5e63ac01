# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Running the bundle's workflows at test size (tiny widths, few iterations), and reading what they leave."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import monai
import nibabel as nib
import numpy as np

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "configs"
CHANNELS = [4, 4, 8, 8, 8]
# At 4 mm a brain is about 36 x 44 x 33 voxels: one window.
SIZE = {"network_def#channels": CHANNELS, "spacing": [4.0, 4.0, 4.0], "roi_size": [48, 48, 48], "num_workers": 0}
TRAINING_SIZE = {**SIZE, "patch_size": [32, 32, 32], "max_epochs": 3, "val_interval": 2, "warmup_epochs": 1}


def files(*names: str) -> list[str]:
    return [str(CONFIGS / name) for name in names]


def bundle_run(*names: str, **override) -> None:
    override.setdefault("bundle_root", str(ROOT))
    monai.bundle.run(config_file=files(*names), logging_file=False, **override)


def command(module: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def voxels(path: Path) -> np.ndarray:
    return np.asanyarray(nib.load(path).dataobj)


def rows(path: Path) -> dict[str, dict[str, str]]:
    with path.open(newline="") as file:
        return {next(iter(row.values())): row for row in csv.DictReader(file)}


def models() -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (ROOT / "models").iterdir()}
