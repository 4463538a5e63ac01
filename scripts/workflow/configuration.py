# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The configuration that a workflow runs."""

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser, ConfigWorkflow
from monai.bundle import run as bundle_run
from monai.bundle.utils import DEFAULT_EXP_MGMT_SETTINGS
from scripts.utils.errors import InputError
from scripts.utils.literals import shown
from scripts.weights.record import Record
from scripts.weights.settings import weights_settings as record_of_settings

# MONAI adds these keys for --tracking mlflow.
TRACKING = {"experiment_name", "is_not_rank0", "run_name", "save_execute_config", "tracking_uri"}
MLFLOW = "MLFlowHandler"


class Configuration:
    """A configuration, as MONAI's parser holds it.

    ``run_id`` is the name by which MONAI runs it (``bundle run training``); empty if it does not run it. ``given`` are
    the arguments of ``bundle run``; None if another program runs it.
    """

    def __init__(self, parser: ConfigParser, run_id: str = "", given: Mapping[str, Any] | None = None) -> None:
        self.parser = parser
        self.run_id = run_id
        self.given = given

    @property
    def source(self) -> dict[str, Any]:
        """All keys with their values as MONAI's parser has them, including overrides."""
        return {key: value for key, value in self.parser.get().items() if key != ConfigParser.meta_key}

    @property
    def content(self) -> dict[str, Any]:
        """The same, with paths and names from a command (``scripts.utils.literals``) as plain text."""
        return dict(shown(self.source))

    @property
    def workflow(self) -> str:
        """``training``, ``evaluation`` or ``inference``; empty for a configuration that is none of them."""
        config = self.source
        if "train" in config:
            return "evaluation" if "evaluation_dir" in config else "training"
        return "inference" if "evaluator" in config else ""

    def get(self, name: str, default: Any = None) -> Any:
        """The value of a setting, or the object that a part makes; ``default`` if there is no such key."""
        return self.parser.get_parsed_content(name) if name in self.parser else default

    def arguments(self, name: str) -> dict[str, Any]:
        """Arguments of the component ``name``, with references resolved. An expression is refused, as it has none."""
        while isinstance(text := self.parser.get(name), str) and text.startswith("@"):
            name = text[1:]
        # The parser knows what a component refers to only after it has made the component.
        self.get(name)
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
        """Whether a caller such as MONAI Label gives its own list of cases to a training."""
        return brings_own_data(self.content)

    @property
    def read_elsewhere(self) -> tuple[str, set[str]]:
        """What MONAI's parser has resolved already: the source of the configurations, in which macros still are, and
        the names of settings that a file of ``--tracking`` adds."""
        given = dict(self.given or {})
        if file := given.get("args_file"):
            given = {**ConfigParser.load_config_files(file), **{k: v for k, v in given.items() if v is not None}}
        sources = [ConfigParser.load_config_files(file) for file in [given.get("config_file")] if file]
        tracking, added = given.get("tracking"), set(TRACKING)
        if isinstance(tracking, str) and tracking not in DEFAULT_EXP_MGMT_SETTINGS:
            tracking = ConfigParser.load_config_files(tracking)
        if isinstance(tracking, Mapping):
            sources.append(dict(tracking))
            added |= set(tracking.get("configs", {}))
        return json.dumps([*sources, given.get("override")], default=str), added

    @property
    def loaded_by_caller(self) -> str | None:
        """The weights that a handler of such a caller loads before the training; None if it loads none."""
        for handler in self.content["train"]["handlers"] if self.brings_own_data else ():
            file = handler.get("load_path") if isinstance(handler, Mapping) else None
            if isinstance(file, str) and Path(file).is_file():
                return file
        return None


def running_configuration() -> Configuration:
    """The configuration that MONAI is evaluating now. The key ``configuration`` of a configuration calls this.

    A configuration cannot refer to itself, so this function takes MONAI's parser from the calling frames.
    """
    parser, run_id, given = None, "", None
    frame = inspect.currentframe()
    while frame is not None and given is None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, ConfigParser):
            parser = parser or owner
        elif isinstance(owner, ConfigWorkflow):
            run_id = run_id or owner.run_id
        elif frame.f_code is bundle_run.__code__:
            given = {name: frame.f_locals.get(name) for name in ("config_file", "args_file", "tracking", "override")}
        frame = frame.f_back
    assert parser is not None
    return Configuration(parser, run_id, given)


def weights_settings(configuration: Configuration) -> Record:
    """The settings of a configuration that weights depend on, in the form of their record.

    Raises:
        InputError: a threshold is missing, unknown or no volume; or the network is an expression.
    """
    get = configuration.get
    training = None
    if trains := "train" in configuration.source:
        training = {
            "window": get("patch_size"),
            "overlap": get("overlap"),
            "inferer": get("windows"),
            "precision": get("amp_dtype") if get("amp") else "float32",
        }
    return record_of_settings(
        network=get("network_def"),
        arguments=configuration.arguments("network_def"),
        spacing=get("spacing"),
        exclusive=get("exclusive"),
        preprocessing=get("validate#preprocessing" if trains else "preprocessing"),
        thresholds=get("thresholds"),
        training=training,
        data_license=get("data_license"),
        augmentation=get("train#preprocessing"),
    )


def brings_own_data(config: Mapping[str, Any]) -> bool:
    """Whether a configuration's content holds a caller's own list of cases, which a training then uses."""
    node: Any = config
    for key in ("train", "dataset", "data"):
        node = node.get(key) if isinstance(node, Mapping) else None
    return isinstance(node, list)


def without_tracking(node: Any) -> Any:
    """A configuration's content without the keys and handlers that MONAI adds for ``--tracking mlflow``."""
    if isinstance(node, Mapping):
        return {key: without_tracking(value) for key, value in node.items() if key not in TRACKING}
    if isinstance(node, (list, tuple)):
        return [without_tracking(v) for v in node if not (isinstance(v, Mapping) and v.get("_target_") == MLFLOW)]
    return node
