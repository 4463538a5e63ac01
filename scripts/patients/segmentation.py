# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Segmentation of patients by ``configs/inference.json``, with the settings that the record of the weights states."""

import importlib.util
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigWorkflow
from scripts import networks
from scripts.data.cases import image_files
from scripts.data.findings import PREPARATION_DOUBTS, Finding, warnings_by_case
from scripts.inference.dicom_seg import check_source
from scripts.patients.items import find_items, given_case, refuse_other_images, with_absolute_paths
from scripts.patients.options import PREPARED_GRID, Options
from scripts.patients.raw import prepared_items, raw_items
from scripts.patients.results import Results, source_of
from scripts.utils.errors import InputError, input_error_behind, one_line
from scripts.utils.files import BUNDLE_ROOT, CONFIGS, keep_earlier, refuse_pointer
from scripts.utils.literals import literal, shown
from scripts.utils.machine import computes_in
from scripts.utils.run_json import bundle_version
from scripts.weights.record import Record, counts, read_weights_record, record_file
from scripts.weights.settings import settings_of_record
from scripts.workflow.settings import check_device

logger = logging.getLogger(__name__)

OWN_WEIGHTS = BUNDLE_ROOT / "models" / "model.pt"
STARTER_WEIGHTS = BUNDLE_ROOT / "models" / "starter" / "model.pt"


def weights_to_use(model: Path | None) -> tuple[Path, Record]:
    """The weights to segment with, and their record: those that the user has chosen, or the bundle's own.

    The log names them and says what they are worth.

    Raises:
        InputError: the file is absent or a folder, or it has no record.
    """
    found = model or next((path for path in (OWN_WEIGHTS, STARTER_WEIGHTS) if path.is_file()), OWN_WEIGHTS)
    if model is not None and found.is_dir():
        raise InputError(f"--model {found}: a folder; name the file of the weights (.pt).")
    refuse_pointer(found)
    if not found.is_file():
        remedy = "give weights by --model" if model is None else "correct --model, or leave it out for the default"
        raise InputError(f"{found}: no such file; {remedy}.")
    record = read_weights_record(found, quiet=True)
    if record is None:
        raise InputError(
            f"{found}: there is no record of these weights ({found.with_suffix('.json').name}), so nothing tells their "
            "network and preprocessing; copy the record too, or run configs/inference.json with settings of your own."
        )
    seen = record["trained_on"]
    counts = [f"{seen[kind]} {kind}" for kind in ("patients", "phantoms") if seen[kind]]
    told = f"at least {' and '.join(counts)}" if counts else "data that are unknown here"
    worth = f"; {STARTER_WEIGHTS.parent / 'README.md'} says what they are worth" * (found == STARTER_WEIGHTS)
    logger.info("Weights: %s, trained on %s%s", found, told, worth)
    return found, record


def configuration_of(record: Record, model: Path, options: Options) -> tuple[list[str], dict[str, Any]]:
    """The configurations and settings by which the weights ``model`` with this record segment.

    Returns:
        Names of files in ``configs``, and settings over them.

    Raises:
        InputError: the weights need a network that is not here, or two options contradict each other.
    """
    if options.fast and options.tta:
        raise InputError("--fast and --tta contradict each other; leave one out.")
    network = record["network"]
    if not hasattr(networks, network["class"]):
        raise InputError(f"{model}: its network {network['class']} is not in this bundle; use the bundle it came with.")
    try:
        # Without memory for its weights.
        with torch.device("meta"):
            getattr(networks, network["class"])(**network["arguments"])
    except (TypeError, ValueError, RuntimeError, LookupError) as error:
        raise InputError(f"{record_file(model)}: no network has these arguments ({one_line(error)}).") from error
    device = options.device or ("cuda:0" if torch.cuda.is_available() else "cpu")
    starter = model.resolve() == STARTER_WEIGHTS.resolve() and (CONFIGS / "starter.yaml").is_file()
    names = ["inference.json", *(["starter.yaml"] if starter else [])]
    if record["normalization"] == "volume":
        names.append("authors.yaml")
    settings: dict[str, Any] = {
        **settings_of_record(record),
        "model_file": literal(str(model)),
        "case_folders": True,
        "saved_et_label": options.et_label,
        "save_probabilities": options.probabilities,
        "save_uncertainty": options.uncertainty,
        "device": device,
        "overwrite": options.overwrite,
        # A preparation has checks of its own, and leaves out of a sequence's brain what its field of view leaves out.
        "accept": [*accepted_in_run(options), *["different brains"] * options.prepare],
        "native": options.native if options.prepare and options.native != PREPARED_GRID else None,
        "dataset#keep_files": True,
    }
    if window := (record.get("training") or {}).get("window"):
        settings["roi_size"] = window
    if options.fast:
        names.append("whole_brain.yaml")
        settings["flips"] = "@mixed_precision"
    if options.tta:
        names.append("tta.yaml")
        settings["flips#axes"] = [0, 1, 2]
    if torch.device(device).type == "cpu":
        if openvino_is_installed():
            names.append("openvino.yaml")
        elif not starter:
            settings["amp"] = computes_in(device, "bfloat16")
    return names, settings


def accepted_in_run(options: Options) -> list[str]:
    """The kinds of doubts that the user accepts, without those that stop a preparation."""
    return [kind for kind in options.accept if kind not in PREPARATION_DOUBTS]


def openvino_is_installed() -> bool:
    """Whether the package openvino can be imported."""
    return importlib.util.find_spec("openvino") is not None


def segment(
    cases: Sequence[Path | str],
    output_dir: Path | str,
    files: Mapping[str, Path | str] | None = None,
    name: str | None = None,
    options: Options | None = None,
    done: Callable[[Mapping[str, Any]], None] | None = None,
) -> list[dict[str, Any]]:
    """Segment patients, and write label maps, numbers and pictures.

    Args:
        cases: folders of cases, of one case, or four-dimensional files; or files of one case, whose names tell the
            sequences.
        output_dir: folder to write to. Cases that an earlier call has done there are left out, and the others are
            added to them. The settings must be those of the earlier call.
        files: images of one case by sequence, instead of ``cases``. With ``cases``, which must be one DICOM study,
            numbers or folders of its series.
        name: name of the one case; by default that of its folder, or of the release's files.
        done: called with the content of each case's JSON file as soon as the case has all of its results.

    Returns:
        For each case, the content of its JSON file.

    Raises:
        InputError: the input or an option is wrong, in which case nothing is written; or cases failed, and the others
            are done.
    """
    options = options or Options()
    check_device(options.device)
    model, record = weights_to_use(options.model)
    model, output_dir = model.absolute(), Path(output_dir).resolve()
    names, settings = configuration_of(record, model, options)
    doubts: list[Finding] = []
    given: list[dict[str, Any]] = []
    unprepared: dict[str, InputError] = {}
    if options.prepare:
        if options.overwrite:
            # The run would move the folder away after the preparation.
            keep_earlier(output_dir)
            settings["overwrite"] = False
        given = [with_absolute_paths(item) for item in raw_items([Path(case) for case in cases], files, name)]
        items, doubts, unprepared = prepared_items(given, output_dir, options)
        if not items:
            raise next(iter(unprepared.values()))
    elif files is not None and not cases:
        items = [given_case({key: Path(path) for key, path in files.items()}, name)]
    else:
        series = {sequence: str(wanted) for sequence, wanted in (files or {}).items()}
        may_lack = int(record.get("missing_sequences", 0))
        items, doubts = find_items([Path(case) for case in cases], may_lack, accepted_in_run(options), series, name)
    items = [with_absolute_paths(item) for item in items]
    if not options.overwrite:
        refuse_other_images(items, output_dir)
    if options.dicom_seg:
        for item in items:
            check_source(source_of(item, options.native))
    # Prepared sequences lie in the folder of the results.
    folders = [Path(file).parent for item in given or items for file in image_files(item["image"])]
    paths = {"output_dir": output_dir, "bundle_root": BUNDLE_ROOT, "dataset_dir": os.path.commonpath(folders)}
    settings |= {key: literal(str(path)) for key, path in paths.items()}
    facts = {
        "weights": {"file": str(model), "checksum": record["checksum"], "trained_on": counts(record["trained_on"])},
        "bundle_version": bundle_version(),
        "parameters": {"configurations": names, **{k: shown(v) for k, v in settings.items() if k != "bundle_root"}},
    }
    results = Results({item["case"]: item for item in items}, output_dir, options, record, facts, done=done)
    # MONAI's parser looks into lists, but not into tuples.
    run_inference(names, {**settings, "all_cases": tuple(items)}, results, doubts)
    if unprepared:
        raise next(iter(unprepared.values()))
    return [results.found[case] for case in results.items]


def run_inference(
    names: Sequence[str], settings: Mapping[str, Any], results: Results, doubts: Sequence[Finding]
) -> None:
    """Run the inference of these configurations. ``results`` finishes each case as soon as it is segmented.

    ``doubts`` are findings about the cases' files that the run, which gets a list of them, does not find itself.

    Raises:
        InputError: what ended the run, or names the cases that failed.
    """
    workflow = ConfigWorkflow(
        [str(CONFIGS / name) for name in names], workflow_type="infer", logging_file=False, **settings
    )
    try:
        workflow.initialize()
        workflow.parser.get_parsed_content("records").describe = results.describe
        failures = workflow.parser.get_parsed_content("failures")
        failures.finish = results.finish
        failures.warnings.update(warnings_by_case(doubts))
        workflow.run()
    except (RuntimeError, ValueError) as error:
        if (failure := input_error_behind(error)) is None:
            raise
        raise failure from None
    finally:
        workflow.finalize()
