# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""What a workflow's ``run`` list does before and after its engine.

Before: refuse what would fail later, and write down what is run. After a training: publish its weights. Constructing a
workflow calls none of this, so it succeeds with no data and no weights at hand.
"""

from __future__ import annotations

import difflib
import importlib.util
import json
import logging
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser

from scripts.data.checks import check_cases
from scripts.data.datalist import labeled_items, write_datalist
from scripts.distributed import rank, rank_zero_first, unwrap, world_size
from scripts.errors import InputError
from scripts.files import keep_earlier, load_torch, replacing
from scripts.run_record import CONFIG_FILE, RECORD_FILE, read_record, running_config, write_record
from scripts.training_state import check_resumable, newest_state
from scripts.transforms import check_et_label
from scripts.weights import check_weights, load_pretrained

logger = logging.getLogger(__name__)

Items = Sequence[Mapping[str, Any]]

# Keys that MONAI reads, not another key.
READ_BY_MONAI = {"imports", "initialize", "run", "finalize"}
# Packages that MONAI's own parts need, only where they are used.
PACKAGES_BEHIND = {"MLFlowHandler": "mlflow", "monai.handlers.MLFlowHandler": "mlflow"}
# Keys that say where and on what a training runs, not what it is.
NOT_OF_THE_RECIPE = {
    "bundle_root",
    "dataset_dir",
    "output_dir",
    "overwrite",
    "publish",
    "et_label",
    "saved_et_label",
    "num_workers",
    "cache_rate",
    "resume",
    "amp",
    "amp_dtype",
    "rank",
    "world_size",
    "device",
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
    pretrained_file: str | None = None,
    reinitialize: Sequence[str] = (),
    resume: bool = False,
) -> None:
    """Check settings and cases, then write split, configuration and versions into ``output_dir``.

    With several ranks, rank 0 does so alone; every rank loads ``pretrained_file``, where one is named.

    Raises:
        InputError: a setting cannot work, there are too few cases or a faulty one, ``output_dir`` is in use, or, with
            ``resume``, holds nothing to resume from.
    """
    with rank_zero_first():
        if rank() == 0:
            check_window(unwrap(network), "patch_size", patch_size)
            check_window(unwrap(network), "roi_size", roi_size)
            check_et_label(saved_et_label)
            if resume:
                path, state = newest_state(output_dir)
                check_resumable(state, path, unwrap(network), optimizer)
            else:
                refuse_used(output_dir, dataset_dir, overwrite)
            lists = {"training": training, "validation": validation}
            if val_interval == 0:
                lists["validation"] = []
            # One patient may stand on both sides, to see whether a network can learn it.
            both = {str(item["image"]): item for items in lists.values() for item in items}
            phantoms = check_cases(list(both.values()), dataset_dir, "labelled cases", datalist_file)
            needed = lists if val_interval else ["training"]
            for name in needed:
                if not lists[name]:
                    raise InputError(
                        f"{datalist_file or dataset_dir}: no case for {name}; at least one for each of "
                        f"{' and '.join(needed)} is needed."
                    )
                check_ranks(lists[name], f"cases for {name}")
            if pretrained_file is not None:
                load_torch(pretrained_file)
                # What starts from phantoms' weights is not of patients alone.
                phantoms = phantoms or bool(read_record(Path(pretrained_file).parent).get("phantoms"))
            if resume:
                record_resumption(output_dir, epoch=int(state["epoch"]))
            else:
                claim_output(output_dir)
                write_datalist(lists, dataset_dir, Path(output_dir) / "datalist.json")
                write_record(output_dir, phantoms, cases={name: len(items) for name, items in lists.items()})
    if pretrained_file is not None and not resume:
        load_pretrained(network, pretrained_file, reinitialize)


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
) -> None:
    """Check settings, cases and weights, and write configuration and versions into ``output_dir``.

    Serves evaluation (items with labels, chosen by ``selection``) and inference (without). ``model_file`` is one file
    or, for an ensemble, several. With several ranks, rank 0 does all this alone.

    Raises:
        InputError: a setting cannot work, there is no case or a faulty one, the weights are absent or of another
            network, or ``output_dir`` is in use.
    """
    with rank_zero_first():
        if rank() != 0:
            return
        check_window(unwrap(network), "roi_size", roi_size)
        check_et_label(saved_et_label)
        refuse_used(output_dir, dataset_dir, overwrite)
        files = [model_file] if isinstance(model_file, str) else list(model_file)
        if not files or len(set(files)) != len(files):
            raise InputError(f"--model_file {files}: name at least one model file, and each once.")
        phantom_weights = [check_weights(unwrap(network), file) for file in files]
        if not items and selection not in (None, "all") and labeled_items(dataset_dir):
            raise InputError(f"{datalist_file or dataset_dir}: no case for {selection}; choose --cases all.")
        kind = "cases" if selection is None else "labelled cases"
        phantoms = check_cases(items, dataset_dir, kind, datalist_file)
        check_ranks(items, kind)
        for file, synthetic in zip(files, phantom_weights, strict=True):
            if synthetic:
                logger.warning("%s was trained on synthetic phantoms: its results say nothing about patients.", file)
        claim_output(output_dir)
        facts: dict[str, Any] = {"model_file": files[0] if len(files) == 1 else files, "cases": len(items)}
        write_record(output_dir, phantoms, phantom_weights=any(phantom_weights), **facts)


def check_ranks(items: Items, what: str) -> None:
    """Refuse more ranks than cases: a rank without work would stop the others where results are gathered.

    Raises:
        InputError: there are more ranks than ``items``.
    """
    if world_size() > len(items):
        raise InputError(
            f"--nproc_per_node: {world_size()} processes for {len(items)} {what}; start {len(items)} at most."
        )


def record_resumption(output_dir: str, epoch: int) -> None:
    """Note in ``run.json`` that a training goes on, and keep the configuration that it started with."""
    config_file = Path(output_dir) / CONFIG_FILE
    config = running_config()
    record = read_record(output_dir)
    if config is not None and config_file.is_file():
        changed = [k for k in changed_recipe(config, config_file) if k != "max_epochs"]
        if changed:
            logger.warning("The training started with other settings of %s (%s).", ", ".join(changed), config_file)
        keep_earlier(config_file)
    facts = {key: value for key, value in record.items() if key not in ("started", "phantoms", "versions", "resumed")}
    history = [*record.get("resumed", []), {"started": record.get("started"), "until_epoch": epoch}]
    write_record(output_dir, bool(record.get("phantoms")), **facts, resumed=history)


def check_settings(config: Mapping[str, Any] | None = None) -> None:
    """Refuse what cannot work whatever the data, and warn of settings that nothing reads.

    Args:
        config: the configuration to check; by default the running one.

    Raises:
        InputError: a value is the text "true" or "false", as the command line leaves a switch in lower case, and which
            Python takes for true, both; the device is not there; or a package is not installed that a part needs.
    """
    config = running_config() or {} if config is None else config
    for name, value in _leaves(config):
        if isinstance(value, str) and value in ("true", "false"):
            raise InputError(f"--{name} {value}: write {value.capitalize()}, with a capital.")
        if name.endswith("_target_") and isinstance(value, str):
            check_installed(name, value)
    check_device(config.get("device"))
    if rank() != 0:
        return
    text = json.dumps(config, default=str)
    for name, value in config.items():
        # Null is how an overlay switches off what it replaces.
        if value is not None and name not in READ_BY_MONAI and not re.search(rf"@{re.escape(name)}\b", text):
            close = difflib.get_close_matches(name, list(config), 2)
            hint = next((f"; did you mean {other}?" for other in close if other != name), ".")
            logger.warning("Nothing reads the setting %s%s", name, hint)


def check_installed(name: str, target: str) -> None:
    """Refuse a part whose package is absent, before MONAI fails on it with a page of text.

    Raises:
        InputError: the package is not installed; the message names it.
    """
    package = PACKAGES_BEHIND.get(target, target.split(".")[0] if "." in target else "monai")
    if importlib.util.find_spec(package) is None:
        raise InputError(f"{name} {target}: needs the package {package}, which is absent; pip install {package}.")


def check_device(device: Any) -> None:
    """Refuse a device that is not there.

    Raises:
        InputError: ``device`` names a GPU that this machine does not have.
    """
    found = re.fullmatch(r"cuda(:(\d+))?", str(device))
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
    if Path(dataset_dir).is_dir() and Path(dataset_dir).resolve().is_relative_to(folder.resolve()):
        raise InputError(f"{folder}: holds the data ({dataset_dir}); choose another --output_dir.")
    if (folder / RECORD_FILE).exists() and not overwrite:
        raise InputError(
            f"{folder}: holds an earlier run; choose another --output_dir, or add --overwrite True "
            "(the earlier folder is then kept under a dated name)."
        )


def claim_output(output_dir: str) -> None:
    """Keep the folder of an earlier run under a dated name, so that nothing of two runs mixes."""
    if (Path(output_dir) / RECORD_FILE).exists():
        logger.info("Kept the earlier run as %s", keep_earlier(output_dir))


def publish(output_dir: str, bundle_root: str, enabled: bool = True) -> None:
    """Copy the best weights of a plain training to ``models/model.pt``, where MONAI's tools look for them.

    An earlier file there, and a TorchScript made of it, are kept under dated names. Not published are weights from
    phantoms, and those of a training whose recipe is not that of train.json, since inference.json fits that alone.

    Args:
        output_dir: folder of the run.
        bundle_root: root of the bundle.
        enabled: false in every variation of the plain recipe.
    """
    if rank() != 0:
        return
    best = Path(output_dir) / "model.pt"
    changed = changed_recipe(running_config(), Path(bundle_root) / "configs" / "train.json")
    if not enabled or changed:
        what = f" ({', '.join(changed)})" if changed else ""
        logger.info("Weights: %s; not published, since this is a variation of the plain recipe%s.", best, what)
        return
    if read_record(output_dir).get("phantoms"):
        logger.warning("Weights: %s; not published, since they come from synthetic phantoms.", best)
        return
    target = Path(bundle_root) / "models" / "model.pt"
    for file in (target, target.with_suffix(".ts")):
        if (kept := keep_earlier(file)) is not None:
            logger.info("Kept the earlier %s as %s", file, kept)
    with replacing(target) as temporary:
        shutil.copyfile(best, temporary)
    logger.info("Published %s as %s", best, target)


def changed_recipe(config: Mapping[str, Any] | None, plain: Path) -> list[str]:
    """Keys in which ``config`` departs from the configuration file ``plain``, but for those of place and machine."""
    if config is None:
        return []
    wanted = ConfigParser.load_config_file(str(plain))
    return sorted(
        key
        for key in {*config, *wanted}
        if key not in NOT_OF_THE_RECIPE and _comparable(config.get(key)) != _comparable(wanted.get(key))
    )


def _comparable(value: Any) -> str:
    # As JSON has it, where a tuple from the command line is a list; and MONAI writes # as :: in what it runs.
    return json.dumps(value, default=str, sort_keys=True).replace("#", "::")
