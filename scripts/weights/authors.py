# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Conversion of checkpoints of the PANet authors' program into weights of this bundle.

The checkpoint may hold any of the authors' networks: PANet, U-Net, enhanced U-Net, attention U-Net or cascaded U-Net.
The names and shapes of the tensors define the network, so any width, both heads, both ways of upsampling and all
switches are recognized. The authors' code stores some tensors that it never uses: activations of layers that do not
activate, and shortcuts beside an identity. These tensors are dropped. Everything else must fit exactly.
"""

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from scripts.brats import SEQUENCES
from scripts.data.postprocessing import THRESHOLDS
from scripts.networks import AttentionUNet, CascadedUNet, PriorAttentionNet
from scripts.utils.errors import InputError
from scripts.utils.files import CONFIGS
from scripts.weights.record import UNKNOWN, Record
from scripts.weights.settings import network_definition, network_options, network_overlay

# Index of each of this bundle's outputs among the authors' exclusive classes: background, necrotic core, edema, ET.
EXCLUSIVE_ORDER = (0, 3, 1, 2)
# The authors' module names (left) and this bundle's (right).
_HEAD_NAMES = {
    "fcn": {"conv5_4": "reduce4", "conv4_0": "fuse3", "conv4_3": "reduce3", "conv3_0": "fuse2", "conv_out": "output"},
    "parallel": {
        "conv3_0": "reduce2",
        "conv4_0": "reduce3",
        "conv5_0": "reduce4",
        "conv4_5": "join_deep",
        "conv3_4": "join_shallow",
        "conv_out": "output",
    },
}
_DECODER_BLOCKS = ("conv3_1", "conv2_2", "conv1_3", "conv0_4")
_DECONVOLUTIONS = ("up4_3", "up3_2", "up2_1", "up1_0")
_GATES = ("gate4_3", "gate3_2", "gate2_1", "gate1_0")
_GATE_LAYERS = {"W_g": "gating", "W_x": "skip", "psi.0": "psi"}
# The two U-Nets of the cascade have these names here, too.
_STAGES = ("first_stage", "second_stage")
# The authors' code stores two things in every residual block that nothing reads: a shortcut where the identity serves,
# and the activation of a layer that does not activate. With group normalization this layer is the sum, otherwise it is
# the last layer before the sum. The layers of a gate do not activate either.
_SHORTCUT = r"identity_mapping\..+"
_GATE_ACTIVATION = rf"({'|'.join(_GATES)})\.(W_g|W_x|psi\.0)\.act\..+"
_DEAD = {
    norm_first: re.compile(
        rf"(backbone\.conv[0-4]_0|{'|'.join(_DECODER_BLOCKS)})\.({activation}|{_SHORTCUT})|{_GATE_ACTIVATION}"
    )
    for norm_first, activation in ((True, r"act\.weight"), (False, r"(conv2|conv3)\.act\..+"))
}


def read_state_dict(checkpoint: Any, path: str | Path) -> dict[str, torch.Tensor]:
    """The weights of a loaded checkpoint, which keeps them under ``net`` or is itself the state dict."""
    state = checkpoint.get("net", checkpoint) if isinstance(checkpoint, Mapping) else {}
    named = isinstance(state, Mapping) and all(isinstance(name, str) for name in state)
    if not state or not named or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise InputError(f"{path}: no state dict under 'net'; expected a checkpoint of the PANet authors' program.")
    return {name.removeprefix("module."): value for name, value in state.items()}


def network_class(state: Mapping[str, torch.Tensor]) -> type[PriorAttentionNet] | type[CascadedUNet]:
    """The class of the network by the names in a state dict of the authors' layout."""
    modules = {name.split(".")[0] for name in state}
    if modules & set(_STAGES):
        return CascadedUNet
    return AttentionUNet if modules & set(_GATES) else PriorAttentionNet


def network_arguments(state: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Arguments of ``network_class(state)`` by the names and shapes in a state dict of the authors' layout.

    A KeyError names a tensor that is missing and that every such network has.
    """
    made = network_class(state)
    # The two stages of a cascade differ in their outputs only, and those of the network are those of the second.
    prefix = f"{_STAGES[1]}." if made is CascadedUNet else ""
    # With group normalization the first block is a plain convolution, so the second block shows the kind of blocks.
    norm = "batch" if f"{prefix}backbone.conv1_0.conv1.norm.running_mean" in state else "instance"
    bottleneck = f"{prefix}backbone.conv1_0.conv3.conv.weight" in state
    ends = [f"{prefix}backbone.conv{i}_0.{'conv3' if bottleneck else 'conv2'}.conv.weight" for i in range(5)]
    start = f"{prefix}backbone.conv0_0.conv1.conv.weight"
    if f"{prefix}backbone.conv0_0.0.weight" in state:
        norm = "group"
        start = ends[0] = f"{prefix}backbone.conv0_0.0.weight"
    first = state[start]
    arguments: dict[str, Any] = {
        "spatial_dims": first.dim() - 2,
        "in_channels": first.shape[1],
        "out_channels": state[f"{prefix}convds0.weight"].shape[0],
        "channels": [state[end].shape[0] for end in ends],
        "norm": norm,
        "act": ("prelu", {"init": 0.25}) if f"{prefix}backbone.conv1_0.conv1.act.weight" in state else "relu",
        "upsample": "deconv" if f"{prefix}up4_3.trans_conv.weight" in state else "interpolate",
        "bottleneck": bottleneck,
    }
    if made is not PriorAttentionNet:
        return arguments
    arguments["prior_attention"] = "one_stage.conv_out.weight" in state
    arguments["deep_supervision"] = "convds1.weight" in state
    if arguments["prior_attention"]:
        arguments["head"] = "parallel" if "one_stage.conv3_4.conv.weight" in state else "fcn"
    return arguments


def _module_names(arguments: Mapping[str, Any]) -> dict[str, str]:
    """This bundle's name for each of the authors' modules and skip weights, in a network or a stage of a cascade."""
    levels = (3, 2, 1, 0) if arguments.get("deep_supervision") else (0,)
    names = {"conv_down": "prior_downsample"}
    names |= {f"backbone.conv{level}_0": f"encoder.{level}" for level in range(5)}
    names |= {
        f"one_stage.{theirs}": f"head.{ours}" for theirs, ours in _HEAD_NAMES[arguments.get("head", "fcn")].items()
    }
    names |= {f"convds{level}": f"outputs.{place}" for place, level in enumerate(levels)}
    for place in range(4):
        names[_DECODER_BLOCKS[place]] = f"decoder.{place}.block"
        names[f"{_DECONVOLUTIONS[place]}.trans_conv"] = f"decoder.{place}.upsample"
        names[f"skip_{3 - place}.param"] = f"decoder.{place}.skip_weight"
        names |= {f"{_GATES[place]}.{theirs}": f"gates.{place}.{ours}" for theirs, ours in _GATE_LAYERS.items()}
    return names


def _rename(name: str, modules: Mapping[str, str]) -> str:
    """This bundle's name for a tensor of the authors' network; a name that is not theirs is returned unchanged."""
    for theirs, ours in modules.items():
        if name == theirs or name.startswith(f"{theirs}."):
            inner = name.removeprefix(theirs).replace(".identity_mapping.", ".shortcut.")
            return ours + re.sub(r"^\.conv([123])\.", lambda found: f".body.{int(found[1]) - 1}.", inner)
    return name


def convert(
    state: Mapping[str, torch.Tensor], path: str | Path = "checkpoint"
) -> tuple[PriorAttentionNet | CascadedUNet, list[str]]:
    """Build the network that a state dict in the authors' layout belongs to, with its weights.

    Returns:
        The network, and the authors' names of the unused tensors that were dropped.

    Raises:
        InputError: a tensor is missing or unexpected, or it has another shape; the message names it.
    """
    try:
        arguments = network_arguments(state)
        network = network_class(state)(**arguments)
    except KeyError as error:
        raise InputError(f"{path}: no tensor {error.args[0]}; expected the layout of the PANet authors.") from error
    except ValueError as error:
        raise InputError(f"{path}: not weights of a PANet ({error}); expected the authors' layout.") from error
    wanted = network.state_dict()
    modules = _module_names(arguments)
    dead = _DEAD[arguments["norm"] == "group"]
    stages = _STAGES if isinstance(network, CascadedUNet) else ()

    converted: dict[str, torch.Tensor] = {}
    dropped: list[str] = []
    unexpected: list[str] = []
    for name, value in state.items():
        stage = next((f"{stage}." for stage in stages if name.startswith(f"{stage}.")), "")
        inner = name.removeprefix(stage)
        ours = stage + _rename(inner, modules)
        if ours in wanted:
            converted[ours] = value
        elif dead.fullmatch(inner):
            dropped.append(name)
        else:
            unexpected.append(name)
    missing = sorted(set(wanted) - set(converted))
    misshapen = [n for n, v in converted.items() if v.shape != wanted[n].shape]
    for what, names in (("unexpected", unexpected), ("missing", missing), ("of another shape", misshapen)):
        if names:
            raise InputError(f"{path}: tensors {what}: {', '.join(names)}; nothing was written.")
    network.load_state_dict(converted)
    return network, dropped


def exclusive_outputs(state: Mapping[str, torch.Tensor], path: str | Path = "checkpoint") -> dict[str, torch.Tensor]:
    """A state dict of the authors' network for exclusive classes, with the outputs in this bundle's order.

    That is background, ET, the rest of TC, the rest of WT. Other than four outputs raise an InputError.
    """
    changed = dict(state)
    for name in state:
        # The first stage of a cascade has one output, which is no class.
        if re.fullmatch(r"(second_stage\.)?convds[0-3]\.(weight|bias)", name):
            if (count := len(state[name])) != len(EXCLUSIVE_ORDER):
                raise InputError(f"{path}: {count} outputs, not the four classes of --exclusive; leave it out.")
            changed[name] = state[name][list(EXCLUSIVE_ORDER)]
    return changed


def imported_record(
    network: PriorAttentionNet | CascadedUNet, arguments: Mapping[str, Any], checkpoint: Any, exclusive: bool
) -> Record:
    """The record of imported weights, with the authors' preprocessing and post-processing."""
    optimizer = checkpoint.get("optimizer") if isinstance(checkpoint, Mapping) else None
    groups = optimizer.get("param_groups") if isinstance(optimizer, Mapping) else None
    # The authors have two recipes; the recipe with SGD has another ET threshold.
    sgd = {"min_et_mm3": 500} if groups and "nesterov" in groups[0] else {}
    return {
        "network": network_definition(network, arguments),
        "sequences": list(SEQUENCES),
        "spacing": [1.0] * network.spatial_dims,
        "exclusive": exclusive,
        "normalization": "volume",
        "thresholds": {**THRESHOLDS, **sgd},
        "training": {"window": [128] * network.spatial_dims, "overlap": 0.75, "inferer": "SlidingWindowInferer"},
        "license": None,
        "trained_on": UNKNOWN,
    }


def command_to_run(model_file: Path, network: torch.nn.Module, record: Record) -> str:
    """The command that segments patients with the imported weights of ``network``."""
    names = ["inference.json", "authors.yaml"]
    overlay = network_overlay(record["network"]["class"])
    names += [overlay] if overlay is not None else []
    plain = ConfigParser.load_config_files([str(CONFIGS / name) for name in names])["network_def"]
    own = network_definition(network, plain)["arguments"]
    configs = [f"configs/{name}" for name in names]
    theirs = record["network"]["arguments"]
    parts = [
        "python -m monai.bundle run inference",
        f'--config_file "{configs}"',
        f"--model_file {shlex.quote(str(model_file))}",
        *network_options({name: value for name, value in theirs.items() if value != own[name]}),
        *(["--exclusive True"] if record["exclusive"] else []),
        "--dataset_dir <folder of cases>",
    ]
    return " ".join(parts)
