# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Configurations and weights can execute only what docs/security.md says."""

import ast
import os
import pickle
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import monai
import pytest
import torch
import yaml
from monai.bundle import ConfigWorkflow, ckpt_export, onnx_export
from monai.handlers import CheckpointLoader
from scripts import export_program, import_checkpoint
from scripts.utils.errors import InputError, input_error_behind
from scripts.utils.tensors import load_torch
from workflows import CHANNELS, CONFIGS, ROOT, SIZE, TRAINING_SIZE, bundle_run

CONFIG_FILES = sorted(path for path in CONFIGS.iterdir() if path.suffix in (".json", ".yaml"))
SOURCES = sorted((ROOT / "scripts").rglob("*.py"))


def leaves(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    children = node.items() if isinstance(node, dict) else ((key, n) for n in node) if isinstance(node, list) else None
    if children is None:
        yield key, node
        return
    for name, child in children:
        yield from leaves(child, name)


def config_leaves() -> Iterator[tuple[str, Any]]:
    for path in CONFIG_FILES:
        yield from leaves(yaml.safe_load(path.read_text(encoding="utf-8")))


def test_expressions_are_those_of_the_list():
    """docs/security.md lists all expressions; a new one must be added there, too."""
    text = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```text\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    found = {value for _, value in config_leaves() if isinstance(value, str) and value.startswith("$")}
    assert found == set(block.splitlines())


def test_expressions_know_torch_and_nothing_else():
    """Expressions use only torch and a few builtins, import only torch, and read no private attribute."""
    known = {"torch", "len", "getattr", "range", "str", "reference"}
    for _, value in config_leaves():
        if not (isinstance(value, str) and value.startswith("$")):
            continue
        tree = ast.parse(re.sub(r"@[\w#:]+", "reference", value[1:]))
        own = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
        for node in ast.walk(tree):
            assert not isinstance(node, ast.Lambda | ast.ImportFrom), value
            if isinstance(node, ast.Import):
                assert [alias.name for alias in node.names] == ["torch"], value
            elif isinstance(node, ast.Name):
                assert node.id in known | own, value
            elif isinstance(node, ast.Attribute):
                assert not node.attr.startswith("_"), value
                assert node.attr not in {"load", "hub", "save", "system", "utils"}, value


def test_targets_are_of_the_bundle_monai_and_torch():
    for key, value in config_leaves():
        if key == "_target_":
            owner = value.split(".")[0] if "." in value else "monai"
            assert owner in {"scripts", "monai", "torch"}, value
            assert not value.startswith(("torch.load", "torch.hub", "monai.bundle")), value


# Modules that could fetch, run or unpickle something, by the name under which they are imported.
FORBIDDEN_IMPORTS = {
    *("dill", "joblib", "marshal", "shelve", "cloudpickle"),
    *("ftplib", "http", "requests", "socket", "telnetlib", "urllib", "urllib3", "smtplib"),
    *("pty", "code", "codeop"),
}
# These files have a reason for their import: tensors.py names pickle's error, machine.py sets two thresholds of the C
# library, and the others start this bundle's own commands.
STARTING = (
    "lab/demo",
    "lab/gpu_check/__main__",
    "lab/studies/__main__",
    "lab/studies/execution",
    "lab/benchmark/cohort",
    "lab/benchmark/ranks",
    "preparation/registration",
)
ALLOWED = {("scripts/utils/tensors.py", "pickle"), ("scripts/utils/machine.py", "ctypes")}
ALLOWED |= {*((f"scripts/{name}.py", "subprocess") for name in STARTING)}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_code_neither_unpickles_nor_connects_nor_starts_a_shell(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    name = str(path.relative_to(ROOT))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            for module in {module.split(".")[0] for module in modules}:
                assert module not in FORBIDDEN_IMPORTS, f"{name}:{node.lineno} {module}"
                if module in ("pickle", "subprocess", "ctypes"):
                    assert (name, module) in ALLOWED, f"{name}:{node.lineno} {module}"
        if not isinstance(node, ast.Call):
            continue
        call = ast.unparse(node.func)
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        where = f"{name}:{node.lineno} {call}"
        assert call not in {"eval", "exec", "compile", "__import__", "os.system", "os.popen"}, where
        assert call not in {"torch.jit.load", "torch.export.load", "torch.package.PackageImporter"}, where
        assert call not in {"yaml.load", "yaml.unsafe_load", "yaml.full_load"}, where
        assert not call.startswith(("pickle.", "os.exec", "os.spawn", "torch.hub.")), where
        assert keywords.get("shell", "False") == "False", where
        assert keywords.get("allow_pickle", "False") == "False", where
        if call == "torch.load":
            assert keywords.get("weights_only") == "True", where


class Evil:
    """An object that makes a folder when it is unpickled, in place of any code that a stranger might run."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def write_evil(kind: str, path: Path, mark: Path) -> Path:
    """Write a model file that makes ``mark`` when unpickled: in torch's zip or old format, or as a bare pickle."""
    state = {"net": {"weight": torch.zeros(1)}, "evil": Evil(mark)}
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "pickle":
        path.write_bytes(pickle.dumps(state))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    return path


def bundle_with(model: Path, tmp_path: Path) -> Path:
    root = tmp_path / "bundles" / "bundle"
    shutil.copytree(CONFIGS, root / "configs")
    (root / "models").mkdir()
    shutil.copy(model, root / "models" / "model.pt")
    return root


def load_by_monai(model: Path, tmp_path: Path, cohort: Path) -> None:
    root = bundle_with(model, tmp_path)
    monai.bundle.load("bundle", bundle_dir=str(root.parent), source="github", repo="a/b/c", device="cpu")


def export_torchscript(model: Path, tmp_path: Path, cohort: Path) -> None:
    root = bundle_with(model, tmp_path)
    ckpt_export(config_file=str(root / "configs" / "inference.json"), bundle_root=str(root))


def export_onnx(model: Path, tmp_path: Path, cohort: Path) -> None:
    config = str(CONFIGS / "inference.json")
    target = str(tmp_path / "model.onnx")
    onnx_export("network_def", target, str(model), config_file=config, input_shape=[1, 4, 32, 32, 32])


def infer(model: Path, tmp_path: Path, cohort: Path) -> None:
    place = {"dataset_dir": str(cohort), "output_dir": str(tmp_path / "maps"), "model_file": str(model)}
    bundle_run("inference.json", **place, **SIZE)


def evaluate(model: Path, tmp_path: Path, cohort: Path) -> None:
    place = {"dataset_dir": str(cohort), "output_dir": str(tmp_path / "run"), "model_file": str(model)}
    size = {key: value for key, value in TRAINING_SIZE.items() if key != "max_epochs"}
    bundle_run("train.json", "evaluate.json", **place, **size)


def evaluate_handler(model: Path, tmp_path: Path, cohort: Path) -> None:
    """Call the loader of weights of the configurations' handlers, without the checks that come before it."""
    made = ConfigWorkflow(
        [str(CONFIGS / "inference.json")],
        workflow_type="infer",
        logging_file=False,
        bundle_root=str(ROOT),
        model_file=str(model),
        **{"network_def#channels": CHANNELS},
    )
    made.initialize()
    (loader,) = [h for h in made.parser.get_parsed_content("handlers") if isinstance(h, CheckpointLoader)]
    loader(monai.engines.SupervisedEvaluator("cpu", [], torch.nn.Identity()))


PLACES = {
    "load_torch": lambda model, tmp_path, cohort: load_torch(model),
    "import of the authors' weights": lambda model, tmp_path, cohort: import_checkpoint.main(
        [str(model), str(tmp_path / "model.pt")]
    ),
    "export of a program": lambda model, tmp_path, cohort: export_program.main(
        [str(tmp_path / "m.pt2"), "--bundle_root", str(ROOT), "--model_file", str(model)]
    ),
    "inference": infer,
    "evaluation": evaluate,
    "the configurations' loader": evaluate_handler,
    "monai.bundle.load": load_by_monai,
    "ckpt_export": export_torchscript,
    "onnx_export": export_onnx,
}
# In these places, MONAI or Ignite itself refuses the weights.
MONAIS = {"the configurations' loader", "monai.bundle.load", "ckpt_export", "onnx_export"}


@pytest.mark.parametrize("kind", ["zip", "old", "pickle"])
@pytest.mark.parametrize("place", PLACES)
def test_evil_weights_are_refused_everywhere(place, kind, cohort, tmp_path):
    mark = tmp_path / "mark"
    model = write_evil(kind, tmp_path / "evil" / "model.pt", mark)
    with pytest.raises((InputError, pickle.UnpicklingError, RuntimeError)) as caught:
        PLACES[place](model, tmp_path, cohort)
    assert not mark.exists(), "something in the file has run"
    if place in MONAIS:
        assert "Weights only load failed" in str(caught.value) + str(caught.value.__cause__)
    else:
        error = input_error_behind(caught.value)
        assert error is not None
        assert "could run code" in str(error)
        assert "\n" not in str(error)


@pytest.mark.parametrize("kind", ["zip", "old", "pickle"])
def test_evil_weights_would_run_if_unpickled(kind, tmp_path):
    """Without this test, the test above would prove nothing."""
    mark = tmp_path / "mark"
    model = write_evil(kind, tmp_path / "model.pt", mark)
    if kind == "pickle":
        pickle.loads(model.read_bytes())
    else:
        torch.load(model, weights_only=False)
    assert mark.is_dir()
