# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""What a workflow's ``run`` list does before and after its engine.

Before: refuse what would fail later, and write down what is run. After a training: publish its weights. Constructing a
workflow calls none of this, so it succeeds with no data and no weights at hand.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser

from scripts.data.checks import check_cases
from scripts.data.datalist import write_datalist
from scripts.errors import InputError
from scripts.files import keep_earlier, load_torch, replacing
from scripts.run_record import read_record, write_record

logger = logging.getLogger(__name__)

Items = Sequence[Mapping[str, Any]]


def prepare_training(
    datalist: dict[str, list[dict[str, Any]]],
    dataset_dir: str,
    output_dir: str,
    datalist_file: str | None = None,
    validation: bool = True,
    overwrite: bool | str = False,
) -> None:
    """Check the cases, then write split, configuration and versions into ``output_dir``.

    Raises:
        InputError: there are too few cases or a faulty one, or ``output_dir`` holds an earlier training.
    """
    phantoms = check_cases(datalist["all"], dataset_dir, "labelled cases", datalist_file)
    needed = ("training", "validation") if validation else ("training",)
    for name in needed:
        if not datalist[name]:
            raise InputError(
                f"{datalist_file or dataset_dir}: no case for {name}; at least one for training and one for "
                "validation are needed."
            )
    _refuse_used(output_dir, ("model.pt", "model_last.pt", "trainer_state.pt"), "training", overwrite)
    write_datalist(datalist, dataset_dir, Path(output_dir) / "datalist.json")
    write_record(output_dir, phantoms, cases={name: len(datalist[name]) for name in ("training", "validation")})


def prepare_evaluation(
    items: Items,
    dataset_dir: str,
    network: torch.nn.Module,
    model_file: str,
    output_dir: str,
    datalist_file: str | None = None,
    overwrite: bool | str = False,
) -> None:
    """Check cases and weights, and write configuration and versions into ``output_dir``.

    Serves evaluation (items with labels) and inference (without).

    Raises:
        InputError: there is no case or a faulty one, the weights are absent or of another network, or ``output_dir``
            holds results of the same cases.
    """
    phantom_weights = check_weights(network, model_file)
    kind = "labelled cases" if items and "label" in items[0] else "cases"
    phantoms = check_cases(items, dataset_dir, kind, datalist_file)
    if phantom_weights:
        logger.warning("%s was trained on synthetic phantoms: its results say nothing about patients.", model_file)
    _refuse_used(output_dir, [f"{item['case']}.nii.gz" for item in items], "segmentation", overwrite)
    write_record(output_dir, phantoms, phantom_weights=phantom_weights, model_file=str(model_file), cases=len(items))


def flag(value: Any) -> bool:
    """A switch, also where the command line gives it as text: ``--overwrite true`` arrives as a string.

    Raises:
        InputError: neither true nor false.
    """
    text = str(value).lower()
    if text not in ("true", "false"):
        raise InputError(f"{value}: a switch is true or false.")
    return text == "true"


def _refuse_used(output_dir: str, files: Sequence[str], what: str, overwrite: bool | str) -> None:
    folder = Path(output_dir)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: not a folder; choose another --output_dir.")
    present = [name for name in files if (folder / name).exists()]
    if present and not flag(overwrite):
        raise InputError(
            f"{folder / present[0]}: exists from an earlier {what}; choose another --output_dir, "
            "or add --overwrite true."
        )


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


def publish(output_dir: str, bundle_root: str, enabled: bool | str = True) -> None:
    """Copy the best weights of a training to ``models/model.pt``, where MONAI's tools look for them.

    An earlier file there is kept under a dated name. Nothing is published from phantoms, or if inference.json's network
    is another one.

    Args:
        output_dir: folder of the run.
        bundle_root: root of the bundle.
        enabled: false in every variation of the plain recipe.
    """
    best = Path(output_dir) / "model.pt"
    if not flag(enabled):
        logger.info("Weights: %s (not published: a variation of the plain recipe)", best)
        return
    if read_record(output_dir).get("phantoms"):
        logger.warning("Weights: %s; not published, since they come from synthetic phantoms.", best)
        return
    parser = ConfigParser()
    parser.read_config(str(Path(bundle_root) / "configs" / "inference.json"))
    difference = weights_difference(parser.get_parsed_content("network_def"), load_torch(best))
    if difference:
        logger.warning("Weights: %s; not published, since inference.json has another network (%s).", best, difference)
        return
    target = Path(bundle_root) / "models" / "model.pt"
    kept = keep_earlier(target)
    if kept is not None:
        logger.info("Kept the earlier weights as %s", kept)
    with replacing(target) as temporary:
        shutil.copyfile(best, temporary)
    logger.info("Published %s as %s", best, target)
