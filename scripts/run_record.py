# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""What was run: the resolved configuration, the versions, the cohort, written beside a run's results."""

from __future__ import annotations

import inspect
import platform
from collections.abc import Mapping
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser
from scripts.files import read_json, save_json

RECORD_FILE = "run.json"
CONFIG_FILE = "config.json"
PACKAGES = ("torch", "monai", "pytorch-ignite", "numpy", "nibabel", "scipy")


def running_parser() -> ConfigParser | None:
    """The parser of the configuration that is being evaluated right now; None outside a bundle's run.

    A configuration has no name for itself, so MONAI's parser is taken from the calling frames.
    """
    frame = inspect.currentframe()
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, ConfigParser):
            return owner
        frame = frame.f_back
    return None


def running_config() -> dict[str, Any] | None:
    """The configuration that is being evaluated right now, overrides included; None outside a bundle's run."""
    parser = running_parser()
    if parser is None:
        return None
    return {key: value for key, value in parser.get().items() if key != ConfigParser.meta_key}


def bundle_version() -> str:
    """Version of this bundle, by its metadata.json; "unknown" where only the code was copied."""
    return str(read_json(Path(__file__).parent.parent / "configs" / "metadata.json").get("version", "unknown"))


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found


def read_record(folder: str | Path) -> dict[str, Any]:
    """What ``write_record`` noted in this folder; empty where it did not.

    Raises:
        InputError: the file is there, but no record.
    """
    return read_json(Path(folder) / RECORD_FILE)


def write_record(output_dir: str | Path, phantoms: bool, **facts: Any) -> None:
    """Write ``config.json`` and ``run.json`` into ``output_dir``.

    Args:
        output_dir: folder of the run.
        phantoms: whether synthetic phantoms are among the data.
        facts: what else to note.
    """
    config = running_config()
    if config is not None:
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
