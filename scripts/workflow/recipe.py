# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Comparison of configurations: whether a training follows the plain recipe, and whether two runs belong together."""

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser
from scripts.workflow.configuration import brings_own_data, without_tracking

# MONAI Label's training task sets these keys (monailabel 0.8.5, tasks/train/bundle.py, BundleTrainTask.__call__).
SET_BY_CALLERS = ("train#dataset#data", "validate#dataset#data", "train#trainer#max_epochs", "train#handlers")
# A training's weights are published only if no setting that affects them was changed. These keys do not affect them:
# they say where, on which data and how fast a training runs, how its data are read, and what else it writes.
NOT_OF_THE_RECIPE = {
    "bundle_root",
    "dataset_dir",
    "output_dir",
    "overwrite",
    "allow_unread",
    "publish",
    "data_license",
    "et_label",
    "label_release",
    "channel_order",
    "saved_et_label",
    "save_label_maps",
    "label_map_dir",
    "num_workers",
    "cache_rate",
    "sw_batch_size",
    "resume",
    "deterministic",
    "compile",
    "channels_last",
    "amp",
    "amp_dtype",
    "mixed_precision",
    "rank",
    "world_size",
    "device",
    "tensorboard",
    "training_scalars",
    "tensorboard_validation",
}

# A second inference into a folder goes on with the first, and may bring other cases. These keys may differ, because
# they do not change a label map, or because images, weights and the thresholds in use are compared
# (``scripts.workflow.case_records``).
NOT_OF_THE_MAPS = {
    "all_cases",
    "bundle_root",
    "dataset_dir",
    "datalist_file",
    "output_dir",
    "model_file",
    "thresholds",
    "overwrite",
    "allow_unread",
    "accept",
    "num_workers",
    "sw_batch_size",
    "rank",
    "world_size",
    "device",
    "dataloader",
}


def changed_recipe(config: Mapping[str, Any], plain: Path, free: Collection[str] = NOT_OF_THE_RECIPE) -> list[str]:
    """Keys in which the content ``config`` differs from the file ``plain``, except for the keys ``free``.

    If a caller brings its own data, the length and the handlers that it sets are no differences either: MONAI Label
    trains the network of inference.json and expects the weights in ``models``.
    """
    config = without_tracking(config)
    wanted = without_tracking(ConfigParser.load_config_file(str(plain)))
    if brings_own_data(config):
        for path in SET_BY_CALLERS:
            *parents, last = path.split("#")
            there, here = wanted, config
            for key in parents:
                there, here = there[key], here[key]
            there[last] = here[last]
    return sorted(
        key
        for key in {*config, *wanted}
        if key not in free and _comparable(config.get(key)) != _comparable(wanted.get(key))
    )


def fingerprint(config: Mapping[str, Any], free: Collection[str], further: Any) -> str:
    """SHA-256 of the content ``config``, except for the keys ``free``, and of ``further``."""
    kept = {key: _comparable(value) for key, value in without_tracking(config).items() if key not in free}
    return hashlib.sha256(_comparable([kept, further]).encode()).hexdigest()


def _comparable(value: Any) -> str:
    # JSON turns a tuple from the command line into a list. MONAI replaces # by :: in the configuration that it runs.
    return json.dumps(value, default=str, sort_keys=True).replace("#", "::")
