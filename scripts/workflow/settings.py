# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Checks of the settings: those that cannot work, and those that nothing reads, are refused before any case is read."""

import ast
import difflib
import functools
import importlib.util
import json
import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.inferers import Inferer
from monai.utils import ensure_tuple
from scripts.utils.distributed import launched_rank, unwrap
from scripts.utils.errors import InputError, show_input_errors
from scripts.utils.files import CONFIGS
from scripts.utils.literals import shown
from scripts.workflow.configuration import MLFLOW, Configuration, without_tracking

logger = logging.getLogger(__name__)

# MONAI reads these keys; no other key refers to them.
READ_BY_MONAI = {"imports", "initialize", "run", "finalize", "training", "evaluation", "inference"}
# The main configurations of each workflow, by the name that runs it.
MAIN_FILES = {
    "training": ("train.json",),
    "evaluation": ("train.json", "evaluate.json"),
    "inference": ("inference.json",),
}
# Packages that some of MONAI's parts need when they are used.
PACKAGES_BEHIND = {MLFLOW: ("mlflow", "sqlalchemy", "alembic")}
# Sections of a configuration that hold settings of their own.
SECTIONS = ("train", "validate")
AMP_DTYPES = ("bfloat16", "float16")
# Settings with these endings are paths.
PATH_ENDINGS = ("_dir", "_file", "_root")
# How to go on with a run that the user stops.
GOES_ON = {
    "training": "the same command with --resume True goes on from the last whole epoch",
    "evaluation": "an evaluation is done as a whole: add --overwrite True to the same command",
    "inference": "the same command goes on with the missing cases",
}


def check_settings(configuration: Configuration) -> None:
    """Refuse settings that cannot work with any data, and those that nothing reads.

    From this call on, wrong input is shown as one line, as in a command.

    Raises:
        InputError: a value is the text "true" or "false" (the command line leaves a switch in lower case as text, and
            Python takes both texts for true); the device or precision does not exist; a part needs a package that is
            not installed; the run's name is another workflow's; a part refers to a setting that does not exist;
            torchrun started several processes for a configuration of one process; or nothing reads a setting.
    """
    show_input_errors(GOES_ON.get(configuration.workflow, ""))
    config = configuration.source
    named, workflow = configuration.run_id, configuration.workflow
    if named in MAIN_FILES and workflow in MAIN_FILES and named != workflow:
        wanted = " and ".join(MAIN_FILES[named])
        raise InputError(f"run {named}: these files are of another workflow; write run {workflow}, or give {wanted}.")
    for name, value in _leaves(config):
        if isinstance(value, str) and value in ("true", "false"):
            raise InputError(f"--{name} {value}: write {value.capitalize()}, with a capital.")
        if name.endswith("_target_") and isinstance(value, str):
            check_installed(name, value)
        if isinstance(value, str) and value.startswith(("$", "@")):
            check_references(name, value, config)
    for name in config:
        if name.endswith(PATH_ENDINGS):
            check_path(name, config[name], configuration)
    check_device(config.get("device"))
    precision = config.get("amp_dtype", AMP_DTYPES[0])
    if not left_to_evaluation(precision) and precision not in AMP_DTYPES:
        raise InputError(f"--amp_dtype {precision}: choose one of {', '.join(AMP_DTYPES)}.")
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started > 1 and config.get("world_size") == 1:
        raise InputError(
            f"{started} processes were started (WORLD_SIZE) for a configuration of one; add multi_gpu_train.json "
            "or multi_gpu_evaluate.json to --config_file."
        )
    check_read(configuration)


def check_read(configuration: Configuration) -> None:
    """Refuse settings that nothing reads, such as one that is mistyped, unless ``allow_unread`` is true.

    Programs other than ``bundle run`` may read what they set themselves, so there it is a warning.
    """
    config = configuration.source
    # A caller's own lists and lengths replace settings, which nothing reads then although none is mistyped.
    if launched_rank() != 0 or configuration.brings_own_data:
        return
    text = json.dumps(without_tracking(config), default=str).replace("::", "#")
    sources, added = configuration.read_elsewhere
    known = READ_BY_MONAI | added | _own_settings(configuration.workflow)
    settings = _settings(config)
    unread = []
    for name in settings:
        own = re.escape(name)
        if name in known or re.search(rf"@{own}\b", text) or re.search(rf"%(?:[^\s\"']*(?:#|::))?{own}\b", sources):
            continue
        section = name.rpartition("#")[0]
        others = [other for other in settings if other != name and other.rpartition("#")[0] == section]
        close = difflib.get_close_matches(name, others, 1)
        unread.append(f"Nothing reads the setting {name}{f'; did you mean {close[0]}?' if close else '.'}")
    if unread and configuration.given is not None and not config.get("allow_unread"):
        raise InputError(f"{' '.join(unread)} Correct or remove it, or go on by --allow_unread True.")
    for message in unread:
        logger.warning("%s", message)


def check_path(name: str, given: Any, configuration: Configuration) -> None:
    """Refuse a path that is no text, holds ``::``, or differs from what was typed.

    MONAI's command line takes ``2024`` for a number and ``p,q`` for a pair, and cuts ``a #1`` at the blank. Its parser
    replaces ``#`` by ``::``. ``given`` is the value of the setting ``name`` as the parser has it.
    """
    plain = shown(given)
    if isinstance(given, str) and isinstance(plain, str) and plain != given:
        return  # written by a command of the bundle
    typed = _typed(name)
    told = f"--{name} {given if typed is None else typed}"
    remedy = "quote it twice ('\"a\"'), or give a link with a plain name; panet segment takes every name"
    if not left_to_evaluation(given) and any("::" in str(path) for path in ensure_tuple(given)):
        raise InputError(f"{told}: MONAI cannot keep a path that holds # or ::; {remedy}.")
    value = configuration.parser.get_parsed_content(name)
    # An ensemble has several files of weights.
    several = name == "model_file" and (typed or "[").startswith(("[", "(", "$", "@"))
    paths = value if several and isinstance(value, (list, tuple)) else [value]
    if not all(path is None or isinstance(path, (str, os.PathLike)) for path in paths):
        raise InputError(f"{told}: MONAI reads {value!r} here, which is no path; {remedy}.")
    # MONAI's parser writes # as ::, and its command line leaves out what it takes for None.
    if isinstance(given, str) and typed is not None and given not in (typed.replace("#", "::"), _unquoted(typed)):
        raise InputError(f"{told}: MONAI reads {given!r} here; {remedy}.")


def _typed(name: str) -> str | None:
    """The text of an option of ``python -m monai.bundle run``; None if it is not there, or another program runs."""
    if Path(sys.argv[0]).parts[-3:] != ("monai", "bundle", "__main__.py"):
        return None
    found = None
    arguments = sys.argv[1:]
    for argument, following in zip(arguments, [*arguments[1:], None], strict=False):
        option, equals, value = argument.partition("=")
        if option.startswith("-") and option.lstrip("-").replace("-", "_") == name:
            found = value if equals else following
    # A text that begins with % names a part of a configuration.
    return None if found is None or found.startswith("%") else found


def _unquoted(text: str) -> Any:
    # MONAI's command line takes the second pair of quotes off.
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    try:
        return ast.literal_eval(text) if quoted else text
    except (ValueError, SyntaxError):
        return text


@functools.cache
def _own_settings(workflow: str) -> frozenset[str]:
    """Settings of a workflow's main configurations, or of all of them. The workflow reads each of them."""
    names = MAIN_FILES.get(workflow, ("train.json", "evaluate.json", "inference.json"))
    files = [CONFIGS / name for name in names]
    content = [json.loads(file.read_text(encoding="utf-8")) for file in files if file.is_file()]
    return frozenset(name for config in content for name in _settings(config))


def _settings(config: Mapping[str, Any]) -> list[str]:
    """Names of all settings at the top level of a configuration and one level below, in its sections."""
    sections = {section: config[section] for section in SECTIONS if isinstance(config.get(section), Mapping)}
    below = [f"{section}#{name}" for section, content in sections.items() for name in content]
    # MONAI's own keys, such as _desc_, begin with an underscore.
    return [name for name in (*config, *below) if not name.rpartition("#")[2].startswith("_")]


def check_installed(name: str, target: str) -> None:
    """Refuse a ``_target_`` whose package is not installed, before MONAI fails on it with a page of text."""
    # An expression or a reference has a value only after evaluation.
    if not re.match(r"[A-Za-z_]", target):
        return
    packages = PACKAGES_BEHIND.get(target, (target.split(".")[0],) if "." in target else ())
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise InputError(f"{name} {target}: needs the package {package}, which is absent; pip install {package}.")


def check_references(name: str, value: str, config: Mapping[str, Any]) -> None:
    """Refuse a reference to a setting that does not exist, such as that of an overlay for another configuration."""
    for wanted in re.findall(r"@(\w+)", value):
        if wanted not in config:
            raise InputError(
                f"--{name} {value}: there is no setting {wanted}; an overlay may need another configuration before it, "
                "such as evaluate.json; otherwise give the setting."
            )


def left_to_evaluation(value: Any) -> bool:
    """Whether a value is a part, an expression or a reference, which is known only after evaluation."""
    return isinstance(value, Mapping) or (isinstance(value, str) and value.startswith(("$", "@")))


def check_device(device: Any) -> None:
    """Refuse what is not the name of a device, or names a GPU that this machine does not have."""
    if device is None or left_to_evaluation(device):
        return
    try:
        # For a bare number, the type of device that torch chooses depends on the machine.
        name = str(device if isinstance(device, torch.device) else torch.device(str(device)))
    except RuntimeError as error:
        raise InputError(f"--device {device}: no such device; write cpu, cuda, or cuda:<number>.") from error
    found = re.fullmatch(r"cuda(:(\d+))?", name)
    if found and int(found[2] or 0) >= (count := torch.cuda.device_count()):
        if not count:
            raise InputError(f"--device {device}: this machine has no GPU that torch can use; write cpu.")
        raise InputError(
            f"--device {device}: this machine has {count} GPU{'s' * (count > 1)} that torch can use, numbered from 0; "
            "name one, or cpu."
        )


def _leaves(node: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    children = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list) else None
    if children is None:
        yield name, node
        return
    for key, child in children:
        yield from _leaves(child, f"{name}#{key}" if name else str(key))


def weights_readers(network: torch.nn.Module, inferer: Inferer) -> list[str]:
    """Class names of those of the network, the inferer and the inferers inside it that read weights from a file.

    Such a part has an attribute ``reads_model_file`` that is true.
    """
    parts: list[Any] = [network]
    inner: Any = inferer
    while inner is not None:
        parts.append(inner)
        inner = getattr(inner, "inferer", None)
    return [type(part).__name__ for part in parts if getattr(part, "reads_model_file", False)]


def check_trainable(network: torch.nn.Module, inferer: Inferer) -> None:
    """Refuse a training with a part that reads weights from a file, which would replace the weights in training."""
    if readers := weights_readers(network, inferer):
        raise InputError(
            f"{' and '.join(readers)}: reads weights from --model_file, so nothing can be trained with it; leave "
            "out openvino.yaml and ensemble.yaml, or add evaluate.json to evaluate."
        )


def check_windows(network: torch.nn.Module, sizes: Mapping[str, Sequence[int]]) -> None:
    """Refuse a patch or window that ``network`` cannot take, before hours of work are lost.

    Args:
        network: a network that takes multiples of its ``size_multiple``, but not this size along all axes. Without this
            attribute it takes any size.
        sizes: sizes by the names of their settings.
    """
    multiple = int(getattr(unwrap(network), "size_multiple", 1))
    for name, size in sizes.items():
        if any(n < multiple or n % multiple for n in size) or (multiple > 1 and all(n == multiple for n in size)):
            raise InputError(
                f"--{name} {list(size)}: each must be a multiple of {multiple}, and one of them at least "
                f"{2 * multiple}."
            )
