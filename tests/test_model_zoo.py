# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""What the MONAI model zoo does with a bundle that is handed in, in its order, on this bundle as it lies.

Source: Project-MONAI/model-zoo (dev): ci/verify_bundle.py (``verify``), ci/unit_tests/utils.py, ci/unit_tests/
test_brats_mri_segmentation.py and its _dist, CONTRIBUTING.md, docs/readme_template.md, runtests.sh, setup.cfg.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from forks import python
from monai.bundle import ConfigParser, ConfigWorkflow, ckpt_export, verify_metadata, verify_net_in_out
from scripts.lab import package
from scripts.networks import PriorAttentionNet
from workflows import CONFIGS, ROOT, SIZE, TRAINING_SIZE

# Where MONAI's schema of the metadata would be stored after its download (ci/prepare_schema.py).
SCHEMA = Path(__file__).parent / "metadata_schema.json"


@pytest.fixture(scope="module")
def zoo(tmp_path_factory) -> Path:
    """A folder models/<bundle> as in the zoo, with weights of the full-size network."""
    name, _ = package.bundle_name_and_version(ROOT)
    folder = tmp_path_factory.mktemp("zoo") / "models" / name
    package.make_folder(ROOT, folder)
    torch.manual_seed(3)
    torch.save(PriorAttentionNet().state_dict(), folder / "models" / "model.pt")
    return folder


def test_files_that_must_and_should_be_there(zoo):
    """``verify_bundle_directory``: necessary and preferred files."""
    for file in ("configs/metadata.json", "LICENSE", "models/model.pt"):
        assert (zoo / file).is_file(), file
    assert [name for name in os.listdir(zoo / "configs") if re.fullmatch(r"inference\.(json|yaml|yml)", name)]
    # "Format of the license": the owners' terms for the data.
    assert "terms" in (zoo / "docs" / "data_license.txt").read_text()
    assert re.fullmatch(r"[a-z0-9_]+", zoo.name)
    # Limit for a file beside the weights: 25 MB.
    assert max(path.stat().st_size for path in zoo.rglob("*") if path.suffix != ".pt") < 25 * 2**20
    for path in (zoo / "configs").glob("*.json"):
        assert "/home/" not in path.read_text(), "no path that is personal"


def test_version_is_in_the_changelog(zoo):
    """``verify_version_changes``."""
    metadata = json.loads((zoo / "configs" / "metadata.json").read_text())
    assert metadata["version"] in metadata["changelog"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", metadata["version"])
    assert next(iter(metadata["changelog"])) == metadata["version"], "the zoo's changelogs have the newest first"


def schema_of(zoo: Path) -> Path:
    stored = zoo / "eval" / "schema.json"
    stored.parent.mkdir(exist_ok=True)
    shutil.copyfile(SCHEMA, stored)
    return stored


def test_metadata_fits_the_specification(zoo):
    """``verify_metadata_format``: MONAI's own command, over a rendering of the specification's rules."""
    pytest.importorskip("jsonschema")
    verify_metadata(meta_file=str(zoo / "configs" / "metadata.json"), filepath=str(schema_of(zoo)))


FAULTS = {
    "a schema of another address": lambda m: m.update(schema="https://example.org/meta_schema.json"),
    "no authors": lambda m: m.pop("authors"),
    "no packages": lambda m: m.pop("required_packages_version"),
    "version as a number": lambda m: m.update(version=1.0),
    "no outputs": lambda m: m["network_data_format"].pop("outputs"),
    "no channel_def": lambda m: m["network_data_format"]["outputs"]["pred"].pop("channel_def"),
    "unknown type": lambda m: m["network_data_format"]["inputs"]["image"].update(type="picture"),
    "one bound of a range": lambda m: m["network_data_format"]["inputs"]["image"].update(value_range=[0]),
    "a shape that is no expression": lambda m: m["network_data_format"]["inputs"]["image"].update(
        spatial_shape=["import os"]
    ),
    "segmentation of four channels": lambda m: m["network_data_format"]["outputs"]["pred"].update(
        format="segmentation"
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faulty_metadata_is_refused(fault, zoo, tmp_path):
    """The rendering is not empty: each rule can fail."""
    pytest.importorskip("jsonschema")
    metadata = json.loads((zoo / "configs" / "metadata.json").read_text())
    FAULTS[fault](metadata)
    (tmp_path / "metadata.json").write_text(json.dumps(metadata))
    with pytest.raises(ValueError, match="Failed validating"):
        verify_metadata(meta_file=str(tmp_path / "metadata.json"), filepath=str(schema_of(zoo)))


def test_metadata_without_the_address_of_a_schema_are_refused(zoo, tmp_path):
    """By MONAI's command, and by the schema, in which that address is required."""
    jsonschema = pytest.importorskip("jsonschema")
    metadata = json.loads((zoo / "configs" / "metadata.json").read_text())
    del metadata["schema"]
    (tmp_path / "metadata.json").write_text(json.dumps(metadata))
    with pytest.raises(ValueError, match="must provide the `schema` field"):
        verify_metadata(meta_file=str(tmp_path / "metadata.json"), filepath=str(schema_of(zoo)))
    with pytest.raises(jsonschema.ValidationError, match="'schema' is a required property"):
        jsonschema.validate(metadata, json.loads(SCHEMA.read_text()))


def test_the_schemas_other_address_is_one_too(zoo, tmp_path):
    pytest.importorskip("jsonschema")
    metadata = json.loads((zoo / "configs" / "metadata.json").read_text())
    metadata["schema"] = "https://project-monai.github.io/schema/meta_schema_20240725.json"
    (tmp_path / "metadata.json").write_text(json.dumps(metadata))
    verify_metadata(meta_file=str(tmp_path / "metadata.json"), filepath=str(schema_of(zoo)))


def test_json_is_as_the_zoos_hook_would_write_it():
    """``pretty-format-json --autofix --no-sort-keys --indent=4`` of its pre-commit configuration changes nothing."""
    ignored = {
        ".venv",
        "runs",
        "data",
        "dist",
        "models",
        "cache",
        ".git",
        ".mypy_cache",
        ".hypothesis",
        "wheels",
        ".gpu",
    }
    files = [path for path in ROOT.rglob("*.json") if path.relative_to(ROOT).parts[0] not in ignored]
    assert len(files) > 10
    for path in files:
        text = path.read_text(encoding="utf-8")
        assert text == json.dumps(json.loads(text), indent=4) + "\n", f"python -m json.tool --indent 4 {path} {path}"


# As ci/unit_tests/utils.py has it, whose code is the zoo's: the configuration as one file, run by torchrun.
UTILS = """
import subprocess
import sys

from monai.bundle import ConfigParser, ConfigWorkflow


def export_config_and_run_mgpu_cmd(
    config_file, meta_file, logging_file, override_dict, output_path, ngpu=2, check_config=False
):
    parser = ConfigParser()
    parser.read_config(config_file)
    parser.update(pairs=override_dict)
    ConfigParser.export_config_file(parser.config, output_path, indent=4)
    files = {"config_file": output_path, "meta_file": meta_file, "logging_file": logging_file}
    if check_config:
        workflow = ConfigWorkflow(workflow_type="train", **files)
        workflow.initialize()
        assert not workflow.check_properties()
    options = [text for name, value in files.items() for text in (f"--{name}", value)]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ngpu}", "-m"]
    subprocess.check_call([*torchrun, "monai.bundle", "run", *options])
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["test_brats_mri_panet_segmentation", "test_brats_mri_panet_segmentation_dist"])
def test_the_unit_tests_for_the_zoo_pass_again_and_again_in_one_checkout(name, zoo, tmp_path):
    """``ci/unit_tests/runner.py -b <bundle>`` in the zoo's root; all that they write goes to temporary folders."""
    unit_tests = tmp_path / "ci" / "unit_tests"
    shutil.copytree(ROOT / "tests" / "model_zoo", unit_tests)
    (unit_tests / "utils.py").write_text(UTILS)
    before = {path: path.stat().st_mtime_ns for path in zoo.rglob("*") if path.suffix != ".pyc"}
    runs = 1 if name.endswith("_dist") else 2
    for _ in range(runs):
        done = subprocess.run(
            [python(), "-m", "unittest", name],
            cwd=zoo.parents[1],
            env={**os.environ, "PYTHONPATH": str(unit_tests), "CUDA_VISIBLE_DEVICES": ""},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
    assert {path: path.stat().st_mtime_ns for path in zoo.rglob("*") if path.suffix != ".pyc"}.keys() == before.keys()


@pytest.mark.slow
def test_shapes_and_torchscript(zoo, caplog):
    """``verify_data_shape`` and ``verify_torchscript``, with the zoo's arguments, and the export's values."""
    inference, metadata = zoo / "configs" / "inference.json", zoo / "configs" / "metadata.json"
    shared = {"net_id": "network_def", "meta_file": str(metadata), "config_file": str(inference)}
    with caplog.at_level("INFO", logger="monai.bundle"):
        verify_net_in_out(**shared, bundle_root=str(zoo))
    assert "data shape of network is verified with no error" in caplog.text
    exported = zoo / "models" / "verify_model.ts"
    ckpt_export(**shared, filepath=str(exported), ckpt_file=str(zoo / "models" / "model.pt"), bundle_root=str(zoo))
    network = PriorAttentionNet().eval()
    network.load_state_dict(torch.load(zoo / "models" / "model.pt", weights_only=True))
    x = torch.randn(1, 4, 32, 32, 48)
    with torch.no_grad():
        assert torch.allclose(torch.jit.load(exported)(x), network(x), rtol=1e-5, atol=1e-5)


def check_workflow(workflow: ConfigWorkflow) -> None:
    """``check_workflow(..., check_properties=True)`` of ci/unit_tests/utils.py."""
    workflow.initialize()
    assert workflow.check_properties() == []
    workflow.run()
    workflow.finalize()


def zoo_workflow(zoo: Path, kind: str, *names: str, **override) -> ConfigWorkflow:
    return ConfigWorkflow(
        [str(zoo / "configs" / name) for name in names],
        workflow_type=kind,
        logging_file=str(zoo / "configs" / "logging.conf"),
        meta_file=str(zoo / "configs" / "metadata.json"),
        bundle_root=str(zoo),
        **override,
    )


def test_workflows_train_evaluate_infer(zoo, cohort, tmp_path):
    """As in test_brats_mri_segmentation.py: one epoch, then evaluation and inference of what it left."""
    size = {**TRAINING_SIZE, "max_epochs": 1, "val_interval": 1, "train#dataloader#num_workers": 1}
    place = {"dataset_dir": str(cohort), "output_dir": str(tmp_path / "train")}
    check_workflow(zoo_workflow(zoo, "train", "train.json", **place, **size))
    assert (tmp_path / "train" / "model.pt").is_file()
    check_workflow(zoo_workflow(zoo, "train", "train.json", "evaluate.json", **place, **size))
    evaluated = {path.name for path in (tmp_path / "train" / "evaluation_validation").glob("*.nii.gz")}
    assert len(evaluated) == 1
    place = {"dataset_dir": str(cohort), "output_dir": str(tmp_path / "maps")}
    model = str(tmp_path / "train" / "model.pt")
    check_workflow(zoo_workflow(zoo, "infer", "inference.json", **place, **SIZE, model_file=model))
    assert evaluated < {path.name for path in (tmp_path / "maps").glob("*.nii.gz")}


MULTI_GPU = [
    ("train.json", "multi_gpu_train.json"),
    ("train.json", "evaluate.json", "multi_gpu_evaluate.json"),
    ("inference.json", "multi_gpu_evaluate.json"),
]


@pytest.mark.parametrize("names", MULTI_GPU, ids="+".join)
def test_multi_gpu_workflows(names, zoo, cohort, training, tmp_path, monkeypatch):
    """``export_config_and_run_mgpu_cmd(check_config=True)``: merged, exported as one file, checked and run.

    Run here as the only rank of one, in this process, by the variables that torchrun sets.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for key, value in ranks.items():
        monkeypatch.setenv(key, str(value))
    infers, trains = "inference.json" in names, "multi_gpu_train.json" in names
    size = SIZE if infers else {**TRAINING_SIZE, "max_epochs": 1, "val_interval": 1}
    override = {"bundle_root": str(zoo), "dataset_dir": str(cohort), "output_dir": str(tmp_path / "out"), **size}
    if not trains:
        override["model_file"] = str(training / "model.pt")
    parser = ConfigParser()
    parser.read_config([str(zoo / "configs" / file) for file in names])
    parser.update(pairs=override)
    exported = tmp_path / "override.json"
    ConfigParser.export_config_file(parser.config, str(exported), indent=4)
    check_workflow(
        ConfigWorkflow(
            str(exported),
            workflow_type="infer" if infers else "train",
            logging_file=str(zoo / "configs" / "logging.conf"),
            meta_file=str(zoo / "configs" / "metadata.json"),
        )
    )
    assert not torch.distributed.is_initialized(), "finalize ends what initialize started"
    assert list((tmp_path / "out").rglob("model.pt" if trains else "*.nii.gz"))


def test_sections_of_the_model_card_in_the_zoo_s_order():
    """docs/readme_template.md; its optional sections may be left out, none may be moved."""
    template = [
        "### **Authors**",
        "### **Tags**",
        "## **Model Description**",
        "## **Data**",
        "#### **Preprocessing**",
        "## **Performance**",
        "## **Additional Usage Steps**",
        "## **System Configuration**",
        "## **Limitations**",
        "## **Citation Info**",
        "## **References**",
    ]
    optional = {name for name in template if re.search("Usage|Limitations|Citation|References", name)}
    text = (ROOT / "docs" / "README.md").read_text()
    found = [line.split(" (Optional)")[0] for line in text.splitlines() if re.match(r"#{2,4} \*\*", line)]
    assert text.startswith("# ")
    main = [line for line in found if line in template]
    assert main == [name for name in template if name in main]
    assert set(template) - set(main) <= optional
    assert all(line.startswith("####") for line in found if line not in template), "additional sections have four #"


def test_keys_of_the_configurations():
    """CONTRIBUTING.md, "Preferred Files and Keys"."""
    inference, train = (json.loads((CONFIGS / f"{name}.json").read_text()) for name in ("inference", "train"))
    assert {"bundle_root", "device", "network_def", "inferer", "output_dir"} <= set(inference)
    assert {"bundle_root", "device", "dataset_dir", "output_dir", "val_interval"} <= set(train)
    assert {"trainer", "dataset", "handlers", "preprocessing", "inferer"} <= set(train["train"])
    assert "max_epochs" in train["train"]["trainer"]
    assert {"evaluator", "handlers", "dataset", "postprocessing", "key_metric"} <= set(train["validate"])
    (validation,) = [h for h in train["train"]["handlers"] if h["_target_"] == "ValidationHandler"]
    assert validation["interval"] == "@val_interval"


# setup.cfg of the zoo: [flake8] and [isort]; pyproject.toml: black at 120.
FLAKE8_IGNORED = "E203,E501,E741,W503,W504,C408,N812,B023,B905,B028,B907,C419"
CODE_FORMAT = {
    "black": ["--line-length", "120", "--skip-magic-trailing-comma", "--check"],
    "isort": ["--profile", "black", "--line-length", "120", "--project", "models", "--check"],
    "flake8": ["--isolated", "--select", "B,C,E,F,N,P,T4,W,B9", "--max-line-length", "120", "--ignore", FLAKE8_IGNORED],
}


@pytest.mark.slow
@pytest.mark.parametrize("tool", CODE_FORMAT)
def test_code_format_as_the_zoo_checks_it(tool, zoo):
    """``runtests.sh --codeformat`` from the zoo's root, with the zoo's settings and not this repository's."""
    pytest.importorskip(tool)
    extra = ["--per-file-ignores", "__init__.py:F401"] if tool == "flake8" else []
    command = [sys.executable, "-m", tool, *CODE_FORMAT[tool], *extra, "."]
    done = subprocess.run(command, cwd=zoo.parent.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
