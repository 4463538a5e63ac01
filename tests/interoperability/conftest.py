# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""A copy of the bundle, as a consumer gets it, but with a tiny network and its weights."""

import json
import shutil
from pathlib import Path

import pytest
from workflows import ROOT, SIZE, TRAINING_SIZE

NAME = "brats_mri_panet_segmentation"


def shrink(config: dict, size: dict) -> dict:
    for key, value in size.items():
        *parents, last = key.split("#")
        node = config
        for parent in parents:
            node = node[parent]
        node[last] = value
    return config


@pytest.fixture(scope="session")
def bundle(training: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the bundle's folder in another place, with the network and the weights of the tiny training."""
    root = tmp_path_factory.mktemp("consumer") / NAME
    for folder in ("configs", "scripts", "docs"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("LICENSE", "README.md"):
        shutil.copy(ROOT / file, root)
    for name, size in (("train.json", TRAINING_SIZE), ("inference.json", SIZE)):
        path = root / "configs" / name
        path.write_text(json.dumps(shrink(json.loads(path.read_text()), size), indent=4))
    (root / "models").mkdir()
    for name in ("model.pt", "model.json"):
        shutil.copy(training / name, root / "models")
    return root


@pytest.fixture
def fresh_bundle(bundle: Path, tmp_path: Path) -> Path:
    """A copy of ``bundle`` for tests that write into it."""
    return shutil.copytree(bundle, tmp_path / NAME)
