# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Train variants on one cohort and compare them on unseen patients: `python -m scripts.lab.studies PLAN`.

Each run is a training and an evaluation by the bundle's own workflows. The command can be stopped and started again:
finished runs are kept, and a training that was stopped goes on from its last whole epoch.
"""

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from scripts import command
from scripts.data.datalist import labeled_items
from scripts.data.inspection import check_cases
from scripts.lab.phantoms.cohort import COHORT_FOLDER, phantom_name
from scripts.lab.studies.execution import execute, jobs_of, write_lists
from scripts.lab.studies.plan import Items, Run, Study, parts_of, read_study, runs_of
from scripts.lab.studies.results import write_results
from scripts.utils.errors import InputError
from scripts.utils.files import BUNDLE_ROOT
from scripts.utils.locks import locked


def cohort_of(study: Study, folder: Path, dataset_dir: Path | None) -> tuple[Path, Items]:
    """The folder of a study's cases and their entries. Phantoms need not be made yet.

    Raises:
        InputError: the study makes phantoms and ``dataset_dir`` is given, or neither; or the folder holds no labeled
            cases.
    """
    if (study.phantoms is None) == (dataset_dir is None):
        what = "makes its phantoms itself; leave out" if study.phantoms is not None else "needs patients; add"
        raise InputError(f"{study.path}: this study {what} --dataset_dir.")
    if study.phantoms is not None:
        names = [phantom_name(index) for index in range(1, study.phantoms["cases"] + 1)]
        return folder / "phantoms" / COHORT_FOLDER, [{"case": name, "image": name} for name in names]
    assert dataset_dir is not None
    items = labeled_items(dataset_dir)
    check_cases(items, dataset_dir, "labeled cases")
    return dataset_dir, items


def make_cohort(study: Study, folder: Path) -> None:
    """Make the phantoms of a study that are missing.

    Raises:
        InputError: they cannot be made; the output of their command says why.
    """
    if study.phantoms is not None:
        options = [text for key, value in study.phantoms.items() for text in (f"--{key}", str(value))]
        made = [sys.executable, "-m", "scripts.lab.phantoms", str(folder / "phantoms"), *options]
        if subprocess.run(made, check=False).returncode != 0:
            raise InputError(f"{folder / 'phantoms'}: the phantoms could not be made; the output above says why.")


def print_plan(study: Study, runs: Sequence[Run]) -> None:
    """Print the number of samples and the runs."""
    for samples in sorted({run.samples for run in runs}):
        parts = {(run.epochs, len(run.part.training)) for run in runs if run.samples == samples}
        for epochs, cases in sorted(parts):
            print(f"{samples} samples a run: {epochs} epochs of {cases} cases.")
    unseen = {str(item["case"]) for run in runs for item in run.part.unseen}
    print(f"{len(runs)} runs of {len(study.variants)} variants, scored on {len(unseen)} unseen cases:")
    for run in runs:
        own = [*run.variant.overlays, *(f"{key}={value}" for key, value in run.variant.settings.items())]
        print(f"  {run.name}: {run.variant.title}" + (f" ({', '.join(own)})" if own else ""))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = command.parser("lab.studies", __doc__)
    parser.add_argument("study", type=Path, metavar="STUDY", help="YAML file of the study")
    parser.add_argument(
        "--output-dir",
        type=Path,
        default=BUNDLE_ROOT / "runs" / "study",
        help="folder for the runs and the results (default: %(default)s)",
    )
    parser.add_argument("--dataset-dir", type=Path, help="folder of the patients, if the study makes no phantoms")
    parser.add_argument("--jobs", type=int, default=1, help="number of runs at the same time (default: %(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and do nothing")
    args = parser.parse_args(argv)
    if args.jobs < 1:
        raise InputError(f"--jobs {args.jobs}: give 1 or more.")
    study, folder = read_study(args.study), args.output_dir.absolute()
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: not a folder; choose another --output_dir.")
    dataset_dir, items = cohort_of(study, folder, args.dataset_dir and args.dataset_dir.absolute())
    runs = runs_of(study, parts_of(study, items, dataset_dir))
    # Everything is checked before anything is made.
    jobs_of(study, runs, folder, dataset_dir)
    print_plan(study, runs)
    if args.dry_run:
        return 0
    # So the processes of the runs are stopped, too.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with locked(folder / ".lock") as lock:
        if lock is None:
            raise InputError(f"{folder}: a study is running here; wait for its end, or stop its processes.")
        make_cohort(study, folder)
        wanted = {item["case"] for item in items}
        items = [item for item in labeled_items(dataset_dir) if item["case"] in wanted]
        parts = parts_of(study, items, dataset_dir)
        jobs = jobs_of(study, runs_of(study, parts), folder, dataset_dir)
        write_lists(parts, folder, dataset_dir)
        try:
            failed = execute(jobs, args.jobs, lock)
        except KeyboardInterrupt:
            print(f"Stopped; the same command goes on in {folder}.", file=sys.stderr)
            return 130
        finally:
            # A study takes hours, so the runs that are finished have their results, too.
            for path in write_results(study, [job for job in jobs if job.finished], folder):
                print(path)
    if failed:
        names = ", ".join(job.run.name for job in failed)
        raise InputError(
            f"{folder}: these runs failed: {names}; their .log in runs/ says why. Start again to repeat them."
        )
    return 0


if __name__ == "__main__":
    command.run(main)
