# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Print a table of the parameters and FLOPs of PANet and of the networks that it is compared with.

    python -m scripts.lab.network_table

The table has a row for train.json, one for each overlay ``network_*.yaml`` over it, and one for each option in
``OPTIONS``. docs/networks.md holds the table for windows of 128 x 128 x 128 voxels. ``scripts/lab/complexity.py`` says
what counts as an operation.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from monai.bundle import ConfigParser
from scripts import command
from scripts.lab.complexity import flops, parameters
from scripts.networks import PriorAttentionNet
from scripts.utils.errors import InputError
from scripts.utils.files import CONFIGS
from scripts.weights.settings import network_options

HEADER = ("| configuration | network | parameters | multiply-adds (10^9) | FLOPs (10^12) |", "|---|---|---:|---:|---:|")


# What the class PriorAttentionNet is by its switches prior_attention and deep_supervision.
NAMES = {
    (True, True): "PANet",
    (True, False): "PANet without deep supervision",
    (False, True): "enhanced U-Net",
    (False, False): "U-Net",
}


# Arguments of ``network_def`` that make other networks, by configuration.
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "train.json": [
        {"norm": "batch"},
        {"norm": "group"},
        {"act": "relu"},
        {"prior_attention": False},
        {"prior_attention": False, "deep_supervision": False},
    ],
    "network_dynunet.yaml": [{"res_block": True}],
}


def name_of(definition: Mapping[str, Any]) -> str:
    """Name of the network that a configuration's ``network_def`` makes.

    Example:
        >>> name_of({"_target_": "scripts.networks.DynUNet", "res_block": False})
        'DynUNet'
        >>> name_of({"_target_": "scripts.networks.PriorAttentionNet", "prior_attention": False})
        'enhanced U-Net'
    """
    kind = str(definition["_target_"]).rpartition(".")[2]
    if kind != PriorAttentionNet.__name__:
        return kind
    return NAMES[definition.get("prior_attention", True), definition.get("deep_supervision", True)]


def rows(size: Sequence[int]) -> Iterator[str]:
    """The rows of the table in Markdown, for an image of this size in voxels.

    Raises:
        InputError: a network cannot take an image of this size.
    """
    for name in ["train.json", *(file.name for file in sorted(CONFIGS.glob("network_*.yaml")))]:
        for arguments in [{}, *OPTIONS.get(name, [])]:
            config = ConfigParser()
            config.read_config([str(CONFIGS / file) for file in dict.fromkeys(["train.json", name])])
            config.update({f"network_def#{argument}": value for argument, value in arguments.items()})
            network = config.get_parsed_content("network_def")
            title = " ".join([name, *network_options(arguments)])
            try:
                count = flops(network, size)
            except ValueError as error:
                raise InputError(f"--size {list(size)}: {title}: {error}") from error
            yield (
                f"| `{title}` | {name_of(config['network_def'])} | {parameters(network):,} | "
                f"{count / 2e9:.0f} | {count / 1e12:.2f} |"
            )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = command.parser("lab.network_table", __doc__)
    parser.add_argument(
        "--size", type=int, nargs=3, default=[128, 128, 128], help="voxels of a window (default: %(default)s)"
    )
    args = parser.parse_args(argv)
    # What is wrong is told before the table begins.
    print("\n".join([*HEADER, *rows(args.size)]))
    return 0


if __name__ == "__main__":
    command.run(main)
