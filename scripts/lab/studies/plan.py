# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The plan of a study: a YAML file that lists a cohort, settings and variants, and the runs that follow from it.

A study's file is no overlay of MONAI's configurations. It holds these keys::

    cohort:                    # the patients
      phantoms: {difficulty: hard, cases: 42, seed: 11}    # phantoms to make; without them --dataset_dir names a folder
      training: 24             # number of patients to train on, the first ones by name
      validation: 6            # number of patients for the curves; all others are unseen
      folds: 4                 # instead of the two numbers: each patient is unseen in one of the folds
    start: runs/study          # a finished study: each run starts from its weights of the same variant and seed
    overlays: [train_demo.yaml]          # overlays of all variants, in configs/
    settings: {max_epochs: 40}           # settings of all variants, as on the command line of a training
    variants:
      - {name: panet, title: PANet, seeds: [0, 1, 2], overlays: [], settings: {}}
"""

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from scripts.data.splits import make_folds, patient_of
from scripts.lab.phantoms.cohort import DIFFICULTIES
from scripts.utils.errors import InputError, one_line
from scripts.utils.files import CONFIGS

# The plans of the bundle.
PLANS = Path(__file__).resolve().parents[1] / "plans"

Items = list[dict[str, Any]]
# The command sets these settings itself.
OWN_SETTINGS = (
    "bundle_root",
    "dataset_dir",
    "datalist_file",
    "output_dir",
    "evaluation_dir",
    "model_file",
    "pretrained_file",
    "seed",
    "resume",
    "overwrite",
    "publish",
    "cases",
)
# With other values of these settings, a variant would see another number of samples than the others.
SHARED_SETTINGS = ("max_epochs", "batch_size", "val_interval", "patch_size")
NAME = re.compile(r"[a-z0-9_]+")


@dataclass(frozen=True)
class Variant:
    """One row of the study's table. Its overlays follow those of the study, and its settings replace the study's."""

    name: str  # of small letters, digits and underscores, for names of folders
    title: str
    overlays: tuple[str, ...]
    settings: dict[str, Any]
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Study:
    """The content of a study's file. The first variant is the one that the others are compared with."""

    path: Path
    phantoms: dict[str, Any] | None  # None if the patients are the user's
    training: int | None  # number of patients; None if there are folds
    validation: int  # number of patients for the curves
    folds: int | None
    start: Path | None  # folder of the study whose weights the runs start from
    overlays: tuple[str, ...]
    settings: dict[str, Any]
    variants: tuple[Variant, ...]


@dataclass(frozen=True)
class Part:
    """A division of the patients. ``validation`` is for curves and chooses nothing; ``unseen`` is scored."""

    name: str  # "" if there is only one division; otherwise the fold, such as "_fold0"
    training: Items
    validation: Items
    unseen: Items


@dataclass(frozen=True)
class Run:
    """A training and its evaluation.

    Attributes:
        variant: what is trained.
        seed: seed of the weights, of the order of the patients and of the augmentation.
        part: the patients.
        overlays: names of all overlays.
        settings: all settings of the study's file for this run.
    """

    variant: Variant
    seed: int
    part: Part
    overlays: tuple[str, ...]
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of the run and of its folder.

        Example:
            >>> unet = Variant("unet", "U-Net", (), {}, (0,))
            >>> Run(unet, 0, Part("_fold1", [], [], []), ()).name
            'unet_seed0_fold1'
        """
        return f"{self.variant.name}_seed{self.seed}{self.part.name}"

    @property
    def epochs(self) -> int:
        """Number of epochs."""
        return int(self.settings["max_epochs"])

    @property
    def samples(self) -> int:
        """Number of samples that the training sees.

        Example:
            >>> part = Part("", [{"case": "a"}, {"case": "b"}], [], [])
            >>> Run(Variant("unet", "U-Net", (), {}, (0,)), 0, part, (), {"max_epochs": 10}).samples
            20
        """
        return self.epochs * len(self.part.training)

    @property
    def plan(self) -> dict[str, Any]:
        """All on which the result depends, to be compared with the plan of an earlier run."""
        names = {
            name: [str(item["case"]) for item in getattr(self.part, name)]
            for name in ("training", "validation", "unseen")
        }
        return {"overlays": list(self.overlays), "settings": self.settings, "seed": self.seed, **names}


def read_study(path: str | Path) -> Study:
    """Read a study's file and check it.

    Args:
        path: a YAML file.

    Raises:
        InputError: the file is absent or no YAML, a key is unknown or missing, a value has the wrong type, two variants
            have one name, an overlay does not exist, or a setting is one that the command sets itself.

    Example:
        >>> study = read_study(PLANS / "study.yaml")
        >>> study.variants[0].title, study.variants[0].seeds
        ('PANet', (0, 1, 2))
    """
    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give the file of a study.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not YAML ({one_line(error)}); correct it.") from error
    content = _keys(content, path, "the file", {"cohort", "settings", "variants"}, {"start", "overlays"})
    cohort = _keys(content["cohort"], path, "cohort", set(), {"phantoms", "training", "validation", "folds"})
    phantoms = cohort.get("phantoms")
    if phantoms is not None:
        phantoms = _keys(phantoms, path, "cohort.phantoms", {"difficulty", "cases", "seed"})
        if phantoms["difficulty"] not in DIFFICULTIES:
            raise InputError(f"{path}: cohort.phantoms.difficulty is one of {', '.join(DIFFICULTIES)}.")
        _number(phantoms["cases"], path, "cohort.phantoms.cases", 1)
        _number(phantoms["seed"], path, "cohort.phantoms.seed", 0)
    if ("folds" in cohort) == ("training" in cohort) or ("folds" in cohort and "validation" in cohort):
        raise InputError(f"{path}: cohort has either 'training' and 'validation', or 'folds'; keep one of the two.")
    if phantoms is not None and "folds" in cohort:
        raise InputError(f"{path}: cohort has phantoms and folds; make enough phantoms, and leave some of them unseen.")
    for key, least in (("training", 1), ("validation", 0), ("folds", 2)):
        if key in cohort:
            _number(cohort[key], path, f"cohort.{key}", least)
    overlays = _overlays(content.get("overlays", []), path, "overlays")
    settings = _settings(content["settings"], path, "settings")
    _number(settings.get("max_epochs"), path, "settings.max_epochs", 1)
    variants = content["variants"]
    if not isinstance(variants, list) or not variants:
        raise InputError(f"{path}: 'variants' is no list of variants; list one at least.")
    read = [_variant(variant, path, number) for number, variant in enumerate(variants, 1)]
    names = [variant.name for variant in read]
    if doubled := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"{path}: two variants have the name '{doubled}'; rename one.")
    start = content.get("start")
    if start is not None and not isinstance(start, str):
        raise InputError(f"{path}: 'start' is no path; give the folder of a finished study.")
    return Study(
        path,
        phantoms,
        cohort.get("training"),
        cohort.get("validation", 0),
        cohort.get("folds"),
        None if start is None else Path(start),
        overlays,
        settings,
        tuple(read),
    )


def _variant(content: Any, path: Path, number: int) -> Variant:
    where = f"variant {number}"
    content = _keys(content, path, where, {"name", "title", "seeds"}, {"overlays", "settings"})
    name, title, seeds = content["name"], content["title"], content["seeds"]
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise InputError(f"{path}: the name of {where} is {name!r}; use small letters, digits and underscores.")
    if not isinstance(title, str):
        raise InputError(f"{path}: the title of {name} is no text; put it into quotes.")
    # In Python, True is an integer.
    if not isinstance(seeds, list) or not seeds or any(type(seed) is not int or seed < 0 for seed in seeds):
        raise InputError(f"{path}: the seeds of {name} are {seeds}; list integers of 0 or more, such as [0, 1, 2].")
    if len(set(seeds)) < len(seeds):
        raise InputError(f"{path}: a seed of {name} is given twice; list each once.")
    settings = _settings(content.get("settings", {}), path, f"the settings of {name}")
    if shared := [key for key in SHARED_SETTINGS if key in settings]:
        raise InputError(
            f"{path}: {name} has '{shared[0]}' of its own, but all variants see the same samples; set it in the "
            "settings of the study."
        )
    return Variant(
        name, title, _overlays(content.get("overlays", []), path, f"the overlays of {name}"), settings, tuple(seeds)
    )


def _keys(content: Any, path: Path, where: str, needed: set[str], optional: Iterable[str] = ()) -> dict[str, Any]:
    """The content if it is a mapping with these keys."""
    if not isinstance(content, dict):
        raise InputError(f"{path}: {where} holds no keys; a study is described in scripts/lab/studies/plan.py.")
    known = sorted({*needed, *optional})
    for key in content:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, 1)
            hint = f"did you mean '{close[0]}'?" if close else f"it may have {', '.join(known)}."
            raise InputError(f"{path}: unknown key '{key}' in {where}; {hint}")
    for key in sorted(needed):
        if key not in content:
            raise InputError(f"{path}: {where} lacks the key '{key}'; add it.")
    return content


def _number(value: Any, path: Path, where: str, least: int) -> None:
    if type(value) is not int or value < least:
        raise InputError(f"{path}: {where} is {value}; give an integer of {least} or more.")


def _overlays(names: Any, path: Path, where: str) -> tuple[str, ...]:
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"{path}: {where}: no list of names; list overlays of configs/, such as [train_demo.yaml].")
    for name in names:
        if name != Path(name).name or not (CONFIGS / name).is_file():
            raise InputError(f"{path}: {where}: there is no configs/{name}; correct the name.")
    return tuple(names)


def _settings(content: Any, path: Path, where: str) -> dict[str, Any]:
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise InputError(f"{path}: {where}: no settings by their keys; write them as 'max_epochs: 40'.")
    if own := [key for key in OWN_SETTINGS if key in content]:
        raise InputError(f"{path}: {where}: the study sets '{own[0]}' itself; leave it out.")
    return content


def parts_of(study: Study, items: Items, dataset_dir: str | Path) -> list[Part]:
    """Divide the patients of a study, whose labeled cases are ``items``.

    Raises:
        InputError: there are too few cases, or a patient with several cases would be on both sides.
    """
    items = sorted(items, key=lambda item: str(item["case"]))
    if study.folds is None:
        seen = int(study.training or 0) + study.validation
        if len(items) <= seen:
            raise InputError(
                f"{study.path}: {seen} cases for training and validation leave none of the {len(items)} cases in "
                f"{dataset_dir} unseen; give more cases, or lower the numbers."
            )
        if shared := {patient_of(item) for item in items[:seen]} & {patient_of(item) for item in items[seen:]}:
            raise InputError(
                f"{study.path}: cases of {min(shared)} are among the first {seen} and among the others, so they would "
                "not be unseen; take folds, which keep patients together, or another number."
            )
        return [Part("", items[: study.training], items[study.training : seen], items[seen:])]
    folds = make_folds(items, study.folds, 0, dataset_dir)
    return [
        Part(f"_fold{number}", [item for other in folds if other is not fold for item in other], [], fold)
        for number, fold in enumerate(folds)
    ]


def runs_of(study: Study, parts: Sequence[Part]) -> list[Run]:
    """The runs of a study in their order.

    The first seeds of all variants come first. So a study that is stopped early compares as many variants as possible.
    """
    runs = []
    for number in range(max(len(variant.seeds) for variant in study.variants)):
        for part in parts:
            for variant in study.variants:
                if number < len(variant.seeds):
                    settings = {**study.settings, **variant.settings}
                    if not part.validation:
                        settings["val_interval"] = 0
                    overlays = (*study.overlays, *variant.overlays)
                    runs.append(Run(variant, variant.seeds[number], part, overlays, settings))
    return runs
