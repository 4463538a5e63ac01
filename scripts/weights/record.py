# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""What weights need to be used rightly, in a file beside them: ``model.json`` beside ``model.pt``.

Names and shapes of tensors do not tell how images were normalized, at which resolution, or whether the outputs are
regions or classes; weights that are read in another way give a plausible and wrong label map. So each weights file that
the bundle writes has a record, and each workflow compares the record of the weights that it loads with its settings.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.transforms import Compose, CropForeground, CropForegroundd, NormalizeIntensity, NormalizeIntensityd
from monai.utils import ensure_tuple
from scripts.brats import SEQUENCES
from scripts.errors import InputError
from scripts.files import file_checksum, read_json, replacing
from scripts.run_record import RECORD_FILE, bundle_version

logger = logging.getLogger(__name__)

Record = dict[str, Any]

THRESHOLDS = ("min_component_voxels", "min_et_voxels", "et_per_component")


def record_file(model_file: str | Path) -> Path:
    """Where the record of ``model_file`` lies."""
    return Path(model_file).with_suffix(".json")


def weights_settings(
    network: torch.nn.Module,
    arguments: Mapping[str, Any],
    spacing: Sequence[float],
    exclusive: bool,
    preprocessing: Compose,
    thresholds: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
    data_license: str | None = None,
) -> Record:
    """The settings of a configuration that weights depend on, as they stand in a record.

    Args:
        network: the configuration's ``network_def``.
        arguments: what it was made with, of which keys that begin with an underscore are MONAI's.
        spacing: resolution that the network works at, mm.
        exclusive: the outputs exclude each other (softmax) instead of overlapping (sigmoid).
        preprocessing: of images to be segmented; the normalization is read off it.
        thresholds: of the post-processing, by the names in ``THRESHOLDS``.
        training: what else to note of the training, which nothing compares: window, overlap, inferer (the object, of
            which the class's name is noted), precision.
        data_license: terms of the training data, or whom to credit.
    """
    settings: Record = {
        "network": network_definition(network, arguments),
        "sequences": list(SEQUENCES),
        "spacing": [float(mm) for mm in spacing],
        "exclusive": bool(exclusive),
        "normalization": normalization(preprocessing),
    }
    if thresholds is not None:
        settings["postprocessing"] = dict(thresholds)
    if training is not None:
        settings["training"] = _plain(training)
        settings["license"] = data_license
    return settings


def network_definition(network: torch.nn.Module, arguments: Mapping[str, Any]) -> Record:
    """A network's class, all of its arguments and those that are so by default, in JSON's terms; no module's path.

    Args:
        network: an instance of the class.
        arguments: what it was made with; keys that begin with an underscore are MONAI's.
    """
    given = {name: value for name, value in arguments.items() if not name.startswith("_")}
    parameters = inspect.signature(type(network)).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
    definition = {"class": type(network).__name__, "arguments": {**defaults, **given}, "defaults": defaults}
    return dict(_plain(definition))


def _plain(value: Any) -> Any:
    # As JSON has it, where a tuple is a list; of objects their class's name.
    return json.loads(json.dumps(value, default=lambda thing: type(thing).__name__))


def normalization(preprocessing: Compose) -> str:
    """How a preprocessing normalizes each sequence: over its ``brain`` (what is not 0), the whole ``volume``, the
    brain's ``box``, or not at all (``none``); other ways by the names of their arguments.
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
    where = "brain"
    if not normalizer.nonzero:
        before = steps[: steps.index(found[0])]
        where = "box" if any(isinstance(step, (CropForeground, CropForegroundd)) for step in before) else "volume"
    return where if normalizer.channel_wise else f"{where}, all sequences together"


def _steps(transform: Any) -> list[Any]:
    if not isinstance(transform, Compose):
        return [transform]
    # MONAI's flatten would seed the random ones anew.
    return [step for inner in transform.transforms for step in _steps(inner)]


def trained_on(patients: int, phantoms: int, started_from: Record | None = None) -> Record:
    """What weights were trained on, for their record: numbers of cases, and the weights that training began with."""
    return {"patients": patients, "phantoms": phantoms, "imported": None, "started_from": started_from}


def imported(source: str) -> Record:
    """What weights were trained on that another program has made: no one here knows."""
    return {"patients": None, "phantoms": None, "imported": source, "started_from": None}


def parent(model_file: str | Path, record: Record | None) -> Record:
    """What the record of a training's weights says of the weights that it began with."""
    return {"checksum": file_checksum(model_file), "trained_on": record["trained_on"] if record else None}


def knows_phantoms(record: Record | None, only: bool = False) -> bool:
    """Whether weights have seen phantoms, the weights that they began with included; with ``only``, nothing else."""
    content = (record or {}).get("trained_on") or {}
    start = content.get("started_from")
    if only:
        before = start is None or knows_phantoms(start, only=True)
        return bool(content.get("phantoms")) and content.get("patients") == 0 and before
    return bool(content.get("phantoms")) or (start is not None and knows_phantoms(start))


def weights_checksum(state: dict[str, torch.Tensor], build: str = "") -> str:
    """SHA-256 of weights, by names, shapes, types and values, and of how the network is built.

    Not of the file, which holds times and paths too.
    """
    found = hashlib.sha256(build.encode())
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        found.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        found.update(value.view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def save_weights(weights: Mapping[str, torch.Tensor], model_file: str | Path, record: Mapping[str, Any]) -> None:
    """Save bare weights, and their record with the bundle's version and the weights' checksum beside them."""
    # Defaults may be others when the record is read.
    record = {**record, "network": {key: record["network"][key] for key in ("class", "arguments")}}
    with replacing(model_file) as temporary:
        torch.save(dict(weights), temporary)
        whole = {"bundle_version": bundle_version(), "checksum": file_checksum(temporary), **record}
        # Both are whole before either is in its place.
        with replacing(record_file(model_file)) as temporary_record:
            temporary_record.write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")


def read_weights_record(model_file: str | Path, quiet: bool = False) -> Record | None:
    """The record of ``model_file``; None, with a warning, where there is none or one of other weights.

    Args:
        model_file: an existing file of weights.
        quiet: leave out the warning.

    Raises:
        InputError: the record is damaged, or there is none and the weights were made by version 0.2.0 or before, whose
            channels had another order.
    """
    # A link's record lies beside it, or beside the file that it leads to.
    path = next((p for p in map(record_file, (model_file, Path(model_file).resolve())) if p.is_file()), None)
    record = read_json(path) if path is not None else {}
    fits = record.get("checksum") == file_checksum(model_file) if record else False
    if not fits:
        refuse_former_version(model_file)
    if path is None or "checksum" not in record:
        if not quiet:
            logger.warning(
                "%s: there is no record of these weights (%s), so nothing tells whether they fit these settings, nor "
                "whether they come from version 0.2.0 or before, whose channels had another order.",
                model_file,
                record_file(model_file).name,
            )
        return None
    if not fits:
        if not quiet:
            logger.warning(
                "%s: the record of other weights (by their checksum) than %s, so it is passed over; nothing tells "
                "whether the weights fit these settings.",
                path,
                model_file,
            )
        return None
    if faulty := [key for key, good in _faults(record).items() if not good]:
        raise InputError(f"{path}: a damaged record of weights ({faulty[0]}); restore or remove it.")
    return record


def _faults(record: Record) -> dict[str, bool]:
    """Whether what is read of a record is of its kind, by key."""
    network, after = record.get("network"), record.get("postprocessing")
    described = isinstance(network, Mapping) and isinstance(network.get("arguments"), Mapping) and "class" in network
    return {
        "network": described,
        "sequences": isinstance(record.get("sequences"), list),
        "spacing": isinstance(record.get("spacing"), list),
        "exclusive": isinstance(record.get("exclusive"), bool),
        "normalization": isinstance(record.get("normalization"), str),
        "postprocessing": after is None or (isinstance(after, Mapping) and set(THRESHOLDS) <= set(after)),
        "trained_on": isinstance(record.get("trained_on", ""), (Mapping, type(None))),
    }


def refuse_former_version(model_file: str | Path) -> None:
    """Refuse weights that lie in the folder of a run of version 0.2.0 or before.

    Raises:
        InputError: they do.
    """
    for path in {file.with_name(RECORD_FILE) for file in (Path(model_file), Path(model_file).resolve())}:
        run = read_json(path)
        if run and "bundle_version" not in run:
            raise InputError(
                f"{model_file}: made by version 0.2.0 or before ({path}), whose channels were t1, t1ce, t2, flair; "
                f"they are {', '.join(SEQUENCES)} now, so train or import these weights again."
            )


class RecordedThresholds(dict[str, Any]):
    """Thresholds by name; those on which the records of an ensemble differ are refused when they are asked for."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self.disputed: dict[str, str] = {}

    def __getitem__(self, name: str) -> Any:
        """The threshold.

        Raises:
            InputError: the records differ on it.
        """
        if name in self.disputed:
            raise InputError(f"{self.disputed[name]}; set --{name}.")
        return super().__getitem__(name)


def recorded_thresholds(model_file: str | Sequence[str], **defaults: Any) -> RecordedThresholds:
    """Thresholds of the post-processing by the record of the weights; ``defaults`` where there is none.

    So what a recipe needs (the authors' SGD recipe has an ET threshold of 500) goes with its weights. Where the records
    of an ensemble differ, the user must decide.
    """
    found = RecordedThresholds(defaults)
    sources: dict[str, str] = {}
    for file in map(str, ensure_tuple(model_file)):
        record = read_weights_record(file, quiet=True) if Path(file).is_file() else None
        for name, value in ((record or {}).get("postprocessing") or {}).items():
            if name in sources and dict.__getitem__(found, name) != value:
                other = f"{dict.__getitem__(found, name)} in {record_file(sources[name])}"
                found.disputed[name] = f"{record_file(file)}: {name} is {value}, but {other}"
            elif name in defaults:
                found[name], sources[name] = value, file
    return found


def differences(record: Record, settings: Record) -> list[str]:
    """In what ``settings`` would use weights otherwise than their ``record`` says, each with what to add or leave out.

    Window, overlap, inferer and precision may differ, and thresholds are a matter of taste.
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
            "classes that exclude each other (softmax), not regions that overlap; add configs/network_exclusive.yaml"
            if record["exclusive"]
            else "regions that overlap, not classes that exclude each other; leave out --exclusive and "
            "configs/network_exclusive.yaml"
        )
    if (theirs := record["normalization"]) != (ours := settings["normalization"]):
        remedy = {
            "volume": "add configs/authors.yaml",
            "brain": "leave out the overlay that changes the preprocessing, such as configs/authors.yaml",
        }
        how = remedy.get(theirs, "add the overlay of their preprocessing")
        found.append(f"sequences normalized over: {theirs}, not: {ours}; {how}")
    return found


def _network_differences(theirs: Record, ours: Record) -> list[str]:
    if theirs["class"] != ours["class"]:
        return [f"the network {theirs['class']}, not {ours['class']}; add the overlay of that network"]
    # What the class had no argument for when they were trained, it did as it does by default now.
    wanted = {name: theirs["arguments"].get(name, ours["defaults"].get(name)) for name in ours["arguments"]}
    unknown = [name for name in theirs["arguments"] if name not in ours["arguments"]]
    changed = {name: value for name, value in wanted.items() if value != ours["arguments"][name]}
    if unknown:
        return [f"a network with {unknown[0]}, which {ours['class']} does not have; use the version that trained them"]
    if not changed:
        return []
    told = ", ".join(f"{name} {json.dumps(value)}" for name, value in changed.items())
    return [f"another network ({told}); add {' '.join(network_options(changed))}"]


def network_options(arguments: Mapping[str, Any]) -> list[str]:
    """Options for the command line that set arguments of ``network_def``."""
    return [f"--network_def#{name} {_option(value)}" for name, value in arguments.items()]


def _option(value: Any) -> str:
    return f'"{value}"' if isinstance(value, (list, dict)) else str(value)


def _mm(spacing: Sequence[float]) -> str:
    return " x ".join(f"{mm:g}" for mm in spacing)


def refuse_other_use(record: Record, settings: Record, model_file: str | Path) -> None:
    """Refuse settings that would use weights otherwise than their record says.

    Raises:
        InputError: they would; the message says in what, and how to run these weights.
    """
    if found := differences(record, settings):
        told = ". It was also trained with ".join(found)
        raise InputError(f"{model_file}: by its record ({record_file(model_file)}) it was trained with {told}.")


def check_start(record: Record | None, settings: Record, model_file: str | Path) -> None:
    """Before a training starts from weights: refuse another order of channels, and warn of all else that differs.

    Raises:
        InputError: the order of channels is another.
    """
    if record is None:
        return
    for difference in differences(record, settings):
        if record["sequences"] != settings["sequences"]:
            raise InputError(f"{model_file}: by its record ({record_file(model_file)}) it has {difference}.")
        # The remedies are those of inference.
        logger.warning("%s was trained with %s.", model_file, difference.split(";")[0])
