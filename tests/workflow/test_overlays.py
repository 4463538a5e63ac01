# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The same overlays work for evaluation and for inference, in any order and in every combination."""

from itertools import combinations, permutations
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser
from monai.inferers import SlidingWindowInferer
from scripts.inference.ensembles import EnsembleInferer
from scripts.inference.inferers import BrainWindowInferer, FlipInferer, MixedPrecisionInferer, WholeVolumeInferer
from scripts.utils.errors import InputError, input_error_behind
from scripts.workflow.settings import weights_readers
from tiny import small_network
from workflows import CHANNELS, TRAINING_SIZE, bundle_run, files, initialized

BASES = {"inference": (["inference.json"], "infer"), "evaluation": (["train.json", "evaluate.json"], "train")}
OVERLAYS = ("tta.yaml", "whole_brain.yaml", "ensemble.yaml", "authors.yaml", "openvino.yaml")
MEMBERS = ["a.pt", "b.pt"]


def made(base: str, *overlays: str, tmp_path, **changes):
    names, kind = BASES[base]
    place = {"dataset_dir": str(tmp_path / "data"), "output_dir": str(tmp_path / "out")}
    small = {"network_def#channels": CHANNELS}
    return initialized(*names, *overlays, kind=kind, **place, **small, **changes)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("chosen", [c for n in (2, 3) for c in combinations(OVERLAYS, n)], ids="+".join)
def test_overlays_may_stand_in_any_order(base, chosen):
    found = [ConfigParser.load_config_files(files(*BASES[base][0], *order)) for order in permutations(chosen)]
    assert all(other == found[0] for other in found[1:])


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("flips", [True, False])
@pytest.mark.parametrize("ensemble", [True, False])
def test_windows_flips_and_ensemble_are_put_into_one_another(base, whole, flips, ensemble, tmp_path):
    names = {"ensemble.yaml": ensemble, "tta.yaml": flips, "whole_brain.yaml": whole}
    chosen = [name for name, wanted in names.items() if wanted]
    workflow = made(base, *chosen, tmp_path=tmp_path, **({"model_file": MEMBERS} if ensemble else {}))
    assert workflow.check_properties() == []
    evaluator = workflow.evaluator if base == "evaluation" else workflow.parser.get_parsed_content("evaluator")
    inferer = evaluator.inferer
    if ensemble:
        assert type(inferer) is EnsembleInferer and inferer.members == MEMBERS
        inferer = inferer.inferer
    if flips:
        assert type(inferer) is FlipInferer and len(inferer.flips) == 8
        inferer = inferer.inferer
    # Probabilities are averaged outside, in float32.
    assert type(inferer) is MixedPrecisionInferer
    inferer = inferer.inferer
    assert type(inferer) is (WholeVolumeInferer if whole else BrainWindowInferer)
    if not whole:
        assert isinstance(inferer, SlidingWindowInferer) and tuple(inferer.roi_size) == (128, 128, 128)
        assert inferer.cpu_thresh == 64000000


@pytest.mark.parametrize("base", BASES)
def test_outputs_that_exclude_each_other_are_told_to_all(base, tmp_path):
    parser = made(base, "ensemble.yaml", "tta.yaml", tmp_path=tmp_path, model_file=MEMBERS, exclusive=True).parser
    inferer = parser.get_parsed_content("inferer")
    assert inferer.exclusive is True and inferer.inferer.exclusive is True
    logits = torch.tensor([2.0, 0.0, 0.0, 0.0]).view(4, 1, 1, 1)
    found = parser.get_parsed_content("activation")({"pred": logits})["pred"]
    torch.testing.assert_close(found, logits.softmax(0))


def refusal(*names: str, **settings) -> str:
    with pytest.raises((InputError, RuntimeError)) as caught:
        # One size for trainings and inferences has settings that only one of them reads.
        bundle_run(*names, **settings, allow_unread=True)
    return str(input_error_behind(caught.value))


@pytest.fixture
def place(small_cohort, tmp_path) -> dict:
    return {"dataset_dir": str(small_cohort), "output_dir": str(tmp_path / "out"), **TRAINING_SIZE}


@pytest.fixture
def weights(tmp_path) -> str:
    torch.save(small_network(channels=CHANNELS).state_dict(), tmp_path / "model.pt")
    return str(tmp_path / "model.pt")


@pytest.mark.parametrize(
    ("overlay", "said"),
    [
        ("ensemble.yaml", "EnsembleInferer: reads weights from --model_file, so nothing can be trained with it"),
        ("openvino.yaml", "--network#model_file @model_file: there is no setting model_file; an overlay may need"),
        ("authors.yaml", "train#preprocessing: sequences are normalized over: brain; in image_transforms"),
    ],
)
def test_a_training_with_what_is_for_inference_is_refused(overlay, said, place, weights, tmp_path):
    """Otherwise, members would replace the weights in training, or training and validation would see other images."""
    changes = {"model_file": [weights, weights[:-3]]} if overlay == "ensemble.yaml" else {}
    assert refusal("train.json", overlay, **place, **changes).startswith(said)
    assert not (tmp_path / "out").exists()


def test_a_training_with_openvino_and_a_model_file_is_refused_too(place, weights):
    said = refusal("train.json", "openvino.yaml", **place, model_file=weights)
    assert said.startswith("OpenVINONetwork: reads weights from --model_file, so nothing can be trained with it")


def test_a_part_within_another_is_found():
    inner = EnsembleInferer(BrainWindowInferer((32, 32, 32)), MEMBERS)
    assert weights_readers(small_network(), FlipInferer(inner)) == ["EnsembleInferer"]
    assert weights_readers(small_network(), FlipInferer()) == []


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("several", [True, False])
def test_one_network_takes_one_file(base, several, place, weights, tmp_path):
    files = [weights, str(Path(weights).with_name("other.pt"))] if several else [weights]
    said = refusal(*BASES[base][0], **place, model_file=files)
    assert said == f"--model_file {files}: one network takes one file; for several add ensemble.yaml."
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("base", BASES)
def test_a_run_in_which_nothing_reads_the_weights_is_refused(base, place, weights, tmp_path):
    """Otherwise, the network would keep its random weights and segment with them."""
    said = refusal(*BASES[base][0], **place, model_file=weights, load_pretrain=False)
    assert said.startswith("--load_pretrain False: nothing else reads --model_file, so the network would keep random")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("base", BASES)
def test_a_run_in_which_two_parts_read_the_weights_is_refused(base, place, weights, tmp_path):
    other = tmp_path / "other.pt"
    torch.save(small_network(channels=CHANNELS).state_dict(), other)
    settings = {**place, "model_file": [weights, str(other)], "load_pretrain": True}
    said = refusal(*BASES[base][0], "ensemble.yaml", **settings)
    assert said == "--load_pretrain True: EnsembleInferer reads --model_file itself; set it to False."
    assert not (tmp_path / "out").exists()
