# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""What a workflow's ``run`` list does before and after its engine.

Before: refuse what would fail later, and write down what is run. After a training: publish its weights. Constructing a
workflow calls none of this, so it succeeds with no data and no weights at hand.
"""

from __future__ import annotations

import difflib
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
from scripts.errors import InputError
from scripts.files import keep_earlier, load_torch, replacing
from scripts.run_record import RECORD_FILE, read_record, running_config, write_record
from scripts.transforms import check_et_label

logger = logging.getLogger(__name__)

Items = Sequence[Mapping[str, Any]]

# Keys that MONAI reads, not another key.
READ_BY_MONAI = {"imports", "initialize", "run"}
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
    "amp",
    "amp_dtype",
    "rank",
    "device",
}


def prepare_training(
    training: Items,
    validation: Items,
    network: torch.nn.Module,
    patch_size: Sequence[int],
    roi_size: Sequence[int],
    saved_et_label: int,
    dataset_dir: str,
    output_dir: str,
    datalist_file: str | None = None,
    overwrite: bool = False,
) -> None:
    """Check settings and cases, then write split, configuration and versions into ``output_dir``.

    Raises:
        InputError: a setting cannot work, there are too few cases or a faulty one, or ``output_dir`` is in use.
    """
    check_window(network, "patch_size", patch_size)
    check_window(network, "roi_size", roi_size)
    check_et_label(saved_et_label)
    # One patient may stand on both sides, to see whether a network can learn it.
    both = {str(item["image"]): item for item in [*training, *validation]}
    phantoms = check_cases(list(both.values()), dataset_dir, "labelled cases", datalist_file)
    for name, items in (("training", training), ("validation", validation)):
        if not items:
            raise InputError(
                f"{datalist_file or dataset_dir}: no case for {name}; at least one for training and one for "
                "validation are needed."
            )
    claim_output(output_dir, dataset_dir, overwrite)
    lists = {"training": training, "validation": validation}
    write_datalist(lists, dataset_dir, Path(output_dir) / "datalist.json")
    write_record(output_dir, phantoms, cases={name: len(items) for name, items in lists.items()})


def prepare_evaluation(
    items: Items,
    network: torch.nn.Module,
    roi_size: Sequence[int],
    saved_et_label: int,
    model_file: str,
    dataset_dir: str,
    output_dir: str,
    datalist_file: str | None = None,
    selection: str | None = None,
    overwrite: bool = False,
) -> None:
    """Check settings, cases and weights, and write configuration and versions into ``output_dir``.

    Serves evaluation (items with labels, chosen by ``selection``) and inference (without).

    Raises:
        InputError: a setting cannot work, there is no case or a faulty one, the weights are absent or of another
            network, or ``output_dir`` is in use.
    """
    check_window(network, "roi_size", roi_size)
    check_et_label(saved_et_label)
    phantom_weights = check_weights(network, model_file)
    if not items and selection not in (None, "all") and labeled_items(dataset_dir):
        raise InputError(f"{datalist_file or dataset_dir}: no case for {selection}; choose --cases all.")
    kind = "cases" if selection is None else "labelled cases"
    phantoms = check_cases(items, dataset_dir, kind, datalist_file)
    if phantom_weights:
        logger.warning("%s was trained on synthetic phantoms: its results say nothing about patients.", model_file)
    claim_output(output_dir, dataset_dir, overwrite)
    write_record(output_dir, phantoms, phantom_weights=phantom_weights, model_file=str(model_file), cases=len(items))


def check_settings(config: Mapping[str, Any] | None = None) -> None:
    """Refuse what the command line makes of a switch in lower case, and warn of settings that nothing reads.

    Args:
        config: the configuration to check; by default the running one.

    Raises:
        InputError: a value is the text "true" or "false", which Python takes for true, both.
    """
    config = running_config() or {} if config is None else config
    for name, value in _leaves(config):
        if isinstance(value, str) and value in ("true", "false"):
            raise InputError(f"--{name} {value}: write {value.capitalize()}, with a capital.")
    text = json.dumps(config, default=str)
    for name in config:
        if name not in READ_BY_MONAI and not re.search(rf"@{re.escape(name)}\b", text):
            close = difflib.get_close_matches(name, list(config), 2)
            hint = next((f"; did you mean {other}?" for other in close if other != name), ".")
            logger.warning("Nothing reads the setting %s%s", name, hint)


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


def claim_output(output_dir: str, dataset_dir: str, overwrite: bool) -> None:
    """Make sure that a run's results have a folder of their own.

    With ``overwrite``, the folder of an earlier run is kept under a dated name, so that nothing of two runs mixes.

    Raises:
        InputError: ``output_dir`` holds an earlier run, or the data, or is a file.
    """
    folder = Path(output_dir)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: not a folder; choose another --output_dir.")
    if Path(dataset_dir).is_dir() and Path(dataset_dir).resolve().is_relative_to(folder.resolve()):
        raise InputError(f"{folder}: holds the data ({dataset_dir}); choose another --output_dir.")
    if not (folder / RECORD_FILE).exists():
        return
    if not overwrite:
        raise InputError(
            f"{folder}: holds an earlier run; choose another --output_dir, or add --overwrite True "
            "(the earlier folder is then kept under a dated name)."
        )
    logger.info("Kept the earlier run as %s", keep_earlier(folder))


def find_model_file(output_dir: str, bundle_root: str) -> str:
    """Weights to evaluate: the run's own in ``output_dir``, else the bundle's in ``models``."""
    own = Path(output_dir) / "model.pt"
    return str(own if own.is_file() else Path(bundle_root) / "models" / "model.pt")


def check_weights(network: torch.nn.Module, model_file: str) -> bool:
    """Check that ``model_file`` fits ``network``.

    Returns:
        Whether the weights come from synthetic phantoms, by the record beside the file.

    Raises:
        InputError: the file is absent or unreadable, or holds another network's weights; the message names a tensor.
    """
    if not Path(model_file).is_file():
        raise InputError(
            f"{model_file}: no such file; train first, import weights (python -m scripts.import_checkpoint), "
            "or name a model file."
        )
    state = load_torch(model_file)
    difference = weights_difference(network, state)
    if difference:
        raise InputError(
            f"{model_file}: weights of another network ({difference}); use the configuration it was trained with."
        )
    record = read_record(Path(model_file).parent)
    return bool(record.get("phantoms"))


def weights_difference(network: torch.nn.Module, state: Any) -> str:
    """What keeps ``state`` from being the weights of ``network``, in words; empty if nothing does."""
    if not isinstance(state, Mapping):
        return "no state dict"
    wanted = network.state_dict()
    for name in wanted:
        if name not in state:
            return f"no {name}"
        if wanted[name].shape != getattr(state[name], "shape", None):
            return f"{name} is {list(getattr(state[name], 'shape', []))}, not {list(wanted[name].shape)}"
    extra = [name for name in state if name not in wanted]
    return f"unknown {extra[0]}" if extra else ""


def publish(output_dir: str, bundle_root: str, enabled: bool = True) -> None:
    """Copy the best weights of a plain training to ``models/model.pt``, where MONAI's tools look for them.

    An earlier file there, and a TorchScript made of it, are kept under dated names. Not published are weights from
    phantoms, and those of a training whose recipe is not that of train.json, since inference.json fits that alone.

    Args:
        output_dir: folder of the run.
        bundle_root: root of the bundle.
        enabled: false in every variation of the plain recipe.
    """
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
    return sorted(k for k in {*config, *wanted} if k not in NOT_OF_THE_RECIPE and config.get(k) != wanted.get(k))
