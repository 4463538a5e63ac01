# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Arguments of ``python -m monai.bundle run``, for commands that start workflows as processes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.utils.files import BUNDLE_ROOT, CONFIGS
from scripts.utils.literals import literal


def config_files(names: Sequence[str]) -> str:
    """The value of MONAI's ``--config_file`` for the bundle's configurations ``names``."""
    return str([str(CONFIGS / name) for name in names])


def workflow_arguments(names: Sequence[str], settings: Mapping[str, Any]) -> list[str]:
    """The arguments after ``python -m`` that run a workflow of the bundle from any folder.

    Args:
        names: names of configurations.
        settings: values by key, which override the values of the configurations. MONAI evaluates texts, not paths.

    Example:
        >>> workflow_arguments(["inference.json"], {"dataset_dir": Path("/data")})[-2:]
        ['--dataset_dir', "$'/data'"]
    """
    given = {"bundle_root": BUNDLE_ROOT, **settings}
    texts = {key: literal(str(value)) if isinstance(value, Path) else str(value) for key, value in given.items()}
    options = [text for key, value in texts.items() for text in (f"--{key}", value)]
    return ["monai.bundle", "run", "--config_file", config_files(names), *options]
