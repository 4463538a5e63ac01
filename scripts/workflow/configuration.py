# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The configuration that a workflow runs, for what a run checks, compares and writes down."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser
from scripts.errors import InputError

# What MONAI adds for --tracking mlflow.
TRACKING = {"experiment_name", "is_not_rank0", "run_name", "save_execute_config", "tracking_uri"}
MLFLOW = "MLFlowHandler"


class Configuration:
    """A configuration in the hands of MONAI's parser.

    Args:
        parser: holds it; None where a part is used outside a bundle's run.
    """

    def __init__(self, parser: ConfigParser | None = None) -> None:
        self.parser = parser

    @property
    def content(self) -> dict[str, Any]:
        """All keys with their values as given, overrides included; empty outside a bundle's run."""
        if self.parser is None:
            return {}
        return {key: value for key, value in self.parser.get().items() if key != ConfigParser.meta_key}

    def arguments(self, name: str) -> dict[str, Any]:
        """Arguments of the component ``name``, references resolved; empty outside a bundle's run.

        Raises:
            InputError: it is an expression, of which nothing can be read.
        """
        if self.parser is None or (text := self.parser.get(name)) is None:
            return {}
        while isinstance(text, str) and text.startswith("@"):
            name = text[1:]
            text = self.parser.get(name)
        # What a component's own text refers to is known only once it has been made.
        self.parser.ref_resolver.get_resolved_content(name)
        item = self.parser.ref_resolver.get_item(name)
        config = item.get_config() if item is not None else None
        if not isinstance(config, Mapping):
            raise InputError(
                f"--{name} {text}: write it as a component with _target_ and arguments, so that the record of the "
                "weights can name them."
            )
        return dict(config)

    @property
    def brings_own_data(self) -> bool:
        """Whether a caller such as MONAI Label has put a list of its own in place of the cases found by a training."""
        return brings_own_data(self.content)

    @property
    def loaded_by_caller(self) -> str | None:
        """The weights that such a caller starts a training from, by a handler of its own; None without."""
        for handler in self.content["train"]["handlers"] if self.brings_own_data else ():
            file = handler.get("load_path") if isinstance(handler, Mapping) else None
            if isinstance(file, str) and Path(file).is_file():
                return file
        return None


def running_configuration() -> Configuration:
    """The configuration that is being evaluated right now; what ``configuration`` at its top names.

    A configuration has no name for itself, so MONAI's parser is taken from the calling frames, here and nowhere else.
    """
    frame = inspect.currentframe()
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, ConfigParser):
            return Configuration(owner)
        frame = frame.f_back
    return Configuration()


def brings_own_data(config: Mapping[str, Any]) -> bool:
    """Whether, in a configuration's content, a caller's own list stands in place of the cases found by a training."""
    node: Any = config
    for key in ("train", "dataset", "data"):
        node = node.get(key) if isinstance(node, Mapping) else None
    return isinstance(node, list)


def without_tracking(node: Any) -> Any:
    """A configuration's content without what MONAI adds for ``--tracking mlflow``."""
    if isinstance(node, Mapping):
        return {key: without_tracking(value) for key, value in node.items() if key not in TRACKING}
    if isinstance(node, (list, tuple)):
        return [without_tracking(v) for v in node if not (isinstance(v, Mapping) and v.get("_target_") == MLFLOW)]
    return node
