# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""What a workflow's ``run`` list does before and after its engine.

Before: refuse what would fail later, and write down what is run. After a training: publish its weights. Constructing a
workflow calls none of this, so it succeeds with no data and no weights at hand.
"""

from __future__ import annotations

import difflib
import filecmp
import functools
import importlib.util
import json
import logging
import math
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.utils import ensure_tuple
from scripts.data.checks import check_cases
from scripts.data.datalist import (
    CHANNEL_ORDER,
    complete_item,
    image_files,
    labeled_items,
    warn_of_shared_patients,
    write_datalist,
)
from scripts.distributed import launched_rank, on_rank_zero, rank, unwrap, world_size
from scripts.errors import InputError, show_input_errors
from scripts.files import keep_earlier, replacing
from scripts.run_record import CONFIG_FILE, RECORD_FILE, read_record, running_config, write_record
from scripts.training_state import check_resumable, newest_state, remove_unfinished
from scripts.transforms import check_et_label
from scripts.weights import check_weights, load_pretrained
from scripts.weights_record import (
    Record,
    check_start,
    knows_phantoms,
    parent,
    read_weights_record,
    record_file,
    refuse_other_use,
    trained_on,
)
from scripts.writers import map_files

logger = logging.getLogger(__name__)

Items = Sequence[Mapping[str, Any]]

# Keys that MONAI reads, not another key.
READ_BY_MONAI = {"imports", "initialize", "run", "finalize"}
# What MONAI Label's training task sets (monailabel 0.8.5, tasks/train/bundle.py, BundleTrainTask.__call__).
SET_BY_CALLERS = ("train#dataset#data", "validate#dataset#data", "train#trainer#max_epochs", "train#handlers")
# What MONAI adds for --tracking mlflow.
TRACKING = {"experiment_name", "is_not_rank0", "run_name", "save_execute_config", "tracking_uri"}
MLFLOW = "MLFlowHandler"
# Packages that MONAI's own parts need, only where they are used.
PACKAGES_BEHIND = {MLFLOW: ("mlflow", "sqlalchemy", "alembic")}
AMP_DTYPES = ("bfloat16", "float16")
# A plain training's weights are published only if nothing that changes them was changed. These keys do not: they say
# where, on what and how fast a training runs, how its data are read, and what else it writes.
NOT_OF_THE_RECIPE = {
    "bundle_root",
    "dataset_dir",
    "output_dir",
    "overwrite",
    "publish",
    "data_license",
    "et_label",
    "channel_order",
    "saved_et_label",
    "save_label_maps",
    "label_map_dir",
    "num_workers",
    "cache_rate",
    "sw_batch_size",
    "resume",
    "deterministic",
    "compile",
    "channels_last",
    "amp",
    "amp_dtype",
    "rank",
    "world_size",
    "device",
    "tensorboard",
    "training_scalars",
    "tensorboard_validation",
}


def prepare_training(
    training: Items,
    validation: Items,
    network: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    patch_size: Sequence[int],
    roi_size: Sequence[int],
    saved_et_label: int,
    dataset_dir: str,
    output_dir: str,
    datalist_file: str | None = None,
    overwrite: bool = False,
    val_interval: int = 1,
    batch_size: int = 1,
    pretrained_file: str | None = None,
    reinitialize: str | Sequence[str] = (),
    resume: bool = False,
    channel_order: Sequence[str] = CHANNEL_ORDER,
    settings: Record | None = None,
    label_map_dir: str | None = None,
) -> None:
    """Check settings and cases, load ``pretrained_file``, then write split, configuration and versions.

    A caller may bring its own lists, as MONAI Label does, in place of the cases below ``dataset_dir``. Since such a
    caller trains again and again, the folder of its earlier run is then kept under a dated name without being told to.

    All of that goes to ``output_dir``; label maps of the validation, where they are saved, to ``label_map_dir``. With
    several ranks, rank 0 does so alone; each loads ``pretrained_file``, whose record is compared with ``settings``
    (``scripts.weights_record``).

    Raises:
        InputError: a setting cannot work, there are too few cases or a faulty one, ``output_dir`` is in use, or, with
            ``resume``, holds nothing to resume from; or ``pretrained_file`` takes channels in another order.
    """
    pretrained_file = None if resume else pretrained_file
    searched: str | None = dataset_dir
    if brings_own_data(running_config()):
        searched, overwrite = None, True

    def check_and_claim() -> None:
        check_window(unwrap(network), "patch_size", patch_size)
        check_window(unwrap(network), "roi_size", roi_size)
        check_et_label(saved_et_label)
        state: dict[str, Any] = {}
        start: dict[str, Any] | None = None
        if resume:
            path, state = newest_state(output_dir)
            steps = math.ceil(math.ceil(len(training) / world_size()) / batch_size)
            check_resumable(state, path, unwrap(network), optimizer, steps)
            if settings is not None:
                last = Path(output_dir) / "model_last.pt"
                if last.is_file() and (kept := read_weights_record(last)) is not None:
                    refuse_other_use(kept, settings, last)
                settings["trained_on"] = read_record(output_dir).get("trained_on")
        else:
            refuse_used(output_dir, dataset_dir, overwrite)
        lists = {"training": training, "validation": validation if val_interval else []}
        lists = {name: [complete_item(item, saved_et_label) for item in items] for name, items in lists.items()}
        # One patient may stand on both sides, to see whether a network can learn it.
        both = {str(item["image"]): item for items in lists.values() for item in items}
        refuse_replacing(list(both.values()), label_map_dir, output_dir, datalist_file, resume)
        if searched is None:
            warn_of_shared_patients(lists["training"], lists["validation"], "The given lists")
        synthetic = check_cases(list(both.values()), searched, "labelled cases", datalist_file, channel_order)
        phantoms = any(synthetic)
        needed = ["training", "validation"] if val_interval else ["training"]
        for name in needed:
            if not lists[name]:
                raise InputError(
                    f"{datalist_file or dataset_dir}: no case for {name}; at least one for each of "
                    f"{' and '.join(needed)} is needed."
                )
            check_ranks(lists[name], f"cases for {name}")
        if pretrained_file is not None:
            if Path(pretrained_file).resolve().is_relative_to(Path(output_dir).resolve()):
                raise InputError(f"{pretrained_file}: lies in --output_dir; choose another for the new training.")
            load_pretrained(network, pretrained_file, reinitialize)
        if (file := pretrained_file or loaded_by_caller(running_config())) is not None and not resume:
            start = start_of_training(file, settings)
        if resume:
            record_resumption(output_dir, epoch=int(state["epoch"]))
        else:
            claim_output(output_dir)
            write_datalist(lists, dataset_dir, Path(output_dir) / "datalist.json")
            facts: dict[str, Any] = recorded_order(both.values(), channel_order)
            if start is not None:
                # What starts from phantoms' weights is not of patients alone.
                phantoms = phantoms or knows_phantoms(start)
            which = dict(zip(both, synthetic, strict=True))
            trained = {str(item["image"]) for item in lists["training"]}
            made = sum(which[image] for image in trained)
            facts |= {"trained_on": trained_on(len(trained) - made, made, start)}
            facts |= {"cases": {name: len(items) for name, items in lists.items()}}
            if settings is not None:
                # For the records of the weights, which the training's handler writes.
                settings["trained_on"] = facts["trained_on"]
            write_record(output_dir, phantoms, **facts)

    on_rank_zero(check_and_claim)
    if pretrained_file is not None and rank() != 0:
        load_pretrained(network, pretrained_file, reinitialize)


def start_of_training(model_file: str, settings: Record | None) -> dict[str, Any]:
    """What the record of a training's weights says of the weights in ``model_file``, which it starts from.

    Raises:
        InputError: they take channels in another order.
    """
    record = read_weights_record(model_file)
    if settings is not None:
        check_start(record, settings, model_file)
    return parent(model_file, record)


def loaded_by_caller(config: Mapping[str, Any] | None) -> str | None:
    """The weights that a caller such as MONAI Label starts a training from, by a handler of its own; None without."""
    for handler in config["train"]["handlers"] if config is not None and brings_own_data(config) else ():
        file = handler.get("load_path") if isinstance(handler, Mapping) else None
        if isinstance(file, str) and Path(file).is_file():
            return file
    return None


def prepare_evaluation(
    items: Items,
    network: torch.nn.Module,
    roi_size: Sequence[int],
    saved_et_label: int,
    model_file: str | Sequence[str],
    dataset_dir: str,
    output_dir: str,
    datalist_file: str | None = None,
    selection: str | None = None,
    overwrite: bool = False,
    channel_order: Sequence[str] = CHANNEL_ORDER,
    settings: Record | None = None,
    map_dir: str | None = None,
) -> None:
    """Check settings, cases and weights, and write configuration and versions into ``output_dir``.

    Serves evaluation (items with labels, chosen by ``selection``) and inference (without). ``model_file`` is one file
    or, for an ensemble, several, whose records are compared with ``settings`` (``scripts.weights_record``). Label maps
    go to ``map_dir``, None where none are saved. With several ranks, rank 0 does all this alone.

    Raises:
        InputError: a setting cannot work, there is no case or a faulty one, the weights are absent, of another network
            or trained with other settings, or ``output_dir`` is in use.
    """

    def check_and_claim() -> None:
        check_window(unwrap(network), "roi_size", roi_size)
        check_et_label(saved_et_label)
        files = ensure_tuple(model_file)
        for file in files:
            # An earlier run's folder is moved away, and the weights with it.
            inside = Path(file).resolve().is_relative_to(Path(output_dir).resolve())
            if inside and (Path(output_dir) / RECORD_FILE).exists():
                raise InputError(f"{output_dir}: holds the weights ({file}); choose another --output_dir.")
        refuse_used(output_dir, dataset_dir, overwrite)
        completed = [complete_item(item, saved_et_label) for item in items]
        refuse_replacing(completed, map_dir, output_dir)
        if not files or len(set(files)) != len(files):
            raise InputError(f"--model_file {list(files)}: name at least one model file, and each once.")
        records = [check_weights(unwrap(network), file, settings) for file in files]
        if not items and selection not in (None, "all") and labeled_items(dataset_dir):
            raise InputError(f"{datalist_file or dataset_dir}: no case for {selection}; choose --cases all.")
        kind = "cases" if selection is None else "labelled cases"
        phantoms = any(check_cases(completed, dataset_dir, kind, datalist_file, channel_order))
        check_ranks(items, kind)
        phantom_weights = [knows_phantoms(record, only=True) for record in records]
        for file, synthetic in zip(files, phantom_weights, strict=True):
            if synthetic:
                logger.warning("%s was trained on synthetic phantoms: its results say nothing about patients.", file)
        claim_output(output_dir)
        facts: dict[str, Any] = {"model_file": files[0] if len(files) == 1 else files, "cases": len(items)}
        facts |= recorded_order(completed, channel_order)
        if settings is not None:
            report_thresholds(settings["postprocessing"], records)
            facts["postprocessing"] = settings["postprocessing"]
        write_record(output_dir, phantoms, phantom_weights=any(phantom_weights), **facts)

    on_rank_zero(check_and_claim)


def report_thresholds(used: Mapping[str, Any], records: Sequence[Record | None]) -> None:
    """Say which thresholds of the post-processing the user has set, and what the weights' records say instead."""
    for name, value in used.items():
        theirs = {r["postprocessing"].get(name) for r in records if r and r.get("postprocessing")}
        if theirs - {value}:
            logger.info("--%s %s, where the weights' record says %s", name, value, ", ".join(map(str, sorted(theirs))))


def recorded_order(items: Iterable[Mapping[str, Any]], channel_order: Sequence[str]) -> dict[str, list[str]]:
    """What ``run.json`` notes of the channels' order where it came from a setting, not from files' names."""
    four_dimensional = any(len(image_files(item["image"])) == 1 for item in items)
    return {"channel_order": list(channel_order)} if four_dimensional else {}


def brings_own_data(config: Mapping[str, Any] | None) -> bool:
    """Whether a caller such as MONAI Label has put a list of its own in place of the cases found by a training."""
    node: Any = config
    for key in ("train", "dataset", "data"):
        node = node.get(key) if isinstance(node, Mapping) else None
    return isinstance(node, list)


def check_ranks(items: Items, what: str) -> None:
    """Refuse more ranks than cases: a rank without work would stop the others where results are gathered.

    Raises:
        InputError: there are more ranks than ``items``.
    """
    if world_size() > len(items):
        raise InputError(f"{world_size()} processes need as many {what}, and there are {len(items)}; start fewer.")


def record_resumption(output_dir: str, epoch: int) -> None:
    """Note in ``run.json`` that a training goes on, and keep the configuration that it started with.

    What a kill left half written goes. Should the recipe have changed meanwhile, the weights are never published.
    """
    remove_unfinished(output_dir)
    config_file = Path(output_dir) / CONFIG_FILE
    config = running_config()
    record = read_record(output_dir)
    changed: list[str] = []
    if config is not None and config_file.is_file():
        changed = changed_recipe(config, config_file)
        told = [key for key in changed if key != "max_epochs"]
        if told:
            logger.warning(
                "The training started with other settings of %s (%s); what the optimiser was given then still holds.",
                ", ".join(told),
                config_file,
            )
        keep_earlier(config_file)
    kept = ("started", "bundle_version", "phantoms", "versions", "resumed", "recipe_changed")
    facts = {key: value for key, value in record.items() if key not in kept}
    history = [*record.get("resumed", []), {"started": record.get("started"), "until_epoch": epoch}]
    recipe_changed = sorted({*record.get("recipe_changed", []), *changed})
    write_record(output_dir, bool(record.get("phantoms")), **facts, resumed=history, recipe_changed=recipe_changed)


def check_settings(config: Mapping[str, Any] | None = None) -> None:
    """Refuse what cannot work whatever the data, and warn of settings that nothing reads.

    From here on wrong input is shown as one line, as in a command.

    Args:
        config: the configuration to check; by default the running one.

    Raises:
        InputError: a value is the text "true" or "false", as the command line leaves a switch in lower case, and which
            Python takes for true, both; the device or precision does not exist; a package is not installed that a part
            needs; or torchrun started several processes for a configuration of one.
    """
    show_input_errors()
    config = running_config() or {} if config is None else config
    for name, value in _leaves(config):
        if isinstance(value, str) and value in ("true", "false"):
            raise InputError(f"--{name} {value}: write {value.capitalize()}, with a capital.")
        if name.endswith("_target_") and isinstance(value, str):
            check_installed(name, value)
    check_device(config.get("device"))
    precision = config.get("amp_dtype", AMP_DTYPES[0])
    if not left_to_evaluation(precision) and precision not in AMP_DTYPES:
        raise InputError(f"--amp_dtype {precision}: choose one of {', '.join(AMP_DTYPES)}.")
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started > 1 and config.get("world_size") == 1:
        raise InputError(
            f"{started} processes were started (WORLD_SIZE) for a configuration of one; add multi_gpu_train.json, "
            "multi_gpu_evaluate.json or multi_gpu_inference.json to --config_file."
        )
    # What a caller's own lists and lengths replace is read by nothing any more, and no one has mistyped it.
    if launched_rank() != 0 or brings_own_data(config):
        return
    text = json.dumps(_without_tracking(config), default=str)
    for name in config:
        known = name in READ_BY_MONAI or name in TRACKING or name in _own_settings()
        if not known and not re.search(rf"@{re.escape(name)}\b", text):
            close = difflib.get_close_matches(name, list(config), 2)
            hint = next((f"; did you mean {other}?" for other in close if other != name), ".")
            logger.warning("Nothing reads the setting %s%s", name, hint)


@functools.cache
def _own_settings() -> frozenset[str]:
    """Settings of the bundle's main configurations, each of which is read in at least one workflow."""
    folder = Path(__file__).parent.parent / "configs"
    files = [folder / name for name in ("train.json", "evaluate.json", "inference.json")]
    return frozenset(key for file in files if file.is_file() for key in json.loads(file.read_text(encoding="utf-8")))


def _without_tracking(node: Any) -> Any:
    """A configuration without what MONAI adds for ``--tracking mlflow``."""
    if isinstance(node, Mapping):
        return {key: _without_tracking(value) for key, value in node.items() if key not in TRACKING}
    if isinstance(node, (list, tuple)):
        return [_without_tracking(v) for v in node if not (isinstance(v, Mapping) and v.get("_target_") == MLFLOW)]
    return node


def check_installed(name: str, target: str) -> None:
    """Refuse a part whose package is absent, before MONAI fails on it with a page of text.

    Raises:
        InputError: a package is not installed; the message names it.
    """
    if not re.match(r"[A-Za-z_]", target):
        # An expression or a reference, which only evaluation can tell.
        return
    packages = PACKAGES_BEHIND.get(target, (target.split(".")[0],) if "." in target else ())
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise InputError(f"{name} {target}: needs the package {package}, which is absent; pip install {package}.")


def left_to_evaluation(value: Any) -> bool:
    """Whether a value is a part, an expression or a reference, which only the configuration's evaluation can tell."""
    return isinstance(value, Mapping) or (isinstance(value, str) and value.startswith(("$", "@")))


def check_device(device: Any) -> None:
    """Refuse a device that is none, or not there.

    Raises:
        InputError: ``device`` is no name of a device, or names a GPU that this machine does not have.
    """
    if device is None or left_to_evaluation(device):
        return
    try:
        # What torch makes of a bare number depends on the machine.
        name = str(device if isinstance(device, torch.device) else torch.device(str(device)))
    except RuntimeError as error:
        raise InputError(f"--device {device}: no such device; write cpu, cuda, or cuda:<number>.") from error
    found = re.fullmatch(r"cuda(:(\d+))?", name)
    if found and int(found[2] or 0) >= (count := torch.cuda.device_count()):
        raise InputError(f"--device {device}: this machine has {count} GPUs that torch can use; name one, or cpu.")


def _leaves(node: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    children = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list) else None
    if children is None:
        yield name, node
        return
    for key, child in children:
        yield from _leaves(child, f"{name}#{key}" if name else str(key))


def check_window(network: torch.nn.Module, name: str, size: Sequence[int]) -> None:
    """Refuse a patch or window that ``network`` cannot take, before hours of work lead up to it.

    Raises:
        InputError: a size is not a multiple of the network's, or all are the smallest.
    """
    multiple = int(getattr(network, "size_multiple", 1))
    if any(n < multiple or n % multiple for n in size) or (multiple > 1 and all(n == multiple for n in size)):
        raise InputError(
            f"--{name} {list(size)}: each must be a multiple of {multiple}, and one of them at least {2 * multiple}."
        )


def refuse_used(output_dir: str, dataset_dir: str, overwrite: bool) -> None:
    """Make sure, before anything is read, that a run's results can have a folder of their own.

    Raises:
        InputError: ``output_dir`` holds an earlier run (unless ``overwrite``), or the data, or is a file.
    """
    folder = Path(output_dir)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: not a folder; choose another --output_dir.")
    if Path(dataset_dir).exists() and Path(dataset_dir).resolve().is_relative_to(folder.resolve()):
        raise InputError(f"{folder}: holds the data ({dataset_dir}); choose another --output_dir.")
    if (folder / RECORD_FILE).exists() and not overwrite:
        raise InputError(
            f"{folder}: holds an earlier run; choose another --output_dir, or add --overwrite True "
            "(the earlier folder is then kept under a dated name)."
        )


def refuse_replacing(
    items: Items, map_dir: str | None, output_dir: str, datalist_file: str | None = None, resume: bool = False
) -> None:
    """Make sure, before anything is read at length, that no result takes the place of a file that the run reads.

    Args:
        items: what the run reads.
        map_dir: folder for label maps and maps of regions; None where none are saved.
        output_dir: the run's folder, which is moved away where it holds an earlier run.
        datalist_file: a training's, also read; one of the run's own is written to ``output_dir``.
        resume: the run goes on in ``output_dir``, which is then not moved, nor is its datalist written again.

    Raises:
        InputError: a file to be written is one of them, whatever links lead there, or they would be moved away.
    """
    read = [file for item in items for file in (*image_files(item["image"]), item.get("label")) if file]
    written = [path for item in items if map_dir is not None for path in map_files(str(item["case"]), map_dir)]
    if not resume and (Path(output_dir) / RECORD_FILE).exists():
        folder = os.path.realpath(output_dir)
        for file in read:
            if any(Path(path).is_relative_to(folder) for path in (os.path.abspath(file), os.path.realpath(file))):
                raise InputError(f"{output_dir}: holds {file}, which the run reads; choose another --output_dir.")
    elif not resume and datalist_file is not None:
        read.append(datalist_file)
        written.append(Path(output_dir) / "datalist.json")
    known = {_identity(file): file for file in read}
    for path in written:
        if (identity := _identity(path)) is not None and identity in known:
            raise InputError(f"{path}: would be written over {known[identity]}, an input; choose another --output_dir.")


def _identity(path: str | Path) -> tuple[int, int] | None:
    """What is the same for all links to a file; None where there is no file."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def claim_output(output_dir: str) -> None:
    """Keep the folder of an earlier run under a dated name, so that nothing of two runs mixes."""
    if (Path(output_dir) / RECORD_FILE).exists():
        logger.info("Kept the earlier run as %s", keep_earlier(output_dir))


def publish(output_dir: str, bundle_root: str, enabled: bool = True) -> None:
    """Copy the best weights of a plain training and their record to ``models``, where MONAI's tools look for them.

    An earlier file there, its record, and a TorchScript made of it, are kept under dated names. Not published are
    weights from phantoms, and those of a training whose recipe is not that of train.json, since inference.json fits
    that alone.

    Args:
        output_dir: folder of the run.
        bundle_root: root of the bundle.
        enabled: false in every variation of the plain recipe.
    """
    if rank() != 0:
        return
    best = Path(output_dir) / "model.pt"
    record = read_record(output_dir)
    changed = changed_recipe(running_config(), Path(bundle_root) / "configs" / "train.json")
    # A training that was resumed with other settings is of no one recipe.
    changed = sorted({*changed, *record.get("recipe_changed", [])})
    if not enabled or changed:
        what = f" ({', '.join(changed)})" if changed else ""
        logger.info("Weights: %s; not published, since this is a variation of the plain recipe%s.", best, what)
        return
    if record.get("phantoms"):
        logger.warning("Weights: %s; not published, since they come from synthetic phantoms.", best)
        return
    if not record_file(best).is_file():
        logger.warning("Weights: %s; not published, since their record (%s) is gone.", best, record_file(best).name)
        return
    target = Path(bundle_root) / "models" / "model.pt"
    pairs = ((best, target), (record_file(best), record_file(target)))
    if all(there.is_file() and filecmp.cmp(own, there, shallow=False) for own, there in pairs):
        logger.info("Weights: %s; published already as %s", best, target)
        return
    with replacing(target) as temporary, replacing(record_file(target)) as temporary_record:
        shutil.copyfile(best, temporary)
        shutil.copyfile(record_file(best), temporary_record)
        # What lies beside earlier weights, their record and their export, says nothing of these.
        for file in (target, target.with_suffix(".ts"), target.with_name(RECORD_FILE)):
            if (kept := keep_earlier(file)) is not None:
                logger.info("Kept the earlier %s as %s", file, kept)
                if file == target and record_file(file).exists():
                    record_file(file).rename(record_file(kept))
    logger.info("Published %s as %s", best, target)


def changed_recipe(config: Mapping[str, Any] | None, plain: Path) -> list[str]:
    """Keys in which ``config`` departs from the configuration file ``plain``, but for ``NOT_OF_THE_RECIPE``.

    Where a caller brings its own data, what it sets besides (length, handlers) is no departure either: MONAI Label
    trains the network of inference.json, and expects the weights in ``models``.
    """
    if config is None:
        return []
    config = _without_tracking(config)
    wanted = _without_tracking(ConfigParser.load_config_file(str(plain)))
    if brings_own_data(config):
        for path in SET_BY_CALLERS:
            *parents, last = path.split("#")
            there, here = wanted, config
            for key in parents:
                there, here = there[key], here[key]
            there[last] = here[last]
    return sorted(
        key
        for key in {*config, *wanted}
        if key not in NOT_OF_THE_RECIPE and _comparable(config.get(key)) != _comparable(wanted.get(key))
    )


def _comparable(value: Any) -> str:
    # As JSON has it, where a tuple from the command line is a list; and MONAI writes # as :: in what it runs.
    return json.dumps(value, default=str, sort_keys=True).replace("#", "::")
