# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The record of a run, beside its results: the resolved configuration, the versions and the cohort."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from scripts.files import CONFIGS, read_json, save_json

RECORD_FILE = "run.json"
CONFIG_FILE = "config.json"
RECORDED_PACKAGES = ("torch", "monai", "pytorch-ignite", "numpy", "nibabel", "scipy")


def bundle_version() -> str:
    """Version of this bundle from its metadata.json; "unknown" if only the code was copied."""
    return str(read_json(CONFIGS / "metadata.json").get("version", "unknown"))


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for package in RECORDED_PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found


def read_record(folder: str | Path) -> dict[str, Any]:
    """The content of ``run.json`` in ``folder``, which ``write_record`` has written; empty if there is no file.

    Raises:
        InputError: the file exists but is not a record.
    """
    return read_json(Path(folder) / RECORD_FILE)


def write_record(output_dir: str | Path, config: Mapping[str, Any], phantoms: bool, **facts: Any) -> None:
    """Write ``config.json`` and ``run.json`` into ``output_dir``.

    Args:
        output_dir: folder of the run.
        config: content of the configuration that is run. If it is empty, no ``config.json`` is written.
        phantoms: whether synthetic phantoms are among the data.
        facts: other entries of ``run.json``.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_record(folder, {"batch_size": 2}, phantoms=True, cases=8)
        ...     sorted(read_record(folder))
        ['bundle_version', 'cases', 'phantoms', 'started', 'versions']
    """
    if config:
        save_json(config, Path(output_dir) / CONFIG_FILE)
    started = datetime.now().astimezone().isoformat(timespec="seconds")
    record: Mapping[str, Any] = {
        "started": started,
        "bundle_version": bundle_version(),
        "phantoms": phantoms,
        "versions": versions(),
        **facts,
    }
    save_json(record, Path(output_dir) / RECORD_FILE)
