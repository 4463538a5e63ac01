# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Turn a checkpoint of the PANet authors' program into a model file of this bundle.

    python -m scripts.import_checkpoint AUTHORS.pkl models/model.pt

It takes a checkpoint of any network of theirs: PANet, U-Net, enhanced U-Net, attention U-Net or cascaded U-Net. The
command also writes the record of the weights, ``models/model.json``. It then prints the command that segments patients
with these weights, which need the authors' own preprocessing (``authors.yaml``).
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

import torch
from monai.bundle import ConfigParser
from scripts import command
from scripts.networks.prior_attention_net import BOTTLENECK_ABOVE
from scripts.utils.files import CONFIGS, load_torch
from scripts.weights.authors import convert, exclusive_outputs, imported_record, network_arguments, read_state_dict
from scripts.weights.record import (
    Record,
    network_definition,
    network_options,
    network_overlay,
    refuse_existing,
    save_weights,
)


def command_to_run(model_file: Path, network: torch.nn.Module, record: Record) -> str:
    """Return the command that segments patients with the imported weights of ``network``."""
    names = ["inference.json", "authors.yaml"]
    names += ["network_exclusive.yaml"] if record["exclusive"] else []
    overlay = network_overlay(record["network"]["class"])
    names += [overlay] if overlay is not None else []
    plain = ConfigParser.load_config_files([str(CONFIGS / name) for name in names])["network_def"]
    own = network_definition(network, plain)["arguments"]
    configs = [f"configs/{name}" for name in names]
    theirs = record["network"]["arguments"]
    options = network_options({name: value for name, value in theirs.items() if value != own[name]})
    parts = [
        "python -m monai.bundle run",
        f'--config_file "{configs}"',
        f"--model_file {shlex.quote(str(model_file))}",
        *options,
    ]
    return " ".join([*parts, "--dataset_dir <folder of cases>"])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = command.parser("import_checkpoint", __doc__)
    parser.add_argument("checkpoint", type=Path, help="checkpoint of the authors' program (.pkl)")
    parser.add_argument("model_file", type=Path, help="model file to write, such as models/model.pt")
    parser.add_argument(
        "--exclusive", action="store_true", help="the network was trained on classes that exclude each other (softmax)"
    )
    args = parser.parse_args(argv)

    refuse_existing(args.model_file)
    checkpoint = load_torch(args.checkpoint)
    state = read_state_dict(checkpoint, args.checkpoint)
    if args.exclusive:
        state = exclusive_outputs(state, args.checkpoint)
    network, dropped = convert(state, args.checkpoint)
    arguments = network_arguments(state)
    if arguments["bottleneck"] == (arguments["channels"][-1] > BOTTLENECK_ABOVE):
        # The network chooses this value by itself.
        del arguments["bottleneck"]
    record = imported_record(network, arguments, checkpoint, args.exclusive)
    save_weights(network.state_dict(), args.model_file, record)
    print(f"{args.model_file}: {len(network.state_dict())} tensors; {len(dropped)} unused tensors were dropped")
    print("network_def: " + ", ".join(f"{name} {value}" for name, value in record["network"]["arguments"].items()))
    segment = command_to_run(args.model_file, network, record)
    print(f"To segment patients with these weights, run in the bundle's root:\n{segment}")
    return 0


if __name__ == "__main__":
    command.run(main)
