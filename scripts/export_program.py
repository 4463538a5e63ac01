# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Export the network and its weights with torch.export, which replaces TorchScript.

``torch.export.load`` reads the file where only PyTorch is installed. The program takes any number of windows, of any
size that the network takes, from twice its size multiple on. The file also holds the configurations, metadata.json and
the record of the weights, with which the command compares the configuration.
"""

import json
from collections.abc import Sequence

from scripts import command
from scripts.utils.errors import InputError
from scripts.utils.files import replacing
from scripts.utils.literals import shown

EXAMPLES = (
    "models/model.pt2",
    "starter.pt2 --config-file configs/inference.json configs/starter.yaml --model-file models/starter/model.pt",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = command.parser("export_program", __doc__, EXAMPLES)
    model = parser.add_argument_group("model")
    model.add_argument("--bundle-root", type=command.path, default=".", help="root of the bundle (default: .)")
    model.add_argument(
        "--config-file", type=command.path, nargs="+", help="configurations (default: configs/inference.json)"
    )
    model.add_argument("--model-file", type=command.path, help="weights (default: models/model.pt)")
    output = parser.add_argument_group("output")
    output.add_argument(
        "program_file", type=command.path, metavar="PROGRAM", help="file to write, such as models/model.pt2"
    )
    args = parser.parse_args(argv)

    import torch
    from monai.bundle import ConfigParser
    from scripts.networks.exported_program import export_network
    from scripts.networks.protocol import refuse_one_size
    from scripts.utils.tensors import load_torch
    from scripts.weights.loading import check_weights
    from scripts.weights.record import read_weights_record, record_file
    from scripts.weights.settings import settings_of_record

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
    # Configurations that are given must fit the record. Else the network is the one that the weights were trained in.
    record = read_weights_record(model_file, quiet=True) if model_file.is_file() else None
    trained_in = settings_of_record(record) if record is not None and not args.config_file else {}
    config.update(trained_in)
    network = config.get_parsed_content("network_def")
    refuse_one_size(network, "torch.export")
    check_weights(network, str(model_file), config.get_parsed_content("weights_settings"))
    network.load_state_dict(load_torch(model_file))

    program = export_network(network)
    extra = {file.with_suffix(".json").name: ConfigParser.load_config_file(str(file)) for file in (*configs, metadata)}
    extra[configs[0].with_suffix(".json").name] |= shown(trained_in)
    if record is not None:
        extra[record_file(model_file).name] = record
    texts = {name: json.dumps(content) for name, content in extra.items()}
    with replacing(args.program_file) as temporary:
        torch.export.save(program, temporary, extra_files=texts)
    print(f"{args.program_file}: {len(program.state_dict)} tensors, with {', '.join(texts)}")
    return 0


if __name__ == "__main__":
    command.run(main)
