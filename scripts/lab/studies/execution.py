# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The runs of a study: each is a training and an evaluation by the bundle's own workflows, in processes of their own.

The folder of a study holds, for each run, the folder ``runs/<run>`` of its training, its record ``runs/<run>.json`` and
what its processes print, ``runs/<run>.log``.
"""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from scripts.data.datalist_file import write_datalist
from scripts.lab.bundle_run import workflow_arguments
from scripts.lab.studies.plan import Part, Run, Study
from scripts.training.training_state import STATE_FILES
from scripts.utils.errors import InputError
from scripts.utils.files import file_checksum, read_json, save_json
from scripts.utils.machine import processors
from scripts.utils.progress import duration

UNSEEN = "evaluation_unseen"
# Seconds between two looks at the running processes.
PAUSE = 0.5


class Job:
    """A run in the folder of a study.

    Args:
        run: the run.
        folder: folder of the study.
        dataset_dir: folder of the cases.
        start: weights to start from, or None.

    Raises:
        InputError: an earlier run of this name had another plan, or ``start`` does not exist.
    """

    def __init__(self, run: Run, folder: Path, dataset_dir: Path, start: Path | None = None) -> None:
        self.run = run
        self.folder = folder / "runs" / run.name
        self.lists = folder / "lists"
        self.dataset_dir = dataset_dir
        self.start = start
        self.log = self.folder.with_suffix(".log")
        self.record_file = self.folder.with_suffix(".json")
        if start is not None and not start.is_file():
            raise InputError(f"{start}: no such file; run the study that {run.name} starts from to its end first.")
        plan = {**run.plan, "start": None if start is None else file_checksum(start)}
        self.record: dict[str, Any] = {"plan": plan, "training": [], "evaluation": []}
        self.record |= read_json(self.record_file)
        if changed := [key for key in plan if self.record["plan"].get(key) != plan[key]]:
            raise InputError(
                f"{self.folder}: this run was made with other {' and '.join(changed)} than the study's file has now; "
                "choose another --output_dir, restore the file, or remove the run's folder and its .json."
            )

    @property
    def trained(self) -> bool:
        """Whether the training has ended."""
        return bool(self.record.get("trained"))

    @property
    def finished(self) -> bool:
        """Whether the training and the evaluation have ended."""
        return bool(self.record.get("finished"))

    @property
    def evaluation(self) -> Path:
        """Folder of the scores of the unseen patients."""
        return self.folder / UNSEEN

    def seconds(self, *steps: str) -> float:
        """Seconds of the processes of these steps, "training" or "evaluation"."""
        return sum(end - start for step in steps for start, end in self.record[step] if end is not None)

    def next_step(self) -> str | None:
        """The step to do next, "training" or "evaluation"; None if the run is finished."""
        return None if self.finished else "evaluation" if self.trained else "training"

    def arguments(self, step: str) -> list[str]:
        """The arguments after ``python -m`` of a step."""
        run = self.run
        names = ["train.json", *run.overlays]
        settings = {
            **run.settings,
            "seed": run.seed,
            "publish": False,
            "dataset_dir": self.dataset_dir,
            "output_dir": self.folder,
            # What a killed process has left is kept under a dated name.
            "overwrite": True,
        }
        if step == "training":
            if self.start is not None:
                settings["pretrained_file"] = self.start
            if any((self.folder / name).is_file() for name in STATE_FILES):
                settings["resume"] = True
            settings["datalist_file"] = self.lists / f"training{run.part.name}.json"
        else:
            names.append("evaluate.json")
            settings["datalist_file"] = self.lists / f"unseen{run.part.name}.json"
            settings["evaluation_dir"] = self.evaluation
            # All runs have seen the same number of samples by the last epoch, and no patient chooses the weights.
            settings["model_file"] = self.folder / "model_last.pt"
            settings["save_label_maps"] = False
        return workflow_arguments(names, settings)

    def begin(self, step: str) -> None:
        """Write down that a step begins."""
        attempts = self.record[step]
        if attempts and attempts[-1][1] is None:
            # The process was killed. What it did after its last whole epoch is done again, so it does not count.
            saved = [path.stat().st_mtime for name in STATE_FILES if (path := self.folder / name).is_file()]
            attempts[-1][1] = max([attempts[-1][0], *saved]) if step == "training" else attempts[-1][0]
        attempts.append([time.time(), None])
        self._save()

    def end(self, step: str, succeeded: bool) -> None:
        """Write down that a step has ended."""
        if succeeded:
            self.record[step][-1][1] = time.time()
            self.record["trained" if step == "training" else "finished"] = True
        self._save()

    def _save(self) -> None:
        save_json(self.record, self.record_file)

    def last_line(self) -> str:
        """What the run's processes have printed last."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").split("\n") if self.log.is_file() else []
        return next((line.strip() for line in reversed(lines) if line.strip()), "nothing was printed")


def jobs_of(study: Study, runs: Sequence[Run], folder: Path, dataset_dir: Path) -> list[Job]:
    """The runs of a study in its folder.

    Raises:
        InputError: a run contradicts an earlier one in the folder, or weights to start from are missing.
    """
    made = []
    for run in runs:
        start = None
        if study.start is not None:
            start = (study.start / "runs" / f"{run.variant.name}_seed{run.seed}" / "model_last.pt").absolute()
        made.append(Job(run, folder, dataset_dir, start))
    return made


def write_lists(parts: Sequence[Part], folder: Path, dataset_dir: Path) -> None:
    """Write the datalists of the trainings and evaluations into ``folder``/lists."""
    for part in parts:
        lists = {"training": part.training, "validation": part.validation}
        write_datalist(lists, dataset_dir, folder / "lists" / f"training{part.name}.json")
        # An evaluation takes the list of the validation.
        write_datalist(
            {"training": [], "validation": part.unseen}, dataset_dir, folder / "lists" / f"unseen{part.name}.json"
        )


def execute(jobs: Sequence[Job], at_once: int, lock: IO[str]) -> list[Job]:
    """Run what is not finished, several runs at the same time, and print how long is left.

    A run that fails does not stop the others.

    Args:
        jobs: the runs.
        at_once: number of processes at the same time. They share the processors.
        lock: the lock of the study's folder, which the processes inherit, since they go on if this one is killed.

    Returns:
        The runs that failed.
    """
    waiting = [job for job in jobs if not job.finished]
    running: list[tuple[Job, str, subprocess.Popen[bytes]]] = []
    failed: list[Job] = []
    threads = str(max(1, processors() // at_once))
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "PYTHONUNBUFFERED": "1"}
    if len(waiting) < len(jobs):
        say(f"{len(jobs) - len(waiting)} of {len(jobs)} runs are finished already.")
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                running.append(start(waiting.pop(0), environment, lock))
            time.sleep(PAUSE)
            for entry in [entry for entry in running if entry[2].poll() is not None]:
                job, step, process = entry
                running.remove(entry)
                job.end(step, process.returncode == 0)
                if process.returncode != 0:
                    failed.append(job)
                    say(f"{job.run.name}: {step} ended with status {process.returncode}: {job.last_line()}")
                elif job.finished:
                    done = sum(other.finished for other in jobs)
                    taken = (
                        f"{job.seconds('training'):.0f} s of training, {job.seconds('evaluation'):.0f} s of evaluation"
                    )
                    left = seconds_left(jobs, [entry[0] for entry in running], failed, at_once)
                    say(f"{job.run.name}: finished ({taken}). {done} of {len(jobs)} runs; {duration(left)} left.")
                else:
                    running.append(start(job, environment, lock))
    finally:
        for _, _, process in running:
            process.terminate()
        for _, _, process in running:
            process.wait()
    return failed


def start(job: Job, environment: dict[str, str], lock: IO[str]) -> tuple[Job, str, subprocess.Popen[bytes]]:
    """Start the next step of a run."""
    step = job.next_step()
    assert step is not None
    arguments = job.arguments(step)
    job.begin(step)
    say(f"{job.run.name}: {step}{' goes on' if '--resume' in arguments else ''}")
    with job.log.open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=[lock.fileno()],
        )
    return job, step, process


def seconds_left(jobs: Sequence[Job], running: Sequence[Job], failed: Sequence[Job], at_once: int) -> float:
    """Seconds until all runs are finished, estimated from the finished runs.

    A run is expected to take as long as the mean of the finished runs of its variant or, without any, of all.

    Args:
        jobs: all runs, of which one or more is finished.
        running: the runs that are being run.
        failed: the runs that failed, which are not repeated.
        at_once: number of runs at the same time.
    """
    taken: dict[str, list[float]] = {}
    for job in jobs:
        if job.finished:
            taken.setdefault(job.run.variant.name, []).append(job.seconds("training", "evaluation"))
    means = {name: sum(values) / len(values) for name, values in taken.items()}
    every = [value for values in taken.values() for value in values]
    left = 0.0
    for job in jobs:
        if job.finished or job in failed:
            continue
        expected = means.get(job.run.variant.name, sum(every) / len(every))
        done = job.seconds("training", "evaluation")
        if job in running:
            done += sum(
                time.time() - start
                for step in ("training", "evaluation")
                for start, end in job.record[step]
                if end is None
            )
        left += max(expected - done, 0.0)
    return left / at_once


def say(line: str) -> None:
    """Print a line with the time of day."""
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)
