# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The record of weights: ``model.json`` beside ``model.pt`` holds what is needed to use the weights correctly.

The names and shapes of tensors do not show how images were normalized, which resolution they had, or whether the
outputs are regions or classes. Weights that are used with other settings give a plausible but wrong label map. So each
file of weights that the bundle writes has a record, and each workflow compares the record of the weights that it loads
with its settings.
"""

import functools
import json
import logging
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from monai.utils import ensure_tuple
from scripts.data.postprocessing import THRESHOLDS
from scripts.utils.errors import InputError
from scripts.utils.files import file_checksum, read_json, refuse_pointer, replacing
from scripts.utils.run_json import CONFIG_FILE, RUN_FILE, bundle_version
from scripts.weights.schema import RECORD_SCHEMA

logger = logging.getLogger(__name__)

Record = dict[str, Any]

# The entry trained_on of weights whose training data nobody counted here, such as imported ones.
UNKNOWN: Record = {"patients": None, "phantoms": None, "origin": None}


def record_file(model_file: str | Path) -> Path:
    """Path of the record of ``model_file``: model.json beside model.pt."""
    return Path(model_file).with_suffix(".json")


def trained_on(patients: int, phantoms: int, cases: Mapping[str, Collection[str]] | None = None) -> Record:
    """The entry ``trained_on`` of weights of so many patients' cases and phantoms that started from random weights.

    ``cases`` are checksums of the cases, by the kinds "patients" and "phantoms", which tell whether trainings share
    some.
    """
    seen: Record = {"patients": patients, "phantoms": phantoms, "origin": None}
    return seen if cases is None else {**seen, "cases": {kind: sorted(found) for kind, found in cases.items()}}


def trained_after(seen: Sequence[Record], origin: str) -> Record:
    """The entry ``trained_on`` of weights that come from several trainings, one after the other or averaged.

    ``seen`` has the entries of these trainings and of the weights that they started from. Cases of several trainings
    count once. Where an entry does not tell its cases, the largest number counts: the weights have seen at least that
    many.

    Example:
        >>> trained_after([trained_on(16, 5), trained_on(0, 152)], "4aee")
        {'patients': 16, 'phantoms': 152, 'origin': '4aee'}
        >>> trained_after([trained_on(0, 8), UNKNOWN], "c0de")
        {'patients': None, 'phantoms': 8, 'origin': 'c0de'}
        >>> cohorts = [{"patients": ["a", "b"], "phantoms": []}, {"patients": ["b", "c"], "phantoms": []}]
        >>> trained_after([trained_on(2, 0, cohort) for cohort in cohorts], "4aee")["patients"]
        3
    """

    def at_least(numbers: list[int | None]) -> int | None:
        most = max(number or 0 for number in numbers)
        return None if most == 0 and None in numbers else most

    kinds = ("patients", "phantoms")
    if all("cases" in one for one in seen):
        cases = {kind: sorted({case for one in seen for case in one["cases"][kind]}) for kind in kinds}
        return {**{kind: len(cases[kind]) for kind in kinds}, "origin": origin, "cases": cases}
    return {kind: at_least([one[kind] for one in seen]) for kind in kinds} | {"origin": origin}


def counts(seen: Record) -> Record:
    """An entry ``trained_on`` without the checksums of the cases."""
    return {key: value for key, value in seen.items() if key != "cases"}


def origin(record: Record) -> str:
    """Checksum of the first weights that the weights of ``record`` go back to; their own if they are the first."""
    return str(record["trained_on"]["origin"] or record["checksum"])


def only_phantoms(record: Record | None) -> bool:
    """Whether weights are known to have seen phantoms and no patient."""
    return record is not None and record["trained_on"]["patients"] == 0 and bool(record["trained_on"]["phantoms"])


def refuse_existing(model_file: Path) -> None:
    """Refuse a name for new weights if they or their record would replace a file or be taken for a file of a run."""
    record = record_file(model_file)
    for file in (model_file, record):
        if file.exists():
            raise InputError(f"{file}: exists already; move it away or choose another name.")
    if record == model_file or record.name in (RUN_FILE, CONFIG_FILE, "datalist.json"):
        raise InputError(f"{model_file}: its record would be taken for another file; choose a name like model.pt.")


def save_weights(weights: Mapping[str, torch.Tensor], model_file: str | Path, record: Mapping[str, Any]) -> None:
    """Save bare weights, and beside them their record with the bundle's version and the file's checksum."""
    with replacing(model_file) as temporary:
        torch.save(dict(weights), temporary)
        whole = {"bundle_version": bundle_version(), "checksum": file_checksum(temporary), **record}
        # Both files are whole before either is moved into place.
        with replacing(record_file(model_file)) as temporary_record:
            temporary_record.write_text(json.dumps(whole, indent=4) + "\n", encoding="utf-8")


def model_checksum(model_file: str | Path) -> str:
    """Checksum of a file of weights. A process reads a file for it only once, unless the file changes."""
    file = Path(model_file).resolve()
    found = file.stat()
    return _checksum(file, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


@functools.lru_cache
def _checksum(file: Path, *state: int) -> str:
    return file_checksum(file)


def read_weights_record(model_file: str | Path, quiet: bool = False) -> Record | None:
    """The record of an existing ``model_file``; a damaged record raises an InputError.

    If there is no record, or only a record of other weights, the result is None, and a warning is logged unless
    ``quiet``.
    """
    refuse_pointer(model_file)
    # The record of a link lies beside the link, or beside the file that it leads to.
    path = next((p for p in map(record_file, (model_file, Path(model_file).resolve())) if p.is_file()), None)
    record = read_json(path) if path is not None else {}
    if "checksum" not in record:
        missing = f"{model_file}: there is no record of these weights ({record_file(model_file).name})"
    elif record["checksum"] != model_checksum(model_file):
        missing = f"{path}: this record belongs to other weights (by their checksum) than {model_file}"
    elif (fault := _fault(record)) is not None:
        raise InputError(f"{path}: a damaged record of weights ({fault}); restore or remove it.")
    else:
        return record
    if not quiet:
        logger.warning("%s, so it is unknown whether they fit these settings.", missing)
    return None


def _fault(record: Record) -> str | None:
    """The first entry of a record that its schema does not allow; None if the record is sound."""
    # Only what reads a record needs this package.
    import jsonschema

    error = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(RECORD_SCHEMA).iter_errors(record))
    if error is None:
        try:
            json.dumps([record[key] for key in ("network", "spacing", "thresholds")], allow_nan=False)
        except ValueError:
            return "a number is not finite"
        return None
    return ".".join(map(str, error.absolute_path)) or str(error.message)


def calibrations_of(model_file: str | Sequence[str]) -> list[dict[str, Any]]:
    """The calibrations of the expected Dice in the record of weights. An ensemble, several files, has none."""
    files = ensure_tuple(model_file)
    record = read_weights_record(files[0], quiet=True) if len(files) == 1 and Path(files[0]).is_file() else None
    return list((record or {}).get("expected_dice", []))


def thresholds_in_use(model_file: str | Sequence[str], **given: Any) -> dict[str, Any]:
    """Thresholds of the post-processing: as given, or else as in the record of the weights, or else the authors'.

    So the thresholds of a recipe stay with its weights: the authors' SGD recipe, for example, has an ET threshold of
    500 mm^3. An ensemble has several files of weights. A threshold of None is not given.

    Raises:
        InputError: the records of an ensemble differ in a threshold that is not given.

    Example:
        >>> thresholds_in_use("absent.pt", min_et_mm3=100, min_tumor_probability=None)
        {'min_component_mm3': 10, 'min_tumor_probability': 0, 'min_et_mm3': 100, 'et_per_component': False}
    """
    given = {name: value for name, value in given.items() if value is not None}
    recorded = [
        (record_file(file), record["thresholds"])
        for file in ensure_tuple(model_file)
        if Path(file).is_file() and (record := read_weights_record(file, quiet=True))
    ] or [(Path(), THRESHOLDS)]
    for (before, theirs), (file, own) in pairwise(recorded):
        for name in own:
            if name not in given and own[name] != theirs[name]:
                raise InputError(
                    f"{file}: {name} is {own[name]}, but {theirs[name]} in {before}; set --thresholds#{name}."
                )
    return {**recorded[0][1], **given}
