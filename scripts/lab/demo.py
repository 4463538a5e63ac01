# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Run the whole bundle on synthetic patients, with the commands that a user would type: `python -m scripts.lab.demo`.

The demo makes a cohort of phantoms, trains a small network, evaluates it on unseen patients, segments one patient with
it and with the starter weights, exports TorchScript and draws pictures. The patient is the one in the middle of the
unseen ones by its scores, so the pictures are typical. The demo prints each command before it runs it. It does not
repeat a step that an earlier run has finished, and it resumes a training that was stopped.
"""

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser
from rich.console import Console
from rich.table import Table
from scripts import command
from scripts.brats import REGIONS
from scripts.lab.bundle_run import config_files, workflow_arguments
from scripts.scores.paired import Scores, read_scores
from scripts.training.training_state import STATE_FILES, newest_state
from scripts.utils.errors import InputError
from scripts.utils.files import BUNDLE_ROOT, CONFIGS
from scripts.weights.record import record_file


def step(title: str, *arguments: str) -> None:
    """Run ``python -m ...`` and wait until it ends.

    Raises:
        InputError: the command failed; its own output says why.
    """
    print(f"\n== {title}\n$ {shlex.join(['python', '-m', *arguments])}", flush=True)
    start = time.monotonic()
    status = subprocess.run([sys.executable, "-m", *arguments], check=False).returncode
    if status != 0:
        raise InputError(f"the step '{title}' ended with status {status}; its output above says why.")
    print(f"-- {title}: {time.monotonic() - start:.0f} s", flush=True)


def trained_epochs(training: Path, epochs: int) -> int:
    """Return how many epochs are done in the folder ``training``; 0 if it holds no training of ``epochs`` epochs."""
    if not any((training / name).is_file() for name in STATE_FILES):
        return 0
    try:
        state = newest_state(training)[1]
    except InputError:
        return 0
    return int(state["epoch"]) if state["max_epochs"] == epochs else 0


def newer(result: Path, source: Path) -> bool:
    """Return whether ``result`` exists and is not older than ``source``."""
    return result.is_file() and result.stat().st_mtime >= source.stat().st_mtime


def typical_case(scores: Scores) -> str:
    """The case in the middle by its mean Dice; the better one of two.

    Example:
        >>> dice = {"a": 0.5, "b": 0.9, "c": 0.7, "d": 0.6}
        >>> typical_case({case: {f"dice_{region}": value for region in REGIONS} for case, value in dice.items()})
        'c'
    """
    ranked = sorted(scores, key=lambda case: sum(scores[case][f"dice_{region}"] for region in REGIONS))
    return ranked[len(ranked) // 2]


def inference_settings() -> dict[str, Any]:
    """The settings of inference.json for weights of train_demo.yaml: its network and resolution, and its patches."""
    trained = ConfigParser.load_config_file(str(CONFIGS / "train_demo.yaml"))
    same = {key: trained[key] for key in ("network_def#channels", "spacing", "num_workers")}
    return {**same, "roi_size": trained["patch_size"]}


def demo(run_dir: Path, cases: int, epochs: int, seed: int) -> None:
    """Run all steps that are not done yet, and write all results below ``run_dir``."""
    cohort, training, segmentation = run_dir / "phantoms", run_dir / "train", run_dir / "segmentation"
    evaluation, model = training / "evaluation_validation", training / "model.pt"
    common = {"dataset_dir": cohort, "output_dir": training, "overwrite": True}

    step("synthetic patients", "scripts.lab.phantoms", str(cohort), "--cases", str(cases), "--seed", str(seed))

    done = trained_epochs(training, epochs)
    if done == epochs:
        print(f"\n== training: done already, {model}")
    else:
        settings = {**common, "max_epochs": epochs, "validation_fraction": 0.25, "resume": done > 0}
        step("training", *workflow_arguments(["train.json", "train_demo.yaml"], settings))

    if newer(evaluation / "summary.csv", model):
        print(f"\n== evaluation: done already, {evaluation}")
    else:
        names = ["train.json", "train_demo.yaml", "evaluate.json"]
        step("evaluation on unseen patients", *workflow_arguments(names, common))

    split = json.loads((training / "datalist.json").read_text(encoding="utf-8"))
    scores = read_scores(evaluation / "scores.csv")
    case = typical_case(scores)
    case_dir = next((cohort / entry["image"][0]).parent for entry in split["validation"] if entry["case"] == case)
    label_map = segmentation / f"{case}.nii.gz"
    if newer(label_map, model):
        print(f"\n== segmentation: done already, {label_map}")
    else:
        place = {"dataset_dir": case_dir, "output_dir": segmentation, "model_file": model, "overwrite": True}
        step("one patient", *workflow_arguments(["inference.json"], {**place, **inference_settings()}))

    starter_map = run_dir / "segmentation_starter" / label_map.name
    starter = BUNDLE_ROOT / "models" / "starter" / "model.pt"
    if not starter.is_file():
        # In the package of the starter weights they are models/model.pt.
        starter = BUNDLE_ROOT / "models" / "model.pt"
    if newer(starter_map, starter) and newer(starter_map, label_map):
        print(f"\n== segmentation with the starter weights: done already, {starter_map}")
    else:
        settings = {"dataset_dir": case_dir, "output_dir": starter_map.parent, "overwrite": True}
        names = ["inference.json", *(["starter.yaml"] if (CONFIGS / "starter.yaml").is_file() else [])]
        step("the same patient with the starter weights", *workflow_arguments(names, settings))

    exported = training / "model.ts"
    if newer(exported, model):
        print(f"\n== TorchScript: done already, {exported}")
    else:
        files = config_files(["inference.json"])
        options = [text for key, value in inference_settings().items() for text in (f"--{key}", str(value))]
        options += ["--bundle_root", str(BUNDLE_ROOT), "--ckpt_file", str(model), "--filepath", str(exported)]
        options += ["--_meta_#weights", f"%{record_file(model)}"]
        step("TorchScript", "monai.bundle", "ckpt_export", "--config_file", files, *options)

    pictures = {run_dir / "picture_starter.png": starter_map, run_dir / "picture_demo.png": label_map}
    for picture, prediction in pictures.items():
        step("picture", "scripts.render_case", str(case_dir), str(picture), "--prediction", str(prediction))
    print_scores(scores, [evaluation / "scores.csv", starter_map, label_map, exported, *pictures])


def print_scores(scores: Scores, paths: Sequence[Path]) -> None:
    """Print the mean scores and the paths of the results."""
    rows = scores.values()
    table = Table(title=f"mean of {len(rows)} unseen phantoms")
    table.add_column("region")
    table.add_column("Dice", justify="right")
    table.add_column("HD95 (mm)", justify="right")
    dice = {region: sum(row[f"dice_{region}"] for row in rows) / len(rows) for region in REGIONS}
    for region in REGIONS:
        distance = sum(row[f"hd95_{region}"] for row in rows) / len(rows)
        table.add_row(region, f"{dice[region]:.3f}", f"{distance:.1f}")
    table.add_row("mean", f"{sum(dice.values()) / len(dice):.3f}", "")
    console = Console()
    console.print(table)
    for path in paths:
        console.print(str(path), highlight=False, markup=False, soft_wrap=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = command.parser("lab.demo", __doc__)
    parser.add_argument(
        "--run-dir",
        type=Path,
        default=BUNDLE_ROOT / "runs" / "demo",
        help="folder for the results (default: %(default)s)",
    )
    parser.add_argument("--cases", type=int, default=16, help="number of patients (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=16, help="training epochs (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the cohort (default: %(default)s)")
    args = parser.parse_args(argv)
    if "#" in str(args.run_dir.resolve()):
        raise InputError(f"--run_dir {args.run_dir}: MONAI's export takes no path that holds #; choose another.")
    if args.cases < 2 or args.epochs < 1:
        raise InputError("--cases must be 2 or more (training and validation), and --epochs must be 1 or more.")
    start = time.monotonic()
    demo(args.run_dir.resolve(), args.cases, args.epochs, args.seed)
    print(f"Done in {(time.monotonic() - start) / 60:.1f} minutes.")
    return 0


if __name__ == "__main__":
    command.run(main)
