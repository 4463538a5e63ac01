# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Export the network and its weights with torch.export, which replaces TorchScript.

    python -m scripts.export_program models/model.pt2

``torch.export.load`` reads the file where only PyTorch is installed. The program takes any number of windows. It takes
any window size that the network takes, from twice the network's size multiple on. The file also holds the
configuration and metadata.json, like the TorchScript that ``monai.bundle ckpt_export`` makes. If the weights have a
record, the command compares the configuration with it and writes it to the file, too.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from monai.bundle import ConfigParser
from scripts import command
from scripts.networks.protocol import SegmentationNetwork, refuse_one_size
from scripts.utils.errors import InputError
from scripts.utils.files import load_torch, replacing
from scripts.weights.loading import check_weights
from scripts.weights.record import record_file

# torch.export needs an upper bound; this one allows windows larger than any scanner's volume.
MAX_MULTIPLE = 128


def export_network(network: SegmentationNetwork) -> torch.export.ExportedProgram:
    """Return the network in evaluation mode as an exported program, for any batch and any permitted size.

    Args:
        network: takes (batch, ``in_channels``, *size), each size a multiple of its ``size_multiple``.

    Returns:
        A program that maps such a tensor to logits of shape (batch, out_channels, *size). Each size must be at least
        twice the multiple, because torch.export takes a deepest level of one voxel for a constant.
    """
    multiple, channels, dims = network.size_multiple, network.in_channels, network.spatial_dims
    # The sizes differ, so that torch.export does not take two axes for one.
    example = torch.zeros(2, channels, *(multiple * n for n in (2, 3, 4)[:dims]))
    shapes: dict[int, torch.export.Dim] = {0: torch.export.Dim("batch", max=1024)}
    for axis, name in zip(range(2, 2 + dims), ("height", "width", "depth"), strict=False):
        shapes[axis] = multiple * torch.export.Dim(name, max=MAX_MULTIPLE)
    with torch.no_grad():
        return torch.export.export(network.eval(), (example,), dynamic_shapes=(shapes,))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = command.parser("export_program", __doc__)
    parser.add_argument("program_file", type=Path, help="file to write, such as models/model.pt2")
    parser.add_argument("--bundle_root", type=Path, default=Path("."), help="root of the bundle")
    parser.add_argument("--config_file", type=Path, nargs="+", help="configuration (default: configs/inference.json)")
    parser.add_argument("--model_file", type=Path, help="weights (default: models/model.pt)")
    args = parser.parse_args(argv)

    configs = args.config_file or [args.bundle_root / "configs" / "inference.json"]
    metadata = args.bundle_root / "configs" / "metadata.json"
    model_file = args.model_file or args.bundle_root / "models" / "model.pt"
    for file in (*configs, metadata):
        if not file.is_file():
            raise InputError(f"{file}: no such file; give --bundle_root or --config_file.")
    if args.program_file.exists():
        raise InputError(f"{args.program_file}: exists already; move it away or choose another name.")
    if args.program_file.suffix != ".pt2":
        raise InputError(f"{args.program_file}: torch.export writes files that end in .pt2; choose such a name.")
    config = ConfigParser()
    config.read_config([str(file) for file in configs])
    network = config.get_parsed_content("network_def")
    refuse_one_size(network, "torch.export")
    record = check_weights(network, str(model_file), config.get_parsed_content("weights_settings"))
    network.load_state_dict(load_torch(model_file))

    program = export_network(network)
    extra = {file.with_suffix(".json").name: ConfigParser.load_config_file(str(file)) for file in (*configs, metadata)}
    if record is not None:
        extra[record_file(model_file).name] = record
    texts = {name: json.dumps(content) for name, content in extra.items()}
    with replacing(args.program_file) as temporary:
        torch.export.save(program, temporary, extra_files=texts)
    print(f"{args.program_file}: {len(program.state_dict)} tensors, with {', '.join(texts)}")
    return 0


if __name__ == "__main__":
    command.run(main)
