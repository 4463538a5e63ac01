# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""What a workflow's ``run`` list does before its engine: refuse what would fail later, and write down what is run.

The construction of a workflow calls none of these functions, so it needs neither data nor weights.
"""

import logging
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from monai.inferers import Inferer
from monai.transforms import Compose
from monai.utils import ensure_tuple
from scripts.brats import check_et_label
from scripts.data.cases import image_files
from scripts.data.datalist import Cohort, labeled_items, warn_of_shared_patients
from scripts.data.datalist_file import write_datalist
from scripts.data.images import checksum_of, read_header
from scripts.data.inspection import check_cases
from scripts.inference.reading import CheckedDataset
from scripts.training.reproducibility import choose_algorithms
from scripts.training.training_state import check_resumable, newest_state, remove_unfinished_state
from scripts.utils.distributed import on_rank_zero, rank, start, unwrap, world_size
from scripts.utils.errors import InputError
from scripts.utils.files import keep_earlier
from scripts.utils.locks import enter_run
from scripts.utils.machine import check_shared_memory, keep_freed_memory
from scripts.utils.run_json import CONFIG_FILE, read_run_json, write_run_json
from scripts.weights.loading import check_weights, load_pretrained
from scripts.weights.record import (
    UNKNOWN,
    Record,
    model_checksum,
    only_phantoms,
    origin,
    read_weights_record,
    trained_after,
    trained_on,
)
from scripts.weights.settings import check_start, normalization, refuse_other_use
from scripts.workflow.configuration import Configuration
from scripts.workflow.output import DATALIST_FILE, Output, earlier_cases, same_images
from scripts.workflow.recipe import changed_recipe
from scripts.workflow.settings import check_settings, check_trainable, check_windows, weights_readers

logger = logging.getLogger(__name__)

# Of a case's checksum in the record of weights: enough to tell a million cases apart.
DIGITS = 12
# Of each case that has any (``scripts.data.findings.warnings_by_case``).
Warnings = dict[str, list[dict[str, str]]]


def prepare(configuration: Configuration) -> None:
    """What every run begins with: check settings, cases and weights, and write down what is run.

    With several ranks, rank 0 alone checks and writes.

    Raises:
        InputError: the run cannot work. The message names the setting or the file.
    """
    check_settings(configuration)
    get, training = configuration.get, configuration.workflow == "training"
    keep_freed_memory(get("device"))
    start(get("device"), get("world_size"))
    if training:
        choose_algorithms(get("deterministic"), get("network_def"), get("channels_last"))
    network, inferer = get("network"), get("validate#inferer")

    def check() -> None:
        if training:
            check_trainable(network, inferer)
        sizes = ("patch_size", "roi_size") if training else ("roi_size",)
        check_windows(network, {name: get(name) for name in sizes})

    on_rank_zero(check)
    (prepare_training if training else prepare_evaluation)(configuration)


def prepare_training(configuration: Configuration) -> None:
    """Check settings and cases, load ``pretrained_file`` on each rank, then write split, configuration and versions.

    What the weights are trained on is added to ``weights_settings``, for their records.

    A caller such as MONAI Label may bring its own lists, which replace the cases below ``dataset_dir``. Such a caller
    trains again and again, so the folder of its earlier run is kept under a dated name even without ``overwrite``.
    """
    get = configuration.get
    settings: Record = get("weights_settings")
    lists_of = {"training": "train#dataset#data", "validation": "validate#dataset#data"}
    needed = list(lists_of) if get("val_interval") else ["training"]
    cohort = cohort_of(configuration, {name: get(lists_of[name]) if name in needed else [] for name in lists_of})
    map_dir = get("label_map_dir") if get("save_label_maps") else None
    output = Output(get("output_dir"), map_dir, get("overwrite"))
    network, resume, reinitialize = get("network"), get("resume"), get("reinitialize")
    optimizer, preprocessing = get("optimizer"), get("train#preprocessing")
    pretrained_file = None if resume else get("pretrained_file")
    searched: str | None = cohort.dataset_dir
    if configuration.brings_own_data:
        searched, output = None, replace(output, overwrite=True)

    def check_and_claim() -> None:
        check_et_label(cohort.et_label)
        check_normalization(preprocessing, settings)
        state: dict[str, Any] = {}
        start: Record | None = None
        if resume:
            path, state = newest_state(output.folder)
            steps = math.ceil(math.ceil(len(cohort.lists["training"]) / world_size()) / get("batch_size"))
            check_resumable(state, path, unwrap(network), optimizer, steps)
            last = Path(output.folder) / "model_last.pt"
            if last.is_file() and (kept := read_weights_record(last)) is not None:
                refuse_other_use(kept, settings, last)
            settings["trained_on"] = read_run_json(output.folder).get("trained_on", UNKNOWN)
        else:
            output.refuse_used(cohort.dataset_dir)
        lists = cohort.completed()
        # A case may be in both lists, as in a test of whether a network can learn it.
        both = {str(item["image"]): item for items in lists.values() for item in items}
        output.refuse_replacing(list(both.values()), cohort.datalist_file, resume)
        if searched is None:
            warn_of_shared_patients(lists["training"], lists["validation"], "The given lists")
        warnings: Warnings = {}
        synthetic = check_cases(
            list(both.values()), searched, "labeled cases", cohort.datalist_file, cohort.channel_order, kept=warnings
        )
        check_loading(configuration, lists["validation"] or lists["training"])
        phantoms = any(synthetic)
        for name in needed:
            if not lists[name]:
                raise InputError(
                    f"{cohort.datalist_file or cohort.dataset_dir}: no case for {name}; at least one for each of "
                    f"{' and '.join(needed)} is needed."
                )
            check_ranks(lists[name], f"cases for {name}")
        if pretrained_file is not None:
            if Path(pretrained_file).resolve().is_relative_to(Path(output.folder).resolve()):
                raise InputError(f"{pretrained_file}: lies in --output_dir; choose another for the new training.")
            load_pretrained(network, pretrained_file, reinitialize)
        if (file := pretrained_file or configuration.loaded_by_caller) is not None and not resume:
            start = check_start(file, settings)
        if resume:
            with output.claimed(resume):
                record_resumption(configuration, output.folder, epoch=int(state["epoch"]))
            return
        with output.claimed():
            write_datalist(lists, cohort.dataset_dir, Path(output.folder) / DATALIST_FILE)
            which = dict(zip(both, synthetic, strict=True))
            trained: dict[str, set[str]] = {"patients": set(), "phantoms": set()}
            for item in lists["training"]:
                checksum = checksum_of(image_files(item["image"])[0])[:DIGITS]
                trained["phantoms" if which[str(item["image"])] else "patients"].add(checksum)
            seen = trained_on(len(trained["patients"]), len(trained["phantoms"]), trained)
            if start is not None:
                seen = trained_after([seen, start["trained_on"]], origin(start))
            # Weights that started from phantoms' weights have not seen patients alone.
            phantoms = phantoms or bool(seen["phantoms"])
            # The training's handler writes this into the records of the weights.
            settings["trained_on"] = seen
            facts: dict[str, Any] = {"trained_on": seen, "cases": {name: len(items) for name, items in lists.items()}}
            facts["dataset_dir"] = str(Path(cohort.dataset_dir).absolute())
            facts |= recorded_order(both.values(), cohort.channel_order)
            facts["warnings"] = warnings
            write_run_json(output.folder, configuration.content, phantoms, **facts)

    on_rank_zero(check_and_claim)
    if pretrained_file is not None and rank() != 0:
        load_pretrained(network, pretrained_file, reinitialize)


def check_loading(configuration: Configuration, items: Sequence[Mapping[str, Any]]) -> None:
    """Check that the processes that load these cases, if there are any, have enough shared memory."""
    get = configuration.get
    if not items or not get("num_workers"):
        return
    # Four channels of float32, of which a brain's box is a third of a grid, and four regions of a byte.
    whole = math.prod(read_header(image_files(items[0]["image"])[0]).shape[:3]) * (16 / 3 + 4)
    patches = get("batch_size") * math.prod(get("patch_size")) * 20 if configuration.workflow == "training" else 0
    check_shared_memory(get("num_workers"), max(patches, 0 if patches and not get("val_interval") else whole))


def check_normalization(preprocessing: Compose, settings: Record) -> None:
    """Refuse a training that normalizes its patches in another way than ``settings`` say for images to be segmented."""
    if (own := normalization(preprocessing)) != (other := settings["normalization"]):
        raise InputError(
            f"train#preprocessing: sequences are normalized over: {own}; in image_transforms, which validation and "
            f"inference use, over: {other}. Leave out the overlay that changes only one of them, such as authors.yaml."
        )


def prepare_evaluation(configuration: Configuration) -> None:
    """Check settings, cases and weights of an evaluation or an inference, and write configuration and versions.

    An inference into the folder of an earlier one goes on with it: its dataset holds what is left of ``all_cases``.
    Cases of the earlier one that are not among them stay in the folder's datalist and record.
    """
    get = configuration.get
    settings: Record = get("weights_settings")
    # An evaluation selects cases, and is always done again.
    selection = get("cases") if configuration.workflow == "evaluation" else None
    all_cases = get("all_cases") if selection is None else None
    # The dataset of an inference checks the voxels of a case when it reads them. So only headers are checked here, and
    # voxels until one case is sound.
    dataset: CheckedDataset | None = get("dataset") if selection is None else None
    if selection is None:
        cohort = cohort_of(configuration, {"cases": get("dataset#data")})
        output = Output(get("output_dir"), get("output_dir"), get("overwrite"), get("case_folders"))
    else:
        cohort = cohort_of(configuration, {"cases": get("validate#dataset#data")})
        map_dir = get("label_map_dir") if get("save_label_maps") else None
        output = Output(get("evaluation_dir"), map_dir, get("overwrite"))
    network, inferer = get("network"), get("inferer" if selection is None else "validate#inferer")
    model_file, load_pretrain = get("model_file"), get("load_pretrain")
    failures = get("failures")
    warnings: Warnings = failures.warnings if failures is not None else {}
    accept = get("accept")

    def check_and_claim() -> None:
        check_et_label(cohort.et_label)
        files = ensure_tuple(model_file)
        check_who_reads_weights(network, inferer, model_file, load_pretrain)
        for file in files:
            # An earlier run's folder is moved away, together with these weights.
            inside = Path(file).resolve().is_relative_to(Path(output.folder).resolve())
            if inside and output.holds_run:
                raise InputError(f"{output.folder}: holds the weights ({file}); choose another --output_dir.")
        resume = all_cases is not None and output.holds_run and not output.overwrite
        # A caller may bring its own list, and then nothing else in the folder matters.
        brought = isinstance(configuration.content.get("all_cases"), list)
        # The cases of such a list may lie in several folders.
        # Sequences that were prepared for this run lie beside its results.
        own = [item for item in all_cases or () if brought and "preparation" not in item]
        folders = {str(Path(image_files(item["image"])[0]).parent) for item in own}
        for folder in (cohort.dataset_dir, *sorted(folders)):
            # Another process may begin a run here at any moment, so an inference may always find one.
            output.refuse_used(folder, all_cases is not None)
        items = cohort.completed()["cases"]
        output.refuse_meeting(all_cases or items)
        output.refuse_replacing(items, cohort.datalist_file, resume)
        if not files or len(set(files)) != len(files):
            raise InputError(f"--model_file {list(files)}: name at least one model file, and each once.")
        records = [check_weights(unwrap(network), file, settings) for file in files]
        if not items and selection not in (None, "all") and labeled_items(cohort.dataset_dir):
            source = cohort.datalist_file or cohort.dataset_dir
            raise InputError(f"{source}: no case for {selection}; choose --cases all.")
        made_by = {"thresholds": settings["thresholds"], "weights": [model_checksum(file) for file in files]}
        known = earlier_cases(output.folder, cohort.dataset_dir)
        if resume:
            output.refuse_other_run(configuration, made_by)
            total, left = len(all_cases or ()), len(items)
            logger.info("%s: %d of %d cases were done before; %d to do.", output.folder, total - left, total, left)
        may_lack = min((record or {}).get("missing_sequences", 0) for record in records)
        listed = cohort.datalist_file
        searched = None if brought else cohort.dataset_dir
        told: Warnings = {}
        how: dict[str, Any] = {"headers_only": dataset is not None, "accept": accept, "kept": told}
        phantoms = False
        if items or not all_cases:
            kind = "cases" if selection is None else "labeled cases"
            phantoms = any(check_cases(items, searched, kind, listed, cohort.channel_order, may_lack, **how))
            check_ranks(items, kind)
            check_loading(configuration, items)
        for case, found in told.items():
            warnings[case] = warnings.get(case, []) + found
        if dataset is not None:
            dataset.refuse_if_all_are_faulty()
        phantom_weights = [only_phantoms(record) for record in records]
        for file, synthetic in zip(files, phantom_weights, strict=True):
            if synthetic:
                logger.warning("%s was trained on phantoms alone; do not rely on its results for patients.", file)
        report_thresholds(settings["thresholds"], records)
        paths = [os.path.abspath(file) for file in files]
        facts: dict[str, Any] = {**made_by, "model_file": paths[0] if len(paths) == 1 else paths}
        facts["phantom_weights"] = any(phantom_weights)
        root = listed_from = os.path.abspath(cohort.dataset_dir)
        with output.claimed(resume, shared=all_cases is not None):
            together, accepted = list(all_cases or items), set(accept or ())
            # Another process may have begun a run here since the checks above.
            if all_cases is not None and output.holds_run:
                output.refuse_other_run(configuration, made_by)
                now = earlier_cases(output.folder, root)
                refuse_new_images(all_cases, known, now, output.folder)
                given = {str(item["case"]) for item in all_cases}
                if not items and given <= now.keys():
                    return
                earlier = read_run_json(output.folder)
                began = {key: earlier.get(key) for key in ("started", "command")}
                facts["resumed"] = [*earlier.get("resumed", []), began]
                phantoms = phantoms or bool(earlier.get("phantoms"))
                done = {str(item["case"]) for item in items}
                for case, found in earlier.get("warnings", {}).items():
                    if case not in done:
                        warnings.setdefault(case, found)
                accepted |= set(earlier.get("accepted", []))
                if failed := {case: why for case, why in earlier.get("failed", {}).items() if case not in given}:
                    facts["failed"] = failed
                together = [*(item for case, item in now.items() if case not in given), *together]
                if (before := earlier.get("dataset_dir", root)) != root:
                    root = os.path.commonpath([before, root])
                    # The paths become absolute. So they keep their meaning if the process is killed before the record.
                    listed_from = output.folder
            facts |= {"cases": len(together), **recorded_order(together, cohort.channel_order), "dataset_dir": root}
            facts |= {"warnings": warnings, "accepted": sorted(accepted)}
            name = "testing" if selection is None else "validation"
            write_datalist({name: together}, listed_from, Path(output.folder) / DATALIST_FILE)
            write_run_json(output.folder, configuration.content, phantoms, **facts)

    on_rank_zero(check_and_claim)
    if all_cases is not None and rank() != 0:
        enter_run(output.folder, shared=True)


def refuse_new_images(
    items: Iterable[Mapping[str, Any]], known: Mapping[str, Any], now: Mapping[str, Any], folder: str
) -> None:
    """Refuse cases that another process has given the folder, under the same names, since it held those ``known``."""
    for item in items:
        case = str(item["case"])
        if case in now and now[case] != known.get(case) and not same_images(item, now[case]):
            raise InputError(
                f"{folder}: another process has just begun with a case {case} of other images "
                f"({image_files(now[case]['image'])[0]}); choose another --output_dir."
            )


def cohort_of(configuration: Configuration, lists: Mapping[str, Any]) -> Cohort:
    """The cases of a run, with their origin."""
    names = ("dataset_dir", "datalist_file", "channel_order")
    return Cohort(
        lists, **{name: configuration.get(name) for name in names}, et_label=configuration.get("saved_et_label")
    )


def check_who_reads_weights(
    network: torch.nn.Module, inferer: Inferer, model_file: str | Sequence[str], load_pretrain: bool
) -> None:
    """Check that one part of a run, not two, reads the weights, and that it can take several files if there are."""
    readers = weights_readers(network, inferer)
    if not load_pretrain and not readers:
        raise InputError(
            "--load_pretrain False: nothing else reads --model_file, so the network would keep random weights; "
            "leave this setting out."
        )
    if load_pretrain and readers:
        raise InputError(f"--load_pretrain True: {' and '.join(readers)} reads --model_file itself; set it to False.")
    if not weights_readers(torch.nn.Identity(), inferer) and not isinstance(model_file, str):
        raise InputError(f"--model_file {list(model_file)}: one network takes one file; for several add ensemble.yaml.")


def report_thresholds(used: Mapping[str, Any], records: Sequence[Record | None]) -> None:
    """Log each threshold of the post-processing that differs from the one in the weights' records."""
    for name, value in used.items():
        theirs = {record["thresholds"][name] for record in records if record}
        if theirs - {value}:
            said = ", ".join(map(str, sorted(theirs)))
            logger.info("--thresholds#%s %s, where the weights' record says %s", name, value, said)


def recorded_order(items: Iterable[Mapping[str, Any]], channel_order: Sequence[str]) -> dict[str, list[str]]:
    """The entry of ``run.json`` for the order of channels; empty if the files' names give the order."""
    four_dimensional = any(isinstance(item["image"], str | Path) for item in items)
    return {"channel_order": list(channel_order)} if four_dimensional else {}


def check_ranks(items: Sequence[Mapping[str, Any]], what: str) -> None:
    """Refuse more ranks than cases, since a rank without work would block the others when results are gathered."""
    if world_size() > len(items):
        raise InputError(
            f"{world_size()} processes need at least {world_size()} {what}, and there are {len(items)}; start fewer."
        )


def record_resumption(configuration: Configuration, output_dir: str, epoch: int) -> None:
    """Note in ``run.json`` that a training goes on, and keep the configuration that it started with.

    Files that a killed run left half written are removed. If the recipe has changed meanwhile, ``run.json`` says so,
    and the weights are never published.
    """
    remove_unfinished_state(output_dir)
    config_file = Path(output_dir) / CONFIG_FILE
    record = read_run_json(output_dir)
    changed: list[str] = []
    if configuration.content and config_file.is_file():
        changed = changed_recipe(configuration.content, config_file)
        told = [key for key in changed if key != "max_epochs"]
        if told:
            logger.warning(
                "The training started with other settings of %s (%s); the optimizer keeps the values that it had then.",
                ", ".join(told),
                config_file,
            )
        keep_earlier(config_file)
    kept = ("started", "command", "bundle_version", "phantoms", "versions", "resumed", "recipe_changed")
    facts = {key: value for key, value in record.items() if key not in kept}
    facts["resumed"] = [*record.get("resumed", []), {"started": record.get("started"), "until_epoch": epoch}]
    facts["recipe_changed"] = sorted({*record.get("recipe_changed", []), *changed})
    write_run_json(output_dir, configuration.content, bool(record.get("phantoms")), **facts)
