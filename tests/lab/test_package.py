# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The package: its files, MONAI's ways to fetch it, and its use where only the required packages are."""

import json
import os
import re
import shutil
import subprocess
import sys
import types
import zipfile
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from pathlib import Path

import monai
import numpy as np
import pytest
import torch
import yaml
from monai.bundle import download, download_large_files, push_to_hf_hub
from packaged import check_hooks, check_pages, check_workshop_is_absent
from packaging.requirements import Requirement
from scripts.brats import REGIONS, SEQUENCES
from scripts.lab import package
from scripts.networks import PriorAttentionNet
from scripts.utils.errors import InputError
from scripts.utils.files import file_checksum
from scripts.weights.loading import check_weights
from scripts.weights.record import only_phantoms
from workflows import CHANNELS, CONFIGS, ROOT, SIZE, TRAINING_SIZE, rows, voxels

NAME = "brats_mri_panet_segmentation"
METADATA = json.loads((CONFIGS / "metadata.json").read_text())


@pytest.fixture(scope="module")
def root(training, tmp_path_factory) -> Path:
    """The bundle's root with the tiny training's weights, and with what a root also holds but nobody should get."""
    folder = tmp_path_factory.mktemp("root")
    for name in ("configs", "scripts", "docs"):
        shutil.copytree(ROOT / name, folder / name)
    shutil.copy(ROOT / "LICENSE", folder)
    (folder / "models").mkdir()
    for name in ("model.pt", "model.json"):
        shutil.copy(training / name, folder / "models")
    hidden = ("docs/.hidden", "docs/.notes/page.md", "docs/images/.cache/deep/picture.png")
    for name in ("models/model_20260101_000000.pt", "data/patient.nii.gz", "runs/train/model.pt", *hidden):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("not to be packed")
    (folder / "metadata.json").symlink_to("configs/metadata.json")
    return folder


@pytest.fixture(scope="module")
def packed(root, tmp_path_factory) -> Path:
    """What ``python -m scripts.lab.package`` makes of it."""
    folder = tmp_path_factory.mktemp("packed") / "dist"
    assert package.main([str(folder), "--bundle_root", str(root)]) == 0
    return folder


@pytest.fixture(scope="module")
def archive(packed) -> Path:
    return packed / f"{NAME}_v{METADATA['version']}.zip"


@pytest.fixture(scope="module")
def downloaded(archive, tmp_path_factory) -> Path:
    """The bundle as ``monai.bundle.download`` leaves it, from an address of the zip."""
    folder = tmp_path_factory.mktemp("bundles")
    download(name=NAME, bundle_dir=str(folder), url=archive.as_uri(), progress=False)
    return folder / NAME


def relative_files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_zip_has_one_folder_of_plain_files(archive, packed, root):
    with zipfile.ZipFile(archive) as opened:
        assert opened.testzip() is None
        entries = opened.infolist()
    names = {entry.filename for entry in entries}
    assert {Path(name).parts[0] for name in names} == {NAME}
    assert all(entry.external_attr >> 16 == 0o644 for entry in entries), "no links, nothing executable"
    inside = {name.removeprefix(f"{NAME}/") for name in names}
    code = [p for p in (ROOT / "scripts").rglob("*.py") if "lab" not in p.parts]
    expected = {str(p.relative_to(ROOT)) for p in [*code, *(ROOT / "scripts/pages/assets").iterdir()]}
    expected |= {f"configs/{p.name}" for p in CONFIGS.iterdir() if not re.search("demo|starter", p.name)}
    pages = "README interoperability networks reference security train_and_evaluate"
    expected |= {f"docs/{name}.md" for name in pages.split()}
    expected |= {f"docs/{name}" for name in ("data_license.txt", "segmentation_schema.json", "images/demo.png")}
    expected |= {"docs/images/demo_3d.png", "LICENSE", "models/model.pt", "models/model.json"}
    assert inside == expected
    assert {f"{NAME}/{name}" for name in relative_files(packed / NAME)} == names


def test_hooks_pages_and_no_workshop(packed):
    check_hooks(packed / NAME)
    check_workshop_is_absent(packed / NAME)
    check_pages(packed / NAME)


def test_a_page_is_fitted_to_its_package(packed):
    page = (
        "<!-- repository -->\nmake demo\n<!-- /repository -->\n<!-- starter -->\nscores\n<!-- /starter -->\n"
        "| `train_demo.yaml` | gone |\n| `train.json` | kept |\n"
        "[reference](reference.md), [a\npage](architecture.md#top), [site](https://example.org), [above](#above)\n"
        "['configs/inference.json','configs/starter.yaml']\n"
    )
    plain = package.fit_page(page, packed / NAME, {"train_demo.yaml"}, starter=False)
    assert plain == (
        "| `train.json` | kept |\n[reference](reference.md), a\npage, [site](https://example.org), [above](#above)\n"
        "['configs/inference.json','configs/starter.yaml']\n"
    )
    starter = package.fit_page(page, packed / NAME, {"train_demo.yaml"}, starter=True)
    assert starter == "scores\n" + plain.replace(",'configs/starter.yaml'", "")


def test_the_checksum_beside_the_zip_is_its_own(archive, packed):
    """There is none inside: the zoo removes weights and rewrites JSON, so such a list would soon be wrong."""
    checksum, name = (packed / f"{archive.name}.sha256").read_text().split()
    assert (checksum, name) == (file_checksum(archive), archive.name)
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "--check", "--quiet", f"{archive.name}.sha256"], cwd=packed, check=True)


def test_same_files_give_the_same_zip(archive, root, tmp_path):
    for path in (root / "configs").iterdir():
        os.utime(path, (1, 1))
    assert package.main([str(tmp_path / "again"), "--bundle_root", str(root)]) == 0
    assert (tmp_path / "again" / archive.name).read_bytes() == archive.read_bytes()


def test_download_by_address_and_from_a_release(archive, downloaded, packed, tmp_path):
    assert relative_files(downloaded) == relative_files(packed / NAME)
    # From a GitHub release MONAI asks for <name>_v<version>.zip; a file that is there is not fetched again.
    shutil.copy(archive, tmp_path)
    version = METADATA["version"]
    download(name=NAME, version=version, source="github", repo="owner/repo/tag", bundle_dir=str(tmp_path))
    assert relative_files(tmp_path / NAME) == relative_files(packed / NAME)
    with pytest.warns(UserWarning, match="GHSA-873f-pvrv-4x83"):
        loaded = monai.bundle.load(
            NAME, bundle_dir=str(tmp_path), source="github", device="cpu", net_override={"channels": CHANNELS}
        )
    weights = torch.load(downloaded / "models" / "model.pt", weights_only=True)
    assert all(torch.equal(value, weights[name]) for name, value in loaded.state_dict().items())


def test_hugging_face_hub(packed, tmp_path, monkeypatch):
    """``push_to_hf_hub`` and ``download`` of MONAI over a hub that is a folder here.

    Rendered: ``HfApi.create_repo``, ``upload_folder``, ``create_tag`` and ``snapshot_download`` of huggingface_hub,
    as monai/bundle/scripts.py calls them.
    """
    shutil.copytree(packed / NAME, tmp_path / "dist" / NAME)
    hub = tmp_path / "hub"

    class HfApi:
        def __init__(self, token):
            self.tags = []

        def create_repo(self, repo_id, private, exist_ok):
            assert (repo_id, private) == (f"owner/{NAME}", True)

        def upload_folder(self, repo_id, folder_path):
            return str(shutil.copytree(folder_path, hub))

        def create_tag(self, repo_id, tag, exist_ok):
            (hub.parent / tag).touch()

    def snapshot_download(repo_id, revision, local_dir):
        assert (repo_id, revision) == (f"owner/{NAME}", METADATA["version"])
        shutil.copytree(hub, local_dir)

    fake = types.SimpleNamespace(HfApi=HfApi, snapshot_download=snapshot_download)
    monkeypatch.setattr(monai.bundle.scripts, "huggingface_hub", fake)
    version = METADATA["version"]
    push_to_hf_hub(repo=f"owner/{NAME}", name=NAME, bundle_dir=str(tmp_path / "dist"), version=version)
    assert (tmp_path / version).exists()
    card = (hub / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front == {"tags": ["monai", "medical"], "library_name": "monai", "license": "apache-2.0"}
    assert card.endswith((packed / NAME / "docs" / "README.md").read_text())
    target = tmp_path / "bundles"
    download(name=NAME, version=version, source="huggingface_hub", repo=f"owner/{NAME}", bundle_dir=str(target))
    got = relative_files(target / NAME)
    assert got.pop("README.md").decode() == card
    assert got == relative_files(packed / NAME)


def test_weights_with_an_address_are_left_out_and_fetched(root, tmp_path):
    """large_files.yml as CONTRIBUTING.md of the model zoo has it, read by MONAI's ``download_large_files``."""
    arguments = ["--bundle_root", str(root), "--weights_url", (root / "models").as_uri() + "/"]
    assert package.main([str(tmp_path / "dist"), *arguments]) == 0
    folder = tmp_path / "dist" / NAME
    assert not (folder / "models" / "model.pt").exists()
    (entry,) = yaml.safe_load((folder / "large_files.yml").read_text())["large_files"]
    assert entry["path"] == "models/model.pt"
    assert entry["hash_val"] == file_checksum(root / "models" / "model.pt")
    download_large_files(bundle_path=str(folder))
    assert (folder / "models" / "model.pt").read_bytes() == (root / "models" / "model.pt").read_bytes()


@pytest.mark.parametrize("with_address", [False, True])
def test_weights_of_phantoms_keep_their_mark(root, tmp_path, with_address):
    copy = tmp_path / "copy"
    shutil.copytree(root, copy, symlinks=True)
    address = ["--weights_url", (copy / "models").as_uri()] if with_address else []
    assert package.main([str(tmp_path / "dist"), "--bundle_root", str(copy), *address]) == 0
    folder = tmp_path / "dist" / NAME
    download_large_files(bundle_path=str(folder)) if with_address else None
    network = PriorAttentionNet(channels=CHANNELS)
    assert only_phantoms(check_weights(network, folder / "models" / "model.pt"))
    assert (folder / "models" / "model.json").is_file()
    # A record without weights is of no use.
    (copy / "models" / "model.pt").unlink()
    package.make_folder(copy, tmp_path / "without")
    assert list((tmp_path / "without" / "models").iterdir()) == []


def spoil(root: Path, tmp_path: Path, kind: str) -> list[str]:
    copy = tmp_path / "copy"
    shutil.copytree(root, copy, symlinks=True)
    metadata = copy / "configs" / "metadata.json"
    arguments = ["--bundle_root", str(copy)]
    if kind == "no such file":
        metadata.unlink()
    elif kind == "not in the changelog":
        metadata.write_text(json.dumps({**METADATA, "version": "9.9.9"}))
    elif kind == "not JSON":
        metadata.write_text("{")
    elif kind == "no 'name'":
        metadata.write_text("{}")
    elif kind == "a link":
        (copy / "docs" / "more.md").symlink_to("reference.md")
    elif kind == "address of weights":
        (copy / "models" / "model.pt").unlink()
        arguments += ["--weights_url", "https://example.org"]
    elif kind == "exists already":
        (tmp_path / "dist" / NAME).mkdir(parents=True)
        (tmp_path / "dist" / NAME / "mine").touch()
    return arguments


REFUSED = ("no such file", "not in the changelog", "not JSON", "no 'name'", "a link", "address of weights")


@pytest.mark.parametrize("kind", [*REFUSED, "exists already"])
def test_refusals_leave_nothing_half_done(kind, root, tmp_path):
    arguments = spoil(root, tmp_path, kind)
    before = sorted((tmp_path / "dist").rglob("*"))
    with pytest.raises(InputError, match=kind) as caught:
        package.main([str(tmp_path / "dist"), *arguments])
    assert "\n" not in str(caught.value)
    assert sorted((tmp_path / "dist").rglob("*")) == before


def test_name_version_and_channels_are_those_of_the_metadata():
    """What stands in two places is the same in both."""
    # In the standard library from Python 3.11 on; the project's own tests run there.
    project = pytest.importorskip("tomllib").loads((ROOT / "pyproject.toml").read_text())["project"]
    name, version = package.bundle_name_and_version(ROOT)
    assert name == NAME
    assert project["name"].replace("-", "_") == NAME
    assert (project["version"], version) == (METADATA["version"],) * 2
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (citation["title"], citation["version"]) == (NAME, version)
    data = METADATA["network_data_format"]
    channels = data["inputs"]["image"]["channel_def"]
    assert tuple(channels[str(i)].lower() for i in range(4)) == SEQUENCES
    regions = data["outputs"]["pred"]["channel_def"]
    initials = ["".join(word[0] for word in regions[str(i)].split()).upper() for i in (1, 2, 3)]
    train = json.loads((CONFIGS / "train.json").read_text())
    labels = train["validate"]["additional_metrics"]["val_dice"]["metric_fn"]["return_with_label"]
    assert [label.removeprefix("val_dice_") for label in labels] == initials == list(REGIONS)
    assert train["network_def"]["in_channels"] == len(channels) == data["inputs"]["image"]["num_channels"]
    assert train["network_def"]["out_channels"] == len(regions) == data["outputs"]["pred"]["num_channels"]
    # The card's Python, and the packages that come with it.
    assert re.search(r"Python 3\.10 to 3\.13", (ROOT / "docs" / "README.md").read_text())
    assert project["requires-python"] == ">=3.10,<3.14"


def required_distributions() -> set[str]:
    """torch, MONAI, NumPy and what metadata.json requires, with all that these require in their turn."""
    wanted = ["torch", "monai", "numpy", *METADATA["required_packages_version"]]
    found: set[str] = set()
    while wanted:
        name = re.sub(r"[-_.]+", "-", wanted.pop()).lower()
        if name in found:
            continue
        try:
            requirements = [Requirement(text) for text in distribution(name).requires or []]
        except PackageNotFoundError:  # a requirement of another platform
            continue
        found.add(name)
        wanted += [r.name for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})]
    return found


CHILD = """
import importlib.machinery, json, os, sys
bundle, other, arguments = json.loads(sys.argv[1])
class Required(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in other else super().find_spec(name, path, target)
finders = [f for f in sys.meta_path if "editable" not in str(f)]
sys.meta_path[:] = [Required if f is importlib.machinery.PathFinder else f for f in finders]
import monai
from monai.bundle import run
before = list(sys.path)
files = [bundle + "/configs/train.json", bundle + "/configs/evaluate.json"]
run(config_file=files, bundle_root=bundle, **arguments["evaluate"])
import scripts
assert scripts.__file__ == bundle + "/scripts/__init__.py", scripts.__file__
# As if in a process of its own: MONAI has put the bundle's root into the search path.
sys.path[:] = before
for name in [name for name in sys.modules if name.partition(".")[0] == "scripts"]:
    del sys.modules[name]
os.chdir(bundle)
run(config_file="configs/inference.json", **arguments["inference"])
import scripts
assert scripts.__file__ == bundle + "/scripts/__init__.py", scripts.__file__
print("imported beside what is required:", sorted(set(other) & set(sys.modules)))
"""


def test_runs_with_only_the_required_packages(downloaded, cohort, segmentation, tmp_path):
    """Evaluation from elsewhere and inference in the bundle's root, in a process that finds no other package.

    The process sees neither the installed ``scripts`` nor any package that metadata.json does not require.
    """
    required = required_distributions()
    assert "pytest" not in required
    other = [
        module
        for module, owners in packages_distributions().items()
        if module != "scripts" and not {re.sub(r"[-_.]+", "-", owner).lower() for owner in owners} & required
    ]
    assert {"pytest", "itk", "pydicom"} <= set(other)
    case = next(cohort.rglob("BraTS20_Training_002"))
    place = {"dataset_dir": str(case), "model_file": str(downloaded / "models" / "model.pt"), "logging_file": False}
    size = {key: value for key, value in TRAINING_SIZE.items() if key != "max_epochs"}
    arguments = {
        "inference": {**place, **SIZE, "output_dir": str(tmp_path / "maps")},
        "evaluate": {**place, **size, "output_dir": str(tmp_path / "run"), "cases": "all"},
    }
    done = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps([str(downloaded), other, arguments])],
        cwd=tmp_path,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "imported beside what is required: []" in done.stdout
    wanted = voxels(segmentation / f"{case.name}.nii.gz")
    for folder in (tmp_path / "maps", tmp_path / "run" / "evaluation_all"):
        assert np.array_equal(voxels(folder / f"{case.name}.nii.gz"), wanted)
    assert set(rows(tmp_path / "run" / "evaluation_all" / "scores.csv")) == {case.name}
