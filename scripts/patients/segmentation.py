# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Segmentation of patients by ``configs/inference.json``, with the settings that the record of the weights states."""

from __future__ import annotations

import importlib.util
import logging
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigWorkflow
from rich.console import Console
from rich.progress import track
from scripts import networks
from scripts.brats import SEQUENCE_TITLES, SEQUENCES
from scripts.data.cases import NO_FILE, image_files, missing_sequences
from scripts.data.datalist import unlabeled_items
from scripts.data.datalist_file import LONGEST_NAME, is_plain_name, misnamed
from scripts.data.dicom import series_file
from scripts.data.findings import CHOICES
from scripts.data.images import read_image, voxels_of
from scripts.data.inspection import check_files, nothing_found, refuse_errors
from scripts.inference.dicom_seg import check_source, save_dicom_seg
from scripts.inference.writers import map_files
from scripts.patients.options import Options
from scripts.pictures.patient import read_patient
from scripts.pictures.preview import draw_preview
from scripts.pictures.surface import draw_surface
from scripts.scores.volumetry import measure
from scripts.utils.errors import InputError, input_error_behind, one_line
from scripts.utils.files import BUNDLE_ROOT, CONFIGS, file_checksum, keep_earlier, read_json, save_json
from scripts.utils.literals import literal, shown
from scripts.utils.machine import computes_in
from scripts.utils.run_json import bundle_version
from scripts.weights.record import Record, only_phantoms, read_weights_record, record_file
from scripts.workflow.output import earlier_cases, same_images
from scripts.workflow.settings import check_device

logger = logging.getLogger(__name__)

OWN_WEIGHTS = BUNDLE_ROOT / "models" / "model.pt"
STARTER_WEIGHTS = BUNDLE_ROOT / "models" / "starter" / "model.pt"
# A title of a picture has little room.
SEQUENCE_NAMES = {**SEQUENCE_TITLES, "t1ce": "T1ce"}


def weights_to_use(model: Path | None) -> tuple[Path, Record]:
    """The weights to segment with, and their record.

    The log names them and says what they are worth.

    Args:
        model: the weights that the user has chosen, or None.

    Raises:
        InputError: the file is absent or a folder, or it has no record.
    """
    found = model or next((path for path in (OWN_WEIGHTS, STARTER_WEIGHTS) if path.is_file()), OWN_WEIGHTS)
    if model is not None and found.is_dir():
        raise InputError(f"--model {found}: a folder; name the file of the weights (.pt).")
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
    """The configurations and settings by which weights segment.

    Args:
        record: the record of the weights.
        model: file of the weights.
        options: how to segment.

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
        "network_def": {
            "_target_": f"scripts.networks.{network['class']}",
            **{name: literal(value) for name, value in network["arguments"].items()},
        },
        "spacing": record["spacing"],
        "exclusive": record["exclusive"],
        "model_file": literal(str(model)),
        "case_folders": True,
        "saved_et_label": options.et_label,
        "save_probabilities": options.probabilities,
        "save_uncertainty": options.uncertainty,
        "device": device,
        "overwrite": options.overwrite,
        "prepared_only": True,
        # A thread loads the next case, because a process that has run OpenVINO may crash when it forks.
        "dataloader#_target_": "ThreadDataLoader",
        "num_workers": 0,
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


def openvino_is_installed() -> bool:
    """Whether the package openvino can be imported."""
    return importlib.util.find_spec("openvino") is not None


def given_case(files: Mapping[str, Path], name: str | None) -> dict[str, Any]:
    """The entry of a case whose files have any name. A folder of one DICOM series counts as its first file.

    Raises:
        InputError: the case's name is no plain name, or a file's name says another sequence.

    Example:
        >>> given_case({"flair": Path("a.nii"), "t1": Path("b.nii"), "t1ce": Path("c.nii"), "t2": Path("d.nii")}, "ann")
        {'case': 'ann', 'image': ['b.nii', 'd.nii', 'c.nii', 'a.nii']}
        >>> given_case({"t1": Path("b.nii")}, None)["image"]
        ['b.nii', 'missing', 'missing', 'missing']
        >>> given_case({"t1": Path("b.nii")}, "../ann")
        Traceback (most recent call last):
        scripts.utils.errors.InputError: --name ../ann: results are named after it; use at most 200 bytes and no slash.
        >>> given_case({"t1": Path("ann_t2.nii")}, "ann")
        Traceback (most recent call last):
        scripts.utils.errors.InputError: --t1 ann_t2.nii: its name says t2; correct the option, or rename the file.
    """
    if name is not None and not is_plain_name(name):
        raise InputError(f"--name {name}: results are named after it; use at most {LONGEST_NAME} bytes and no slash.")
    image = [series_file(files[s]) if s in files else NO_FILE for s in SEQUENCES]
    # A datalist with such names is refused, too, and the run writes one.
    for file, sequence, other in misnamed(image, SEQUENCES):
        raise InputError(f"--{sequence} {file}: its name says {other}; correct the option, or rename the file.")
    return {"case": name or "case", "image": image}


def find_items(cases: Sequence[Path], may_lack: int) -> list[dict[str, Any]]:
    """The entries of all cases in ``cases``. Their files are checked by their names, and by their content in the run.

    A case that ``cases`` name several times is taken once.

    Raises:
        InputError: there is no case, a case has a missing or doubled file, or two cases have the same name.
    """
    items: dict[str, dict[str, Any]] = {}
    for path in cases:
        found = unlabeled_items(path)
        findings = check_files(found, path, may_lack=may_lack)
        refuse_errors(findings, path)
        # The run is given a list of cases, so it cannot tell what was left out of the folder.
        for finding in findings:
            if finding.kind in CHOICES:
                logger.warning("%s", finding.message)
        if not found:
            raise InputError(nothing_found(path, "cases"))
        for item in found:
            first = items.setdefault(item["case"], item)
            if not same_images(first, item):
                refuse_errors(check_files([first, item], None, may_lack=may_lack), path)
            if first is not item:
                logger.warning("%s: %s was named before; it is segmented once.", path, item["case"])
    return list(items.values())


def with_absolute_paths(item: Mapping[str, Any]) -> dict[str, Any]:
    """The entry of a case with absolute paths without "..", for later calls and readers in other folders.

    Example:
        >>> Path(with_absolute_paths({"case": "ann", "image": "ann.nii.gz"})["image"]).is_absolute()
        True
    """
    image = item["image"]
    if isinstance(image, str):
        return {**item, "image": _absolute(image)}
    return {**item, "image": [file if file == NO_FILE else _absolute(file) for file in image]}


def _absolute(file: str) -> str:
    path = Path(file)
    # A path such as link/../ann leads elsewhere than ann if the link leads to another folder.
    return str(path.resolve() if ".." in path.parts else path.absolute())


def refuse_other_images(items: Sequence[Mapping[str, Any]], output_dir: Path) -> None:
    """Check that no earlier call has given ``output_dir`` a case of the same name with other images.

    Raises:
        InputError: there is such a case.
    """
    earlier = earlier_cases(str(output_dir), ".")
    for item in items:
        other = earlier.get(item["case"])
        if other is not None and not same_images(item, other):
            raise InputError(
                f"{output_dir}: holds a case {item['case']} of other images ({image_files(other['image'])[0]}); choose "
                "another --output_dir, or add --overwrite (the earlier folder is then kept under a dated name)."
            )


def segment(
    cases: Sequence[Path | str],
    output_dir: Path | str,
    files: Mapping[str, Path | str] | None = None,
    name: str | None = None,
    options: Options | None = None,
) -> list[dict[str, Any]]:
    """Segment patients, and write label maps, numbers and pictures.

    Args:
        cases: folders of cases, of one case, or four-dimensional files.
        output_dir: folder to write to. Cases that an earlier call has done there are left out, and the others are
            added to them. The settings must be those of the earlier call.
        files: images of one case by sequence, instead of ``cases``.
        name: name of this case.
        options: how to segment.

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
    may_lack = int(record.get("missing_sequences", 0))
    if files is not None:
        items = [given_case({key: Path(path) for key, path in files.items()}, name)]
        refuse_errors(check_files(items, None, may_lack=may_lack), "the given files")
    else:
        items = find_items([Path(case) for case in cases], may_lack)
    items = [with_absolute_paths(item) for item in items]
    if not options.overwrite:
        refuse_other_images(items, output_dir)
    if options.dicom_seg:
        for item in items:
            check_source(image_files(item["image"])[0])
    folders = [Path(file).parent for item in items for file in image_files(item["image"])]
    paths = {"output_dir": output_dir, "bundle_root": BUNDLE_ROOT, "dataset_dir": os.path.commonpath(folders)}
    # MONAI's parser looks into lists, but not into tuples.
    settings |= {"all_cases": tuple(items), **{key: literal(str(path)) for key, path in paths.items()}}
    started = time.monotonic()
    failure = run_inference(names, settings)
    seconds = time.monotonic() - started
    parameters = {
        "configurations": names,
        **{k: shown(v) for k, v in settings.items() if k not in ("all_cases", "bundle_root")},
    }
    results = []
    for item in track(items, "Measuring and drawing", console=Console(stderr=True), transient=True):
        label_map = map_files(item["case"], output_dir, case_folders=True)[0]
        numbers, dicom = (label_map.with_name(f"{item['case']}{ending}") for ending in (".json", ".dcm"))
        preview, surface = (label_map.with_name(f"{item['case']}{ending}") for ending in (".png", "_3d.png"))
        # What belongs to an earlier label map must not stand beside a new one, or beside none.
        made = label_map.stat().st_mtime if label_map.is_file() else math.inf
        for path in (numbers, dicom, preview, surface):
            if path.is_file() and path.stat().st_mtime < made:
                logger.info("Kept an earlier %s as %s", path, keep_earlier(path))
        if not label_map.is_file():  # the case failed
            continue
        if numbers.is_file():
            result = read_json(numbers)
        else:
            result = describe(item, label_map, options.et_label)
            result |= {"weights": {"file": str(model), **{key: record[key] for key in ("checksum", "trained_on")}}}
            result |= {"bundle_version": bundle_version(), "parameters": parameters}
            result["seconds_of_the_run"] = round(seconds, 2)
            save_json(result, numbers)
        # There is no DICOM object of an empty segmentation.
        if options.dicom_seg and result["volumes_ml"]["WT"] and not dicom.is_file():
            image = image_files(item["image"])[0]
            save_dicom_seg(label_map, image, options.et_label, dicom)
        if options.pictures and not (preview.is_file() and surface.is_file()):
            patient = read_patient(item, label_map)
            note = note_of(record, result["missing_sequences"], options.fast)
            draw_preview(patient, preview, note)
            draw_surface(patient, surface, note)
        results.append(result)
    if failure is not None:
        raise failure
    return results


def note_of(record: Record, lacking: Sequence[str], fast: bool) -> str:
    """What the pictures say of how a case was segmented.

    Args:
        record: the record of the weights.
        lacking: sequences that the case lacked.
        fast: whether the whole brain was taken at once.

    Example:
        >>> note_of({"trained_on": {"patients": 16, "phantoms": 0}}, ["t1ce", "flair"], fast=True)
        'for research only; without T1ce and FLAIR; fast'
    """
    notes = ["for research only"]
    if only_phantoms(record):
        notes.append("weights trained on phantoms")
    if lacking:
        notes.append(f"without {' and '.join(SEQUENCE_NAMES[sequence] for sequence in lacking)}")
    if fast:
        notes.append("fast")
    return "; ".join(notes)


def describe(item: Mapping[str, Any], label_map: Path, et_label: int) -> dict[str, Any]:
    """The numbers of a segmented case, and where they come from.

    Args:
        item: the entry of the case.
        label_map: its label map.
        et_label: value of ET there.
    """
    image = read_image(label_map)
    measures = asdict(measure(voxels_of(image, label_map), image.affine, et_label))
    lacking = missing_sequences(item["image"])
    if isinstance(item["image"], str):
        inputs = [{"sequence": "all", "file": item["image"], "sha256": file_checksum(item["image"])}]
    else:
        inputs = [
            {"sequence": sequence, "file": file, "sha256": file_checksum(file)}
            for sequence, file in zip(SEQUENCES, item["image"], strict=True)
            if file != NO_FILE
        ]
    return {
        "case": item["case"],
        "use": "for research, not for diagnosis",
        "label_map": str(label_map),
        "et_label": et_label,
        "volumes_ml": measures["volume_ml"],
        "lesion_count": measures["lesion_count"],
        "lesions": measures["lesions"],
        "missing_sequences": lacking,
        "inputs": inputs,
    }


def run_inference(names: Sequence[str], settings: Mapping[str, Any]) -> InputError | None:
    """Run the inference of these configurations in this process.

    Returns:
        The error that names the cases that failed, if any.

    Raises:
        InputError: the run could not begin.
    """
    workflow = ConfigWorkflow(
        [str(CONFIGS / name) for name in names], workflow_type="infer", logging_file=False, **settings
    )
    try:
        workflow.initialize()
        workflow.run()
    except (RuntimeError, ValueError) as error:
        if (wrong := input_error_behind(error)) is None:
            raise
        return wrong
    finally:
        workflow.finalize()
    return None
