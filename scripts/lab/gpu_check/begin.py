# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Check that all packages are there, that the device computes, and that loader processes hand over their samples."""

import importlib
import shutil
from collections.abc import Sequence

import torch
from scripts import command
from scripts.lab.benchmark.measure import device_name
from scripts.utils.errors import InputError
from torch.utils.data import DataLoader

# What the steps import; `make gpu-wheels` brings what a Python with PyTorch usually lacks.
MODULES: tuple[str, ...] = (
    "monai.bundle",
    "ignite",
    "nibabel",
    "scipy.ndimage",
    "fire",
    "jsonschema",
    "tensorboard",
    "rich",
    "yaml",
    "matplotlib",
    "pytest",
)
# Four workers, two samples ahead each, of 128^3 voxels in four channels of float32 and four of labels.
SHARED_GB = 0.4


def main(argv: Sequence[str] | None = None) -> int:
    """Check everything, or raise an InputError."""
    parser = command.parser("lab.gpu_check.begin", __doc__)
    parser.add_argument("--device", type=device_name, default="cuda")
    args = parser.parse_args(argv)
    for name in MODULES:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise InputError(f"{name}: cannot be imported ({error}); bring it with `make gpu-wheels`.") from error
    x = torch.randn(256, 256, dtype=torch.float64)
    found = (x.to(args.device) @ x.to(args.device)).cpu()
    if not torch.allclose(found, x @ x):
        raise InputError(f"{args.device}: a matrix product is wrong there; try another machine.")
    free = shutil.disk_usage("/dev/shm").free / 1e9
    if free < SHARED_GB:
        raise InputError(f"/dev/shm: {free:.2f} GB are free, and loader processes need {SHARED_GB}; make it larger.")
    patches = [torch.full((4, 64, 64, 64), float(number)) for number in range(4)]
    loaded = [batch.mean().item() for batch in DataLoader(patches, num_workers=2)]  # type: ignore[arg-type]
    if loaded != [0.0, 1.0, 2.0, 3.0]:
        raise InputError(f"/dev/shm: loader processes handed over {loaded}; try --num_workers 0.")
    print(f"{len(MODULES)} packages, {args.device} and loader processes work; {free:.1f} GB are free in /dev/shm")
    return 0


if __name__ == "__main__":
    command.run(main)
