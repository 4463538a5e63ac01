# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Turn a checkpoint of the PANet authors' program into a model file of this bundle.

It takes a checkpoint of any network of theirs: PANet, U-Net, enhanced U-Net, attention U-Net or cascaded U-Net. The
command also writes the record of the weights, and prints the command that segments patients with them.
"""

from collections.abc import Sequence

from scripts import command

EXAMPLES = ("authors.pkl models/model.pt", "softmax.pkl models/model.pt --exclusive")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = command.parser("import_checkpoint", __doc__, EXAMPLES)
    given = parser.add_argument_group("input")
    given.add_argument(
        "checkpoint", type=command.path, metavar="CHECKPOINT", help="checkpoint of the authors' program (.pkl)"
    )
    given.add_argument(
        "--exclusive", action="store_true", help="the network was trained on classes that exclude each other (softmax)"
    )
    output = parser.add_argument_group("output")
    output.add_argument(
        "model_file", type=command.path, metavar="MODEL", help="model file to write, such as models/model.pt"
    )
    args = parser.parse_args(argv)

    from scripts.networks.prior_attention_net import BOTTLENECK_ABOVE
    from scripts.utils.tensors import load_torch
    from scripts.weights.authors import (
        command_to_run,
        convert,
        exclusive_outputs,
        imported_record,
        network_arguments,
        read_state_dict,
    )
    from scripts.weights.record import refuse_existing, save_weights

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
