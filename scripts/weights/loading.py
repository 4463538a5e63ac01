# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Model files: finding them, checking that they fit a network, and starting a training from one."""

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.networks.utils import copy_model_state
from monai.utils import ensure_tuple
from scripts.utils.distributed import launched_rank, rank, unwrap
from scripts.utils.errors import InputError
from scripts.utils.files import BUNDLE_ROOT, CONFIGS, refuse_pointer
from scripts.utils.tensors import load_torch
from scripts.weights.record import Record, read_weights_record
from scripts.weights.settings import refuse_other_use

logger = logging.getLogger(__name__)


def find_model_file(output_dir: str, bundle_root: str) -> str:
    """Path of the weights to evaluate: the run's own in ``output_dir``, or else the bundle's in ``models``."""
    own = Path(output_dir) / "model.pt"
    found = own if own.is_file() else Path(bundle_root) / "models" / "model.pt"
    if launched_rank() == 0:
        logger.info("Weights: %s", found)
    return str(found)


def check_weights(network: torch.nn.Module, model_file: str, settings: Record | None = None) -> Record | None:
    """Check that ``model_file`` fits ``network`` and, by its record, the other settings.

    The settings (``weights_settings``) are not checked if they are None.

    Returns:
        The weights' record. If there is none, the result is None, and a warning is logged.

    Raises:
        InputError: the file is absent or unreadable, or it holds another network's weights or weights that were trained
            with other settings; the message names a tensor or a setting.
    """
    refuse_pointer(model_file)
    if not Path(model_file).is_file():
        if not Path(model_file).is_absolute() and (BUNDLE_ROOT / model_file).is_file():
            raise InputError(
                f"{model_file}: no such file in this folder; start the run in the bundle's root, or add "
                f"--bundle_root {BUNDLE_ROOT}."
            )
        # The package of the starter weights has them as its own, without this overlay.
        starter = "add configs/starter.yaml to use the starter weights, " * (CONFIGS / "starter.yaml").is_file()
        raise InputError(
            f"{model_file}: no such file; {starter}train first, import weights (panet import), or name a model file."
        )
    record = read_weights_record(model_file)
    if record is not None and settings is not None:
        refuse_other_use(record, settings, model_file)
    difference = weights_difference(network, load_torch(model_file))
    if difference:
        raise InputError(
            f"{model_file}: weights of another network ({difference}); use the configuration it was trained with."
        )
    return record


def weights_difference(network: torch.nn.Module, state: Any) -> str:
    """The first reason, in words, why ``state`` cannot be the weights of ``network``; empty if it can.

    Example:
        >>> weights_difference(torch.nn.Conv2d(4, 8, 3), torch.nn.Conv2d(1, 8, 3).state_dict())
        'weight is [8, 1, 3, 3], not [8, 4, 3, 3]'
    """
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


def load_pretrained(
    network: torch.nn.Module, model_file: str | Path, reinitialize: str | Sequence[str] = ()
) -> list[str]:
    """Load those tensors of ``model_file`` that fit ``network``; rank 0 logs every tensor that is left out.

    The file holds bare weights of this network or of a related one. ``reinitialize`` names modules to leave at their
    initial values, such as ``outputs`` (the output convolutions) or ``head`` (the attention-guiding head).

    Returns:
        Names of the network's tensors that were not loaded and keep their initial values.

    Raises:
        InputError: the file is absent or unreadable, no tensor in it fits, or the network has no such module.
    """
    network = unwrap(network)
    reinitialize = ensure_tuple(reinitialize)
    for name in reinitialize:
        if not any(key.startswith(f"{name}.") for key in network.state_dict()):
            modules = ", ".join(child for child, _ in network.named_children())
            raise InputError(f"--reinitialize {name}: the network has no such module; it has {modules}.")
    state = load_torch(model_file)
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise InputError(f"{model_file}: no state dict; give a model file such as models/model.pt.")
    exclude = "|".join(rf"^{re.escape(name)}\." for name in reinitialize) or None
    _, loaded, left = copy_model_state(network, dict(state), exclude_vars=exclude)
    if not loaded:
        raise InputError(f"{model_file}: nothing in it fits this network; give weights of a related one.")
    if rank() != 0:
        return list(left)
    own = network.state_dict()
    for name in left:
        why = "not in the file"
        if exclude and re.search(exclude, name):
            why = "on request"
        elif name in state:
            why = f"{list(state[name].shape)} in the file, {list(own[name].shape)} here"
        logger.warning("Left at its initial value: %s (%s)", name, why)
    for name in sorted(set(state) - set(own)):
        logger.warning("Not taken from the file: %s (this network has no such tensor)", name)
    logger.info("%s: %d of %d tensors loaded", model_file, len(loaded), len(own))
    return list(left)
