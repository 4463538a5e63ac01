# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The record of weights: ``model.json`` beside ``model.pt`` holds what is needed to use the weights correctly.

The names and shapes of tensors do not show how images were normalized, which resolution they had, or whether the
outputs are regions or classes. Weights that are used with other settings give a plausible but wrong label map. So each
file of weights that the bundle writes has a record, and each workflow compares the record of the weights that it loads
with its settings.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import logging
from collections.abc import Mapping, Sequence
from itertools import pairwise
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
from monai.utils import ensure_tuple
from scripts.brats import SEQUENCES
from scripts.data.postprocessing import THRESHOLDS, checked_thresholds
from scripts.data.transforms import RandDropSequenced
from scripts.utils.errors import InputError
from scripts.utils.files import CONFIGS, file_checksum, read_json, replacing
from scripts.utils.run_json import CONFIG_FILE, RUN_FILE, bundle_version
from scripts.weights.schema import RECORD_SCHEMA

logger = logging.getLogger(__name__)

Record = dict[str, Any]

# The class of the network that train.json and inference.json name.
PLAIN_NETWORK = "PriorAttentionNet"

# The entry trained_on of weights whose training data nobody counted here, such as imported ones.
UNKNOWN: Record = {"patients": None, "phantoms": None, "origin": None}


def record_file(model_file: str | Path) -> Path:
    """Path of the record of ``model_file``.

    Example:
        >>> record_file("models/model.pt").as_posix()
        'models/model.json'
    """
    return Path(model_file).with_suffix(".json")


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
        network: the configuration's ``network_def``.
        arguments: the arguments that the network was made with. Keys that begin with an underscore are MONAI's and are
            left out.
        spacing: resolution at which the network works, mm.
        exclusive: the outputs exclude each other (softmax) instead of overlapping (sigmoid).
        preprocessing: preprocessing of images to be segmented. It gives the normalization.
        thresholds: thresholds of the post-processing (``scripts.data.postprocessing.THRESHOLDS``).
        training: other facts of the training, which are noted but never compared: window, overlap, inferer (an object,
            whose class name is noted), precision.
        data_license: terms of the training data, or whom to credit.
        augmentation: transforms of the training's samples. They tell how many sequences the weights may lack.

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
        settings["missing_sequences"] = missing_sequences(augmentation)
    return settings


def missing_sequences(augmentation: Compose) -> int:
    """How many sequences a case may lack for weights that were trained with these transforms, 0 or 1.

    A network does not bear a sequence of zeros unless its training sometimes dropped a sequence.

    Example:
        >>> missing_sequences(Compose([RandDropSequenced("image", prob=0.1)]))
        1
        >>> missing_sequences(Compose([RandDropSequenced("image", prob=0.0)]))
        0
    """
    return int(any(isinstance(step, RandDropSequenced) and step.prob > 0 for step in _steps(augmentation)))


def network_definition(network: torch.nn.Module, arguments: Mapping[str, Any]) -> Record:
    """A network's class name and all of its arguments, those with default values too, as JSON can hold them.

    Args:
        network: an instance of the class.
        arguments: the arguments that it was made with. Keys that begin with an underscore are MONAI's and are left out.
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

    Returns:
        ``brain`` (the voxels that are not 0), ``volume`` (the whole volume), ``box`` (the brain's bounding box) or
        ``none`` (no normalization). Other ways are described by the names of their arguments. In ``brain after
        resampling`` the images were resampled before.

    Example:
        >>> normalization(Compose([NormalizeIntensityd("image", nonzero=True, channel_wise=True)]))
        'brain'
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


def trained_on(patients: int, phantoms: int) -> Record:
    """The entry ``trained_on`` of the record of a training that started from random weights.

    Args:
        patients: number of patients' cases in the training.
        phantoms: number of synthetic phantoms in the training.
    """
    return {"patients": patients, "phantoms": phantoms, "origin": None}


def trained_after(seen: Sequence[Record], origin: str) -> Record:
    """The entry ``trained_on`` of weights that come from several trainings, one after the other or averaged.

    The trainings may share cases, so the largest number counts: the weights have seen at least that many.

    Args:
        seen: the entries of these trainings, and of the weights that they started from.
        origin: checksum of the weights that all of them go back to (``origin``).

    Example:
        >>> trained_after([trained_on(16, 5), trained_on(0, 152)], "4aee")
        {'patients': 16, 'phantoms': 152, 'origin': '4aee'}
        >>> trained_after([trained_on(0, 8), UNKNOWN], "c0de")
        {'patients': None, 'phantoms': 8, 'origin': 'c0de'}
    """

    def at_least(numbers: list[int | None]) -> int | None:
        most = max(number or 0 for number in numbers)
        return None if most == 0 and None in numbers else most

    return {kind: at_least([one[kind] for one in seen]) for kind in ("patients", "phantoms")} | {"origin": origin}


def origin(record: Record) -> str:
    """Checksum of the first weights that the weights of ``record`` go back to; their own if they are the first."""
    return str(record["trained_on"]["origin"] or record["checksum"])


def only_phantoms(record: Record | None) -> bool:
    """Whether weights are known to have seen phantoms and no patient.

    Example:
        >>> only_phantoms({"trained_on": trained_on(0, 8)}), only_phantoms({"trained_on": trained_on(4, 8)})
        (True, False)
    """
    return record is not None and record["trained_on"]["patients"] == 0 and bool(record["trained_on"]["phantoms"])


def weights_checksum(state: dict[str, torch.Tensor], build: str = "") -> str:
    """SHA-256 of the names, shapes, types and values of weights, and of how the network is built.

    A checksum of the file would differ for equal weights, since the file holds times and paths too.

    Args:
        state: the weights by name.
        build: text that describes the network.

    Example:
        >>> state = {"weight": torch.zeros(2, 3), "bias": torch.ones(2)}
        >>> weights_checksum(state) == weights_checksum(dict(reversed(state.items())))
        True
        >>> weights_checksum(state) == weights_checksum(state, build="another network")
        False
    """
    found = hashlib.sha256(build.encode())
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        found.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        found.update(value.view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def refuse_existing(model_file: Path) -> None:
    """Refuse a name for new weights if these weights or their record would replace a file or be taken for one of a run.

    Raises:
        InputError: the name cannot be used.
    """
    record = record_file(model_file)
    for file in (model_file, record):
        if file.exists():
            raise InputError(f"{file}: exists already; move it away or choose another name.")
    if record == model_file or record.name in (RUN_FILE, CONFIG_FILE, "datalist.json"):
        raise InputError(f"{model_file}: its record would be taken for another file; choose a name like model.pt.")


def save_weights(weights: Mapping[str, torch.Tensor], model_file: str | Path, record: Mapping[str, Any]) -> None:
    """Save bare weights, and beside them their record with the bundle's version and the file's checksum."""
    with replacing(model_file) as temporary:
        torch.save(dict(weights), temporary)
        whole = {"bundle_version": bundle_version(), "checksum": file_checksum(temporary), **record}
        # Both files are whole before either is moved into place.
        with replacing(record_file(model_file)) as temporary_record:
            temporary_record.write_text(json.dumps(whole, indent=4) + "\n", encoding="utf-8")


def model_checksum(model_file: str | Path) -> str:
    """Checksum of a file of weights. A process reads a file for it only once, unless the file changes."""
    file = Path(model_file).resolve()
    found = file.stat()
    return _checksum(file, found.st_ino, found.st_size, found.st_mtime_ns)


@functools.lru_cache
def _checksum(file: Path, *state: int) -> str:
    return file_checksum(file)


def read_weights_record(model_file: str | Path, quiet: bool = False) -> Record | None:
    """The record of ``model_file``.

    If there is no record, or only a record of other weights, the result is None, and a warning is logged.

    Args:
        model_file: an existing file of weights.
        quiet: leave out the warning.

    Raises:
        InputError: the record is damaged.
    """
    # The record of a link lies beside the link, or beside the file that it leads to.
    path = next((p for p in map(record_file, (model_file, Path(model_file).resolve())) if p.is_file()), None)
    record = read_json(path) if path is not None else {}
    if "checksum" not in record:
        missing = f"{model_file}: there is no record of these weights ({record_file(model_file).name})"
    elif record["checksum"] != model_checksum(model_file):
        missing = f"{path}: this record belongs to other weights (by their checksum) than {model_file}"
    elif (fault := _fault(record)) is not None:
        raise InputError(f"{path}: a damaged record of weights ({fault}); restore or remove it.")
    else:
        return record
    if not quiet:
        logger.warning("%s, so it is unknown whether they fit these settings.", missing)
    return None


def _fault(record: Record) -> str | None:
    """The first entry of a record that its schema does not allow; None if the record is sound."""
    # Only what reads a record needs this package.
    import jsonschema

    error = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(RECORD_SCHEMA).iter_errors(record))
    if error is None:
        try:
            json.dumps([record[key] for key in ("network", "spacing", "thresholds")], allow_nan=False)
        except ValueError:
            return "a number is not finite"
        return None
    return ".".join(map(str, error.absolute_path)) or str(error.message)


def thresholds_in_use(model_file: str | Sequence[str], **given: Any) -> dict[str, Any]:
    """Thresholds of the post-processing: as given, or else as in the record of the weights, or else the authors'.

    So the thresholds of a recipe stay with its weights: the authors' SGD recipe, for example, has an ET threshold of
    500 mm^3.

    Args:
        model_file: one file of weights or, for an ensemble, several.
        given: thresholds by name. None leaves a threshold to the record.

    Raises:
        InputError: the records of an ensemble differ in a threshold that is not given.

    Example:
        >>> thresholds_in_use("absent.pt", min_et_mm3=100, min_tumor_mm3=None)
        {'min_component_mm3': 10, 'min_tumor_mm3': 0, 'min_et_mm3': 100, 'et_per_component': False}
    """
    given = {name: value for name, value in given.items() if value is not None}
    recorded = [
        (record_file(file), record["thresholds"])
        for file in ensure_tuple(model_file)
        if Path(file).is_file() and (record := read_weights_record(file, quiet=True))
    ] or [(Path(), THRESHOLDS)]
    for (before, theirs), (file, own) in pairwise(recorded):
        for name in own:
            if name not in given and own[name] != theirs[name]:
                raise InputError(
                    f"{file}: {name} is {own[name]}, but {theirs[name]} in {before}; set --thresholds#{name}."
                )
    return {**recorded[0][1], **given}


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
        found.append(f'voxels of {_mm(theirs)} mm, not {_mm(settings["spacing"])}; add --spacing "{theirs}"')
    if record["exclusive"] != settings["exclusive"]:
        found.append(
            "classes that exclude each other (softmax), not regions that overlap; add --exclusive True"
            if record["exclusive"]
            else "regions that overlap, not classes that exclude each other; leave out --exclusive"
        )
    if (theirs := record["normalization"]) != (ours := settings["normalization"]):
        remedy = {
            "volume": "add configs/authors.yaml",
            "brain after resampling": "add configs/starter.yaml",
            "brain": "leave out the overlay that changes the preprocessing, such as configs/authors.yaml",
        }
        how = remedy.get(theirs, "add the overlay of their preprocessing")
        found.append(f"sequences normalized over: {theirs}, not: {ours}; {how}")
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
        >>> network_overlay("PriorAttentionNet") is None
        True
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
    return [f"--network_def#{name} {_option(value)}" for name, value in arguments.items()]


def _option(value: Any) -> str:
    return f'"{value}"' if isinstance(value, (list, dict)) else str(value)


def _mm(spacing: Sequence[float]) -> str:
    return " x ".join(f"{mm:g}" for mm in spacing)


def refuse_other_use(record: Record, settings: Record, model_file: str | Path) -> None:
    """Refuse settings that differ from the record of the weights.

    Raises:
        InputError: they differ; the message names the differences and says how to run these weights.
    """
    if found := differences(record, settings):
        told = ". It was also trained with ".join(found)
        raise InputError(f"{model_file}: by its record ({record_file(model_file)}) it was trained with {told}.")


def check_start(model_file: str | Path, settings: Record) -> Record:
    """Compare the settings of a training with the record of the weights from which it starts.

    Another order of channels is refused. Every other difference gives a warning.

    Returns:
        The record; for weights without one, their checksum and that nobody knows what they saw.

    Raises:
        InputError: the weights take channels in another order.
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
