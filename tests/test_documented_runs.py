# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Every command of the documentation runs, in a copy of the bundle, and makes the files that its page promises.

What the user fills in is small data here, and settings that make a run small follow at the end of the line. The
commands of docs/get_started.md run in ``test_walkthroughs.py``, and the blocks of docs/interoperability.md in
``interoperability/test_page.py``.
"""

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from pages import ALL, in_blocks, run
from scripts.networks import CascadedUNet, SwinUNETR
from workflows import CHANNELS, ROOT, SIZE, TRAINING_SIZE

# Commands that cannot run in a test, and the reason. As in all that follows, ``x`` is what the user fills in.
GPU = "it needs a GPU"
MINUTES = "it takes minutes; what it calls has tests"
SAME = "it is `python -m scripts.lab.benchmark training` with sizes alone, and a small size of that is run"
SERVER = "it needs a server; test_package.py calls the function on what is here"
NOT_RUN = {
    "panet calibrate runs/fold_*/evaluation_validation --model models/model.pt --plot reliability.png": (
        "it needs dozens of evaluated patients; tests/test_calibrate.py runs it"
    ),
    "panet prepare x -o prepared": "it needs raw scans; tests/preparation and tests/patients/test_raw.py",
    "panet segment x -o out --t1ce x": "it needs a study in doubt; tests/data/test_dicom.py",
    "make install": "it needs a package index",
    "make demo": MINUTES,
    "make test": "it runs this test",
    "make test TIMES=docs/benchmarks/tests.csv": "it runs this test",
    "make test-lab": "it runs the tests",
    "make check": "it runs the tests",
    "make gpu-check": GPU,
    "make gpu-wheels": "it needs a package index",
    "python -m scripts.lab.gpu_check --device cpu --small": MINUTES,
    "python -m scripts.lab.benchmark training --device cpu --size 64 --samples 0 --steps 5 "
    "--channels 8 16 24 32 40": SAME,
    "python -m scripts.lab.benchmark training --device cpu --size 64 --samples 0 --steps 5 "
    "--channels 16 32 64 96 128": SAME,
    "python -m monai.bundle run inference --config_file \"['configs/inference.json','configs/inference_trt.json']\" "
    "--dataset_dir x": GPU,
    "tensorboard --logdir runs": "it is a server, which does not end",
    "python -m monai.bundle download --name brats_mri_panet_segmentation --url x --bundle_dir x": SERVER,
    "python -m monai.bundle download_large_files": SERVER,
    "python -m monai.bundle push_to_hf_hub --repo x/brats_mri_panet_segmentation --name brats_mri_panet_segmentation "
    "--bundle_dir dist --version x": SERVER,
    "python -m monai.bundle ckpt_export": "it is the name of a program; the commands of other pages are run",
}


class Step(NamedTuple):
    """A documented command and what comes of it.

    Attributes:
        end: the end of its line, which no other line has.
        makes: patterns of the files that it makes.
        adds: more options, after those of the line and of ``small``.
        says: pattern of what it prints.
        given: what the page takes for granted, as pairs of a path and the path of its copy.
    """

    end: str
    makes: tuple[str, ...] = ()
    adds: str = ""
    says: str = ""
    given: tuple[tuple[str, str], ...] = ()


def weights_in(*folders: str) -> tuple[tuple[str, str], ...]:
    return tuple((f"models/{name}", f"{folder}/{name}") for folder in folders for name in ("model.pt", "model.json"))


def timed(end: str, adds: str = "") -> Step:
    """A benchmark, which writes its results to a file that the user names."""
    return Step(end, ("times.json",), f"{adds} --output times.json")


NAME = "brats_mri_panet_segmentation"
CASE = "BraTS20_Training_001"
WIDTHS = f"--channels {' '.join(map(str, CHANNELS))}"
ONE_STEP = f"--size 32 --steps 1 --runs 1 --samples 0 --no-compile {WIDTHS}"
ONE_WINDOW = f"--spacing 4 --window 48 {WIDTHS}"
# An import refuses to replace weights, so this group begins without them.
AUTHORS = "import and segment by the authors' path"
# Each group begins with the bundle as it is and with weights in models/, and its commands follow each other.
GROUPS = {
    "train, evaluate and look": [
        Step(
            "training --config_file configs/train.json --dataset_dir x",
            ("runs/train/model.pt", "runs/train/model.json"),
        ),
        Step(
            "['configs/train.json','configs/evaluate.json']\" --dataset_dir x",
            ("runs/train/evaluation_validation/scores.csv", "runs/train/evaluation_validation/*.nii.gz"),
        ),
        Step("--resume True", ("runs/train/model_last.pt",), "--max_epochs 2"),
        Step(
            "panet compare runs/train/evaluation_validation runs/sgd/evaluation_validation "
            "--output comparison.csv --plot comparison.png",
            ("comparison.csv", "comparison.png"),
            given=(("runs/train/evaluation_validation", "runs/sgd/evaluation_validation"),),
        ),
        Step("panet report runs/train", ("runs/train/report.html",)),
        Step("panet report runs/train/evaluation_validation", ("runs/train/evaluation_validation/report.html",)),
    ],
    "segment and look": [
        Step("configs/inference.json --dataset_dir x", (f"runs/inference/{CASE}.nii.gz", "runs/inference/run.json")),
        Step(
            "picture.png --prediction runs/inference/x.nii.gz --surface picture_3d.png",
            ("picture.png", "picture_3d.png"),
        ),
        Step(
            "panet segment x -o out",
            (f"out/{CASE}/{CASE}.nii.gz", f"out/{CASE}/{CASE}.json", f"out/{CASE}/{CASE}*.png"),
        ),
        Step("['configs/inference.json','configs/starter.yaml']\" --dataset_dir x", (f"runs/starter/{CASE}.nii.gz",)),
        Step(
            "--datalist_file x --cases validation --dataset_dir x", ("runs/starter/evaluation_validation/scores.csv",)
        ),
    ],
    "segment in other ways": [
        # Each way has its folder; a folder of other settings is refused.
        Step(
            "'configs/tta.yaml']\" --dataset_dir x",
            (f"runs/inference/{CASE}.nii.gz", f"runs/inference/{CASE}_unc_whole.nii.gz"),
            "--save_uncertainty True",
        ),
        Step(
            "['configs/inference.json','configs/whole_brain.yaml']\" --dataset_dir x",
            (f"whole/{CASE}.nii.gz",),
            "--output_dir whole",
        ),
        Step("'configs/openvino.yaml']\" --dataset_dir x", (f"fast/{CASE}.nii.gz",), "--output_dir fast"),
        Step(
            "'configs/inference_pipelined.yaml']\" --dataset_dir x",
            (f"pipelined/{CASE}.nii.gz",),
            "--output_dir pipelined",
        ),
        Step(
            "['configs/inference.json','configs/ensemble.yaml']\" --dataset_dir x "
            "--model_file \"['runs/fold_0/model.pt','runs/fold_1/model.pt']\"",
            (f"runs/ensemble/{CASE}.nii.gz",),
            given=weights_in("runs/fold_0", "runs/fold_1"),
        ),
        Step(
            "--datalist_file x --model_file \"['runs/fold_0/model.pt','runs/fold_1/model.pt']\"",
            ("runs/ensemble/evaluation_validation/scores.csv",),
        ),
    ],
    AUTHORS: [
        # The import prints what the next command needs: the network's widths.
        Step("panet import x models/model.pt", ("models/model.pt", "models/model.json"), says=r'"\[6, 8, 8, 12, 16\]"'),
        Step(
            "'configs/authors.yaml']\" --dataset_dir x",
            (f"authors/{CASE}.nii.gz",),
            # The weights are for 1 mm, and the small cases stay as they are.
            "--output_dir authors --network_def#channels [6,8,8,12,16] --spacing [1,1,1] --roi_size [64,64,48] "
            "--image_transforms \"['@load_image','@channels_first','@to_lps','@pad','@normalize']\" "
            "--pad#spatial_size [64,64,48]",
        ),
    ],
    "train in other ways": [
        Step(
            "'configs/train_cached.yaml','configs/train_fast.yaml']\" --dataset_dir x --cache_dir x",
            ("fast/model.pt", "cache/*"),
            # A compilation takes minutes.
            "--compile False --output_dir fast",
        ),
        Step("--reinitialize \"['outputs']\"", ("runs/finetune/model.pt",)),
        Step(
            "--pretrained_file runs/cascade/model.pt --reinitialize \"['second_stage']\"",
            ("second/model.pt",),
            "--output_dir second",
            given=(("cascade.pt", "runs/cascade/model.pt"),),
        ),
        Step("configs/train.json --dataset_dir x --fold 0", ("runs/fold_0/model.pt",)),
        Step("'configs/evaluate.json']\" --dataset_dir x --fold 0", ("runs/fold_0/evaluation_validation/scores.csv",)),
        Step(
            "'configs/train_cached.yaml']\" --dataset_dir x --fold 0",
            ("cached/model.pt", "cache/*"),
            "--output_dir cached",
        ),
    ],
    "another network and several processes": [
        Step(
            "['configs/train.json','configs/network_attention_unet.yaml']\" --dataset_dir x "
            "--output_dir runs/attention_unet",
            ("runs/attention_unet/model.pt",),
        ),
        Step(
            "'configs/network_attention_unet.yaml','configs/evaluate.json']\" --dataset_dir x "
            "--output_dir runs/attention_unet",
            ("runs/attention_unet/evaluation_validation/scores.csv",),
        ),
        Step(
            "'configs/network_attention_unet.yaml']\" --dataset_dir x --model_file runs/attention_unet/model.pt",
            (f"runs/inference/{CASE}.nii.gz",),
        ),
        Step(
            "['configs/train.json','configs/multi_gpu_train.json']\" --dataset_dir x",
            ("runs/train/model.pt",),
            "--validation_fraction 0.4",
        ),
        Step(
            "'configs/evaluate.json','configs/multi_gpu_evaluate.json']\" --dataset_dir x",
            ("runs/train/evaluation_validation/scores.csv",),
        ),
        Step(
            "'configs/multi_gpu_evaluate.json']\" --dataset_dir x --model_file runs/train/model.pt",
            (f"ranks/{CASE}.nii.gz",),
            "--output_dir ranks",
        ),
    ],
    "phantoms and the starter weights": [
        Step(
            "scripts.lab.phantoms runs/varied --cases 160 --seed 7 --difficulty varied",
            ("runs/varied/*/*_002/*_seg.nii.gz",),
            "--cases 2",
        ),
        Step("'configs/train_starter.yaml']\" --dataset_dir runs/varied", ("runs/train_starter/model.pt",)),
        Step('--output_dir runs/starter_0 --data_license "x"', ("runs/starter_0/model.pt",)),
        Step(
            "runs/starter_2/model.pt runs/starter_3/model.pt",
            ("models/mean.pt", "models/mean.json"),
            given=tuple(("runs/starter_0", f"runs/starter_{fold}") for fold in (1, 2, 3)),
        ),
        Step(
            "scripts.lab.phantoms OUT --cases 16 --seed 0 --difficulty demo", ("OUT/*/*_002/*_seg.nii.gz",), "--cases 2"
        ),
        Step("scripts.lab.threshold_baseline OUT --limit 0.5", says=r"Dice"),
        Step("scripts.lab.threshold_baseline OUT --voxelwise --limit 0.7", says=r"Dice"),
    ],
    # A study takes hours. tests/lab/studies runs small ones.
    "plan studies": [
        Step("scripts.lab.studies scripts/lab/plans/study.yaml --jobs 2", adds="--dry_run", says="17 runs"),
        Step(
            "--output_dir runs/study_patients --jobs 2",
            adds="--dry_run",
            says="16 runs",
            given=tuple(
                ("models/model.pt", f"runs/study/runs/{variant}_seed0/model_last.pt")
                for variant in ("panet", "no_prior_loss", "unet", "cascaded_unet")
            ),
        ),
        Step("--output_dir runs/study_brats", adds="--dry_run", says="30 runs"),
    ],
    "export and package": [
        Step(
            "ckpt_export --config_file configs/inference.json --_meta_#weights %models/model.json",
            ("models/model.ts",),
            f"--network_def#channels '{CHANNELS}'",
        ),
        Step(
            '--use_trace True --input_shape "[1,4,128,128,128]"',
            ("models/model.ts",),
            "--network_def#feature_size 12 --ckpt_file swin.pt --input_shape [1,4,64,32,32]",
        ),
        Step(
            "scripts.lab.package dist --starter",
            (f"dist/{NAME}_starter/models/model.pt", f"dist/{NAME}_starter_v*.zip"),
        ),
        Step("python -m json.tool --indent 4 x x", ("written.json",)),
    ],
    "package by make": [
        Step("make package", (f"dist/{NAME}/models/model.pt", f"dist/{NAME}_v*.zip")),
        Step("make package-starter", (f"dist/{NAME}_starter/models/model.pt", f"dist/{NAME}_starter_v*.zip")),
    ],
    "time": [
        timed("scripts.lab.benchmark case --dataset_dir x --runs 2", f"--runs 1 {ONE_WINDOW}"),
        timed("--runs 2 --agreement", f"--runs 1 {ONE_WINDOW}"),
        timed("scripts.lab.benchmark cohort --device cpu --dataset_dir x", f"--cases 1 {ONE_WINDOW}"),
        timed("scripts.lab.benchmark network --runs 2", "--runs 1 --size 32"),
        timed("scripts.lab.benchmark pipeline --runs 3 --samples 8", "--runs 1 --samples 1 --cases 1"),
        timed("scripts.lab.benchmark postprocessing --dataset_dir x", "--runs 1"),
        timed("scripts.lab.benchmark preparation", "--runs 1 --precision f32"),
        timed("ranks --dataset_dir x --cases 4 --epochs 3", f"--cases 2 --epochs 2 --size 32 {WIDTHS}"),
        timed("scripts.lab.benchmark scores --dataset_dir x"),
        timed("scripts.lab.benchmark training --device cuda", f"--device cpu {ONE_STEP}"),
        Step("scripts.lab.benchmark plot", ("docs/images/performance.png",)),
    ],
}


LAB = {"phantoms and the starter weights", "plan studies", "package by make", "time"}


def filled(line: str) -> str:
    return re.sub(r"<[^<>]*>", "x", line)


# What test_walkthroughs.py and interoperability/test_page.py run.
ELSEWHERE = {
    *in_blocks(ROOT / "docs" / "get_started.md"),
    *in_blocks(ROOT / "docs" / "train_and_evaluate.md")[:5],
    *in_blocks(ROOT / "docs" / "interoperability.md", "sh"),
}
# By what it is when the user has filled it in.
LINES = {filled(line): line for _, line in reversed(ALL) if line not in ELSEWHERE}


def line_of(step: Step) -> str:
    (found,) = [line for line in LINES if line.endswith(step.end) and line not in NOT_RUN]
    return found


def test_every_command_runs_here_or_is_named_with_a_reason():
    run = [line_of(step) for steps in GROUPS.values() for step in steps]
    assert len(set(run)) == len(run)
    assert sorted([*run, *NOT_RUN]) == sorted(LINES)


def small(line: str) -> dict[str, object]:
    """The settings that make a workflow small, by the configurations that a line names."""
    if "monai.bundle run" not in line:
        return {}
    if "configs/starter.yaml" in line:
        # Its weights have a network and a resolution of their own.
        return {"num_workers": 0}
    if "configs/inference.json" in line:
        return SIZE
    if "configs/evaluate.json" in line:
        return {**SIZE, "patch_size": TRAINING_SIZE["patch_size"]}
    return {**TRAINING_SIZE, "max_epochs": 1, "val_interval": 1}


@pytest.fixture(scope="module")
def bundle(training, tmp_path_factory) -> Path:
    """A copy of the bundle with tiny weights, also of other networks."""
    folder = tmp_path_factory.mktemp("documented") / "bundle"
    # The user's own weights may lie in models/.
    for name in ("configs", "docs", "scripts", "models/starter"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("LICENSE", "Makefile", "README.md", "requirements.txt", "pyproject.toml", "setup.py"):
        shutil.copy(ROOT / name, folder)
    for name in ("model.pt", "model.json"):
        shutil.copy(training / name, folder / "models")
    torch.save(SwinUNETR(feature_size=12).state_dict(), folder / "swin.pt")
    torch.save(CascadedUNet(channels=CHANNELS).state_dict(), folder / "cascade.pt")
    return folder


@pytest.fixture(scope="module")
def values(phantoms, small_cohort, tmp_path_factory) -> dict[str, str]:
    """What the user fills in."""
    folder = tmp_path_factory.mktemp("values")
    (folder / "few").mkdir()
    for number in (1, 2):
        name = f"BraTS20_Training_{number:03d}"
        (folder / "few" / name).symlink_to(small_cohort / name)
    other, held_out = listed(small_cohort / "BraTS20_Training_002"), listed(small_cohort / CASE)
    for name, training in (("datalist", []), ("fold", other)):
        (folder / f"{name}.json").write_text(json.dumps({"training": training, "validation": held_out}))
    # A patient at 1 mm, as panet segment wants one, and small cases.
    patient = next(path for path in phantoms.rglob(CASE) if path.is_dir())
    case, few, patients = str(small_cohort / CASE), str(folder / "few"), str(small_cohort)
    return {
        "runs/inference/<case>.nii.gz": f"runs/inference/{CASE}.nii.gz",
        "<case> -o": f"{patient} -o",
        "<checkpoint.pkl>": str(ROOT / "tests" / "golden" / "authors_path_checkpoint.pkl"),
        "<whom to credit>": "the patients",
        "<file> <file>": "configs/train.json written.json",
        "<file>": str(folder / "datalist.json"),
        "<datalist>": str(folder / "datalist.json"),
        "<list of the fold>": str(folder / "fold.json"),
        "<folder for the cache alone>": "cache",
        "<folder of a run>": "runs/train",
        "<label map>": f"runs/inference/{CASE}.nii.gz",
        "<picture>": "drawn.png",
        "<weights>": "models/model.pt",
        **dict.fromkeys(["<case>", "<case folder>", "<cases, or one case>"], case),
        **dict.fromkeys(["<folder of cases>", "<folder of cases, or one case>", "<folder>"], few),
        **dict.fromkeys(["<BraTS folder>", "<cases>", "<patients>", "<phantoms>"], patients),
        **dict.fromkeys(["<sixteen cases>", "<100 phantoms>"], patients),
    }


def listed(case: Path) -> list[dict[str, object]]:
    images = [f"{case.name}/{case.name}_{sequence}.nii.gz" for sequence in ("t1", "t2", "t1ce", "flair")]
    return [{"case": case.name, "image": images, "label": f"{case.name}/{case.name}_seg.nii.gz"}]


@pytest.mark.slow
@pytest.mark.parametrize("group", [pytest.param(name, marks=[pytest.mark.lab] * (name in LAB)) for name in GROUPS])
def test_the_commands_run_and_make_what_their_pages_promise(group, bundle, values, tmp_path):
    root = tmp_path / "bundle"
    shutil.copytree(bundle, root)
    if group == AUTHORS:
        (root / "models" / "model.pt").unlink()
        (root / "models" / "model.json").unlink()
    for step in GROUPS[group]:
        # The reader has a GPU, and a machine of the tests may have none.
        line = LINES[line_of(step)].replace("--device cuda", "--device cpu")
        for placeholder, value in values.items():
            line = line.replace(placeholder, value)
        # A machine of the tests may have two cores.
        line = line.replace("--nproc_per_node 4", "--nproc_per_node 2")
        assert "<" not in line
        for path, copy in step.given:
            (root / copy).parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if (root / path).is_dir() else shutil.copy)(root / path, root / copy)
        before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
        said = run(line, root, *shlex.split(step.adds), **small(line)).stdout
        for pattern in step.makes:
            made = [path for path in root.glob(pattern) if before.get(path) != path.stat().st_mtime_ns]
            assert made, f"{line}\nmade no {pattern}"
        assert re.search(step.says, said), f"{line}\nsaid {said[-1000:]}"
