# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The examples in docstrings are true."""

import doctest
import importlib
import sys

import pytest
from workflows import ROOT

WITH_EXAMPLES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "scripts").rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")
)


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_the_examples_of_a_module(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # An example may show wrong input as a command does.
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert result.attempted > 0 and result.failed == 0


def test_what_a_user_of_the_library_calls_has_examples():
    text = {name: (ROOT / f"{name.replace('.', '/')}.py").read_text(encoding="utf-8") for name in WITH_EXAMPLES}
    assert {"scripts.brats", "scripts.data.transforms", "scripts.training.losses", "scripts.scores.metrics"} <= set(
        text
    )
    assert {"scripts.networks.prior_attention_net", "scripts.inference.inferers"} <= set(text)
    assert sum(source.count(">>> ") for source in text.values()) > 100
