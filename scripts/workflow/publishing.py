# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Publish the best weights of a plain training as the bundle's own."""

import filecmp
import logging
import shutil
from pathlib import Path

from scripts.utils.distributed import rank
from scripts.utils.files import keep_earlier, replacing
from scripts.utils.run_json import RUN_FILE, read_run_json
from scripts.weights.record import record_file
from scripts.workflow.configuration import Configuration
from scripts.workflow.recipe import changed_recipe

logger = logging.getLogger(__name__)


def publish(configuration: Configuration) -> None:
    """Copy the best weights of a plain training and their record to ``models``, where MONAI's tools look for them.

    An earlier model file there, its record and its TorchScript are kept under dated names. Weights from phantoms are
    not published, nor are those of a training that departs from train.json, since inference.json fits its recipe only.
    """
    if rank() != 0:
        return
    output_dir, bundle_root = configuration.get("output_dir"), configuration.get("bundle_root")
    best = Path(output_dir) / "model.pt"
    record = read_run_json(output_dir)
    plain = Path(bundle_root) / "configs" / "train.json"
    # A training that was resumed with other settings follows no single recipe.
    changed = sorted({*changed_recipe(configuration.content, plain), *record.get("recipe_changed", [])})
    if not configuration.get("publish"):
        logger.info("Weights: %s; not published, by --publish False.", best)
        return
    if changed:
        told = ", ".join(changed)
        logger.info("Weights: %s; not published, since this is a variation of the plain recipe (%s).", best, told)
        return
    if record.get("phantoms"):
        logger.warning("Weights: %s; not published, since they come from synthetic phantoms.", best)
        return
    if not record_file(best).is_file():
        logger.warning("Weights: %s; not published, since their record (%s) is gone.", best, record_file(best).name)
        return
    target = Path(bundle_root) / "models" / "model.pt"
    pairs = ((best, target), (record_file(best), record_file(target)))
    if all(there.is_file() and filecmp.cmp(own, there, shallow=False) for own, there in pairs):
        logger.info("Weights: %s; published already as %s", best, target)
        return
    with replacing(target) as temporary, replacing(record_file(target)) as temporary_record:
        shutil.copyfile(best, temporary)
        shutil.copyfile(record_file(best), temporary_record)
        # The record and the export beside earlier weights do not describe the new ones.
        for file in (target, target.with_suffix(".ts"), target.with_name(RUN_FILE)):
            if (kept := keep_earlier(file)) is not None:
                logger.info("Kept the earlier %s as %s", file, kept)
                if file == target and record_file(file).exists():
                    record_file(file).rename(record_file(kept))
    logger.info("Published %s as %s", best, target)
