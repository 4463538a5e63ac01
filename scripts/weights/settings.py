# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The settings of a configuration that weights depend on, and what other settings mean for weights with a record."""

import inspect
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.transforms import (
    Compose,
    CropForeground,
    CropForegroundd,
    NormalizeIntensity,
    NormalizeIntensityd,
    Spacing,
    Spacingd,
)
from scripts.brats import SEQUENCES
from scripts.data.postprocessing import checked_thresholds
from scripts.data.transforms import RandDropSequenced
from scripts.utils.errors import InputError
from scripts.utils.files import CONFIGS, file_checksum
from scripts.utils.literals import literal
from scripts.weights.record import UNKNOWN, Record, read_weights_record, record_file

logger = logging.getLogger(__name__)

# The class of the network that train.json and inference.json name.
PLAIN_NETWORK = "PriorAttentionNet"


def weights_settings(
    network: torch.nn.Module,
    arguments: Mapping[str, Any],
    spacing: Sequence[float],
    exclusive: bool,
    preprocessing: Compose,
    thresholds: Mapping[str, Any],
    training: Mapping[str, Any] | None = None,
    data_license: str | None = None,
    augmentation: Compose | None = None,
) -> Record:
    """The settings of a configuration that weights depend on, in the form of a record.

    Args:
        network: the configuration's ``network_def``, which was made with ``arguments`` (``network_definition``).
        spacing: resolution at which the network works, mm.
        exclusive: the outputs exclude each other (softmax) instead of overlapping (sigmoid).
        preprocessing: preprocessing of images to be segmented. It gives the normalization.
        thresholds: thresholds of the post-processing (``scripts.data.postprocessing.THRESHOLDS``).
        training: other facts of the training, which are noted but never compared: window, overlap, inferer (an object,
            whose class name is noted), precision.
        data_license: terms of the training data, or whom to credit.
        augmentation: transforms of the training's samples. A network does not tolerate a sequence of zeros unless they
            sometimes dropped a sequence.

    Raises:
        InputError: a threshold is missing, unknown or no volume.
    """
    settings: Record = {
        "network": network_definition(network, arguments),
        "sequences": list(SEQUENCES),
        "spacing": [float(mm) for mm in spacing],
        "exclusive": bool(exclusive),
        "normalization": normalization(preprocessing),
        "thresholds": checked_thresholds(thresholds),
    }
    if training is not None:
        settings["training"] = _plain(training)
        settings["license"] = data_license
    if augmentation is not None:
        dropped = (isinstance(step, RandDropSequenced) and step.prob > 0 for step in _steps(augmentation))
        settings["missing_sequences"] = int(any(dropped))
    return settings


def network_definition(network: torch.nn.Module, arguments: Mapping[str, Any]) -> Record:
    """A network's class name and all of its arguments, those with default values too, as JSON can hold them.

    Arguments that begin with an underscore are MONAI's and are left out.
    """
    given = {name: value for name, value in arguments.items() if not name.startswith("_")}
    parameters = inspect.signature(type(network)).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
    return dict(_plain({"class": type(network).__name__, "arguments": {**defaults, **given}}))


def _plain(value: Any) -> Any:
    # In JSON a tuple becomes a list, and an object is replaced by the name of its class.
    return json.loads(json.dumps(value, default=lambda thing: type(thing).__name__))


def normalization(preprocessing: Compose) -> str:
    """Name of the region over which a preprocessing normalizes each sequence.

    That is ``brain`` (the voxels that are not 0), ``brain after resampling``, ``volume`` (the whole volume), ``box``
    (the brain's bounding box) or ``none`` (no normalization). Other ways are described by the names of their arguments.

    Example:
        >>> normalization(Compose([CropForegroundd("image", "image"), NormalizeIntensityd("image", channel_wise=True)]))
        'box'
    """
    steps = _steps(preprocessing)
    found = [step for step in steps if isinstance(step, (NormalizeIntensity, NormalizeIntensityd))]
    if not found:
        return "none"
    if len(found) > 1:
        return f"{len(found)} times"
    normalizer: Any = getattr(found[0], "normalizer", found[0])
    given = [name for name in ("subtrahend", "divisor") if getattr(normalizer, name) is not None]
    if given:
        return f"by {' and '.join(given)}"
    before = steps[: steps.index(found[0])]
    if normalizer.nonzero:
        where = "brain after resampling" if any(isinstance(step, (Spacing, Spacingd)) for step in before) else "brain"
    else:
        where = "box" if any(isinstance(step, (CropForeground, CropForegroundd)) for step in before) else "volume"
    return where if normalizer.channel_wise else f"{where}, all sequences together"


def _steps(transform: Any) -> list[Any]:
    if not isinstance(transform, Compose):
        return [transform]
    # MONAI's flatten() would seed the random transforms again.
    return [step for inner in transform.transforms for step in _steps(inner)]


def differences(record: Record, settings: Record) -> list[str]:
    """Ways in which ``settings`` differ from the ``record`` of the weights, each with its remedy.

    Window, overlap, inferer, precision and thresholds may differ, so they are not compared.
    """
    found = []
    if (theirs := record["sequences"]) != settings["sequences"]:
        found.append(
            f"channels in the order {', '.join(theirs)}, which is {', '.join(settings['sequences'])} here; "
            "train or import them again"
        )
    found += _network_differences(record["network"], settings["network"])
    if (theirs := record["spacing"]) != settings["spacing"]:
        voxels, own = (" x ".join(f"{mm:g}" for mm in spacing) for spacing in (theirs, settings["spacing"]))
        found.append(f'voxels of {voxels} mm, not {own}; add --spacing "{theirs}"')
    if record["exclusive"] != settings["exclusive"]:
        found.append(
            "classes that exclude each other (softmax), not regions that overlap; add --exclusive True"
            if record["exclusive"]
            else "regions that overlap, not classes that exclude each other; leave out --exclusive"
        )
    if (theirs := record["normalization"]) != (ours := settings["normalization"]):
        remedies = {
            "volume": "add configs/authors.yaml",
            "brain": "leave out the overlay that changes the preprocessing, such as configs/authors.yaml",
        }
        remedy = remedies.get(theirs, "add the overlay of their preprocessing")
        found.append(f"sequences normalized over: {theirs}, not: {ours}; {remedy}")
    return found


def _network_differences(theirs: Record, ours: Record) -> list[str]:
    if theirs["class"] != ours["class"]:
        overlay = network_overlay(theirs["class"])
        remedy = f"add configs/{overlay}" if overlay is not None else "use the configuration that names it"
        if theirs["class"] == PLAIN_NETWORK:
            remedy = f"leave out the overlay that names {ours['class']}"
        return [f"the network {theirs['class']}, not {ours['class']}; {remedy}"]
    arguments = theirs["arguments"]
    if unlike := sorted(arguments.keys() ^ ours["arguments"].keys()):
        return [f"another version of {ours['class']} (by its argument {unlike[0]}); use the version that trained them"]
    changed = {name: value for name, value in arguments.items() if value != ours["arguments"][name]}
    if not changed:
        return []
    told = ", ".join(f"{name} {json.dumps(value)}" for name, value in changed.items())
    return [f"another network ({told}); add {' '.join(network_options(changed))}"]


def network_overlay(name: str) -> str | None:
    """The first overlay whose network is of the class ``name``; None if there is none.

    Example:
        >>> network_overlay("CascadedUNet")
        'network_cascaded_unet.yaml'
    """
    for file in sorted(CONFIGS.glob("network_*.yaml")):
        network = ConfigParser.load_config_file(str(file)).get("network_def", {})
        if network.get("_target_", "").rpartition(".")[2] == name:
            return file.name
    return None


def network_options(arguments: Mapping[str, Any]) -> list[str]:
    """Options for the command line that set arguments of ``network_def``.

    Example:
        >>> network_options({"head": "parallel", "channels": [8, 16, 32]})
        ['--network_def#head parallel', '--network_def#channels "[8, 16, 32]"']
    """
    quoted = {name: f'"{value}"' if isinstance(value, (list, dict)) else value for name, value in arguments.items()}
    return [f"--network_def#{name} {value}" for name, value in quoted.items()]


def settings_of_record(record: Record) -> dict[str, Any]:
    """The settings of a configuration that weights with this record were trained with, for MONAI's parser."""
    network = record["network"]
    arguments = {name: literal(value) for name, value in network["arguments"].items()}
    network_def = {"_target_": f"scripts.networks.{network['class']}", **arguments}
    return {"network_def": network_def, "spacing": record["spacing"], "exclusive": record["exclusive"]}


def refuse_other_use(record: Record, settings: Record, model_file: str | Path) -> None:
    """Refuse settings that differ from the record. The InputError says how to run these weights."""
    if found := differences(record, settings):
        told = ". It was also trained with ".join(found)
        raise InputError(f"{model_file}: by its record ({record_file(model_file)}) it was trained with {told}.")


def check_start(model_file: str | Path, settings: Record) -> Record:
    """Compare the settings of a training with the record of the weights from which it starts, and return the record.

    Another order of channels is refused by an InputError; other differences are warnings. For weights without a record,
    the result is their checksum and that nobody knows what they saw.
    """
    record = read_weights_record(model_file)
    if record is None:
        return {"checksum": file_checksum(model_file), "trained_on": UNKNOWN}
    for difference in differences(record, settings):
        if record["sequences"] != settings["sequences"]:
            raise InputError(f"{model_file}: by its record ({record_file(model_file)}) it has {difference}.")
        # The remedies behind the semicolon apply to inference only.
        logger.warning("%s was trained with %s.", model_file, difference.split(";")[0])
    return record
