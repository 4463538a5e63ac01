# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Print a table of the parameters and FLOPs of PANet and of the networks that it is compared with.

    python -m scripts.lab.network_table

The table has a row for train.json and one for each overlay ``network_*.yaml`` over it. docs/networks.md holds the
table for windows of 128 x 128 x 128 voxels. ``scripts/lab/complexity.py`` says what counts as an operation.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser
from scripts import command
from scripts.lab.complexity import flops, parameters
from scripts.networks import PriorAttentionNet
from scripts.utils.errors import InputError
from scripts.utils.files import CONFIGS

HEADER = ("| configuration | network | parameters | multiply-adds (10^9) | FLOPs (10^12) |", "|---|---|---:|---:|---:|")


# What the class PriorAttentionNet is by its switches prior_attention and deep_supervision.
NAMES = {
    (True, True): "PANet",
    (True, False): "PANet without deep supervision",
    (False, True): "enhanced U-Net",
    (False, False): "U-Net",
}


def overlays() -> list[str]:
    """Names of the overlays ``network_*.yaml`` that change the network, in alphabetic order."""
    return [file.name for file in sorted(CONFIGS.glob("network_*.yaml")) if changes_network(file)]


def changes_network(file: Path) -> bool:
    """Whether an overlay sets the network or one of its arguments.

    Example:
        >>> changes_network(CONFIGS / "network_unet.yaml"), changes_network(CONFIGS / "train_sgd.yaml")
        (True, False)
    """
    return any(key.split("#")[0] == "network_def" for key in ConfigParser.load_config_file(str(file)))


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


def rows(names: Iterable[str], size: Sequence[int]) -> Iterator[str]:
    """The rows of the table in Markdown.

    Args:
        names: names of overlays over train.json. An empty name stands for train.json alone.
        size: spatial size of the image, in voxels.

    Raises:
        InputError: an overlay does not exist or sets nothing of the network, or the network cannot take an image of
            this size.
    """
    for name in names:
        file = CONFIGS / name
        if name and not file.is_file():
            raise InputError(f"{file}: no such file; name an overlay of the folder configs.")
        if name and not changes_network(file):
            raise InputError(f"{file}: sets nothing of network_def; name an overlay that changes the network.")
        config = ConfigParser()
        config.read_config([str(CONFIGS / "train.json"), *([str(file)] if name else [])])
        network = config.get_parsed_content("network_def")
        try:
            count = flops(network, size)
        except ValueError as error:
            raise InputError(f"--size {list(size)}: {name or 'train.json'}: {error}") from error
        yield (
            f"| `{name or 'train.json'}` | {name_of(config['network_def'])} | {parameters(network):,} | "
            f"{count / 2e9:.0f} | {count / 1e12:.2f} |"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = command.parser("lab.network_table", __doc__)
    parser.add_argument(
        "overlays", nargs="*", metavar="OVERLAY", help="overlays over train.json, such as network_unet.yaml (all)"
    )
    parser.add_argument(
        "--size", type=int, nargs=3, default=[128, 128, 128], help="voxels of a window (default: %(default)s)"
    )
    args = parser.parse_args(argv)
    # What is wrong is told before the table begins.
    table = [*HEADER, *rows(args.overlays or ["", *overlays()], args.size)]
    print("\n".join(table))
    return 0


if __name__ == "__main__":
    command.run(main)
