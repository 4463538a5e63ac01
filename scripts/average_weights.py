# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Average the weights of trainings that go back to the same weights.

The result is one network, which costs no more than each of them and often segments better (model soups; Wortsman et
al., ICML 2022). This works only for trainings that go back to the same weights, whether in one step or in several.
These weights may be among them: then the mean keeps more of what they knew (WiSE-FT; Wortsman et al., CVPR 2022). The
mean of networks that started from random weights is of no use; average their probabilities instead (ensemble.yaml).

The record of the mean counts each case of the trainings once. Where a record does not tell its cases, it says how many
one of the trainings saw at most.
"""

from collections.abc import Sequence

from scripts import command
from scripts.utils.errors import InputError

EXAMPLES = (
    "models/mean.pt runs/first/model.pt runs/second/model.pt",
    "models/mean.pt runs/train/model.pt runs/train/model_last.pt",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = command.parser("average_weights", __doc__, EXAMPLES)
    output = parser.add_argument_group("output")
    output.add_argument("model_file", type=command.path, metavar="MODEL", help="model file to write")
    given = parser.add_argument_group("input")
    given.add_argument(
        "trained", type=command.path, metavar="TRAINED", nargs="+", help="model files of two trainings or more"
    )
    args = parser.parse_args(argv)

    from scripts.utils.tensors import load_torch
    from scripts.weights.averaging import common_record, mean_state
    from scripts.weights.record import refuse_existing, save_weights

    refuse_existing(args.model_file)
    if len(set(args.trained)) < max(2, len(args.trained)):
        raise InputError("name at least two model files, and each once.")
    record = common_record(args.trained)
    save_weights(mean_state([load_torch(file) for file in args.trained]), args.model_file, record)
    print(f"{args.model_file}: the mean of {len(args.trained)} trainings")
    return 0


if __name__ == "__main__":
    command.run(main)
