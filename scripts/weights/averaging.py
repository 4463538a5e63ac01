# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The mean of the weights of trainings that go back to the same weights, and its record."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from scripts.utils.errors import InputError
from scripts.weights.record import Record, origin, read_weights_record, record_file, trained_after

# Keys of a record that belong to one file of weights, and not to the mean.
OF_ONE_FILE = {"bundle_version", "checksum", "scores", "expected_dice"}


def mean_state(states: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The mean of each tensor of weights with the same names and shapes, in its own type.

    Counters are those of the first state.

    Example:
        >>> mean_state([{"weight": torch.tensor([1.0])}, {"weight": torch.tensor([2.0])}])
        {'weight': tensor([1.5000])}
    """
    mean = dict(states[0])
    for name, first in states[0].items():
        if first.is_floating_point():
            mean[name] = torch.stack([state[name].double() for state in states]).mean(0).to(first.dtype)
    return mean


def common_record(files: Sequence[Path]) -> Record:
    """The record of the mean of ``files``.

    An InputError says that a file has no record, that the records differ in what weights depend on, or that the weights
    do not go back to the same ones.
    """
    records = []
    for file in files:
        record = read_weights_record(file, quiet=True) if file.is_file() else None
        if record is None:
            raise InputError(f"{file}: no such weights, or no record of them beside them; give weights of trainings.")
        records.append(record)
    first = records[0]
    for file, record in zip(files, records, strict=True):
        for key in sorted({*first, *record} - OF_ONE_FILE - {"training", "trained_on"}):
            if record.get(key) != first.get(key):
                raise InputError(
                    f"{record_file(file)}: {key} differs from that in {record_file(files[0])}; average trainings of "
                    "the same network with the same settings."
                )
        if origin(record) != origin(first):
            raise InputError(
                f"{record_file(file)}: goes back to other weights than {files[0]}, and the mean of such networks is of "
                "no use; average their probabilities with configs/ensemble.yaml."
            )
    kept = {key: value for key, value in first.items() if key not in OF_ONE_FILE}
    return {**kept, "trained_on": trained_after([record["trained_on"] for record in records], origin(first))}
