# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""``run.json``: what a run did, beside its results and its resolved configuration (``config.json``)."""

import platform
import re
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from scripts.utils.files import CONFIGS, read_json, save_json

RUN_FILE = "run.json"
CONFIG_FILE = "config.json"
RECORDED_PACKAGES = ("torch", "monai", "pytorch-ignite", "numpy", "nibabel", "scipy")

# Names of options whose values nobody should read. The bundle has no such option, but a caller's program may.
_SECRET = re.compile(r"token|password|passwd|secret|credential|api_?key", re.IGNORECASE)


def bundle_version() -> str:
    """Version of this bundle from its metadata.json; "unknown" if only the code was copied."""
    return str(read_json(CONFIGS / "metadata.json").get("version", "unknown"))


def versions(packages: Iterable[str] = RECORDED_PACKAGES) -> dict[str, str]:
    """Versions of Python and of packages, by default those that results depend on."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found


def without_secrets(text: str) -> str:
    """``text`` with stars in place of the name and the password that an address in it may hold."""
    return re.sub(r"(\w://)[^/@\s'\"]+@", r"\1***@", text)


def command_line(arguments: Sequence[str] | None = None) -> str:
    """The command that started this process, or that of ``arguments``, for a shell. Secrets in it become stars.

    Example:
        >>> command_line(["/usr/bin/python3", "-m", "monai.bundle", "run", "--output_dir", "my run", "--token", "abc"])
        "python -m monai.bundle run --output_dir 'my run' --token '***'"
        >>> print(command_line(["python3", "run.py", "--config_file", "['train.json','evaluate.json']"]))
        python run.py --config_file "['train.json','evaluate.json']"
    """
    own = list(sys.orig_argv if arguments is None else arguments)[1:]
    for index, argument in enumerate(own):
        name, equals, _ = argument.partition("=")
        if argument.startswith("-") and _SECRET.search(name):
            if equals:
                own[index] = f"{name}=***"
            elif index + 1 < len(own):
                own[index + 1] = "***"
    return without_secrets(" ".join(["python", *map(_quoted, own)]))


def _quoted(argument: str) -> str:
    # shlex would break single quotes up. Within double quotes a shell replaces "!", which cannot be escaped there.
    if "'" not in argument or "!" in argument:
        return shlex.quote(argument)
    escaped = re.sub(r'([\\"$`])', r"\\\1", argument)
    return f'"{escaped}"'


def read_run_json(folder: str | Path) -> dict[str, Any]:
    """The content of ``run.json`` in ``folder``, as of ``read_json``."""
    return read_json(Path(folder) / RUN_FILE)


def write_run_json(output_dir: str | Path, config: Mapping[str, Any], phantoms: bool, **facts: Any) -> None:
    """Write ``config.json`` and ``run.json`` into ``output_dir``.

    Args:
        config: content of the configuration that is run. If it is empty, no ``config.json`` is written.
        phantoms: whether synthetic phantoms are among the data.
        facts: other entries of ``run.json``.
    """
    if config:
        save_json(config, Path(output_dir) / CONFIG_FILE)
    record = {
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": command_line(),
        "bundle_version": bundle_version(),
        "phantoms": phantoms,
        "versions": versions(),
        **facts,
    }
    save_json(record, Path(output_dir) / RUN_FILE)
