# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Average the weights of trainings that go back to the same weights.

    python -m scripts.average_weights models/mean.pt runs/first/model.pt runs/second/model.pt

The result is one network, which costs no more than each of them and often segments better (model soups; Wortsman et
al., ICML 2022). This works only for trainings that went on from the same weights, whether in one step or in several.
The weights that they went on from may be among them: then the mean keeps more of what these knew (WiSE-FT; Wortsman et
al., CVPR 2022). The mean of networks that were trained anew is of no use; average their probabilities instead
(ensemble.yaml).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from scripts import command
from scripts.utils.errors import InputError
from scripts.utils.files import load_torch, read_json
from scripts.weights.record import Record, read_weights_record, record_file, save_weights

logger = logging.getLogger(__name__)

# Keys of a record that belong to one file of weights, and not to the mean.
OF_ONE_FILE = ("bundle_version", "checksum", "scores", "average_of")
# Keys in which the trainings may differ. ``common_training`` compares what they were trained on.
MAY_DIFFER = (*OF_ONE_FILE, "training", "trained_on")


def mean_state(states: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The mean of each tensor, in its own type; counters are those of the first state.

    Args:
        states: weights by name, with the same names and shapes.

    Example:
        >>> mean_state([{"weight": torch.tensor([1.0])}, {"weight": torch.tensor([2.0])}])
        {'weight': tensor([1.5000])}
    """
    mean = dict(states[0])
    for name, first in states[0].items():
        if first.is_floating_point():
            mean[name] = torch.stack([state[name].double() for state in states]).mean(0).to(first.dtype)
    return mean


def starts(seen: Record) -> list[Record]:
    """All weights that a training goes back to (``started_from`` of its ``trained_on``), the nearest first.

    Example:
        >>> first = {"checksum": "a", "trained_on": {"started_from": None}}
        >>> second = {"checksum": "b", "trained_on": {"started_from": first}}
        >>> [start["checksum"] for start in starts({"started_from": second})]
        ['b', 'a']
    """
    start = seen.get("started_from")
    return [start, *starts(start.get("trained_on") or {})] if start else []


def common_start(files: Sequence[Path], trained: Sequence[Record]) -> Record | None:
    """The nearest weights that all trainings go back to.

    Args:
        files: the weights.
        trained: what each was trained on (``trained_on`` of its record).

    Returns:
        The value of ``started_from`` for their mean; None if all started anew.

    Raises:
        InputError: the trainings go back to different weights; or one went on from weights that saw other numbers of
            cases than it did itself, so that the mean has seen cases that nobody can count.
    """
    chains = [starts(seen) for seen in trained]
    shared = next((start for start in chains[0] if all(start in chain for chain in chains)), None)
    for file, seen, chain in zip(files, trained, chains, strict=True):
        if seen.get("imported") != trained[0].get("imported") or (shared is None and chain != chains[0]):
            raise InputError(
                f"{record_file(file)}: started from other weights than {files[0]}; average trainings that go back to "
                "the same weights."
            )
    for file, seen, chain in zip(files, trained, chains, strict=True):
        for between in chain[: chain.index(shared)] if shared else []:
            before = between.get("trained_on") or {}
            if any(before.get(kind) != seen.get(kind) for kind in ("patients", "phantoms", "imported")):
                raise InputError(
                    f"{record_file(file)}: went on from weights that saw other numbers of cases than it did; average "
                    "trainings that started from the same weights."
                )
            logger.warning("%s went on from weights that are taken to have seen the same cases.", file)
    return shared


def weights_before(records: Sequence[Record]) -> int | None:
    """The place of the weights that all the others went on from; None if no weights are.

    Example:
        >>> before = {"checksum": "a", "trained_on": {"started_from": None}}
        >>> weights_before([{"checksum": "b", "trained_on": {"started_from": before}}, before])
        1
    """
    chains = [{start["checksum"] for start in starts(record.get("trained_on") or {})} for record in records]
    for place, record in enumerate(records):
        if all(record["checksum"] in chain for other, chain in enumerate(chains) if other != place):
            return place
    return None


def common_training(files: Sequence[Path], records: Sequence[Record]) -> Record:
    """What the mean of ``files`` was trained on.

    Trainings on parts of a cohort, such as folds, have seen the cases of all parts together. The split that each
    training wrote beside its weights (``datalist.json``) names its cases. What the weights saw that all the others went
    on from stands in the record as for each training that goes on from weights.

    Args:
        files: the weights.
        records: their records.

    Returns:
        The value of ``trained_on``.

    Raises:
        InputError: as ``common_start``; or the cases of the trainings differ, and no split beside the weights names
            them, or patients and phantoms are mixed, which the split does not tell apart.
    """
    before = weights_before(records)
    files = [file for place, file in enumerate(files) if place != before]
    trained = [record.get("trained_on") or {} for place, record in enumerate(records) if place != before]
    start = common_start(files, trained)
    trained = [{**other, "started_from": start} for other in trained]
    lists = [file.with_name("datalist.json") for file in files]
    absent = [path for path in lists if not path.is_file()]
    if absent and all(other == trained[0] for other in trained):
        if len({path.parent for path in lists}) > 1:
            logger.warning("%s is absent; the trainings are taken to have seen the same cases.", absent[0])
        return trained[0]
    if absent:
        raise InputError(f"{absent[0]}: absent, and the trainings saw different numbers of cases; copy it there.")
    seen = [{str(item["image"]) for item in read_json(path).get("training", [])} for path in lists]
    together = set().union(*seen)
    if all(cases == together for cases in seen):
        return trained[0]
    kinds = [kind for kind in ("patients", "phantoms") if any(other.get(kind) for other in trained)]
    if len(kinds) != 1:
        raise InputError(
            f"{lists[0]}: the trainings saw different cases, patients and phantoms; average trainings on the same."
        )
    return {**trained[0], kinds[0]: len(together)}


def common_record(files: Sequence[Path]) -> Record:
    """The record of the mean of ``files``.

    Raises:
        InputError: a file has no record, or the records differ in what weights depend on or in what they were trained
            on; or the trainings started anew.
    """
    records = []
    for file in files:
        record = read_weights_record(file, quiet=True) if file.is_file() else None
        if record is None:
            raise InputError(f"{file}: no such weights, or no record of them beside them; give weights of trainings.")
        records.append(record)
    first = {**records[0], "trained_on": common_training(files, records)}
    for file, record in zip(files[1:], records[1:], strict=True):
        for key in sorted({*first, *record} - set(MAY_DIFFER)):
            if record.get(key) != first.get(key):
                raise InputError(
                    f"{record_file(file)}: {key} differs from that in {record_file(files[0])}; average trainings of "
                    "the same network on the same data from the same weights."
                )
    if not first["trained_on"]["started_from"]:
        raise InputError(
            f"{files[0]}: its training started anew, and the mean of such networks is of no use; average their "
            "probabilities with configs/ensemble.yaml."
        )
    kept = {key: value for key, value in first.items() if key not in OF_ONE_FILE}
    return {**kept, "average_of": [record["checksum"] for record in records]}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = command.parser("average_weights", __doc__)
    parser.add_argument("model_file", type=Path, help="model file to write")
    parser.add_argument("trained", type=Path, nargs="+", help="model files of two trainings or more")
    args = parser.parse_args(argv)
    for file in (args.model_file, record_file(args.model_file)):
        if file.exists():
            raise InputError(f"{file}: exists already; move it away or choose another name.")
    if len(set(args.trained)) < max(2, len(args.trained)):
        raise InputError("name at least two model files, and each once.")
    record = common_record(args.trained)
    save_weights(mean_state([load_torch(file) for file in args.trained]), args.model_file, record)
    print(f"{args.model_file}: the mean of {len(args.trained)} trainings")
    return 0


if __name__ == "__main__":
    command.run(main)
