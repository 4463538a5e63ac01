# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""A prediction with values that are not finite saves nothing of its case; a training keeps its last good state."""

import pytest
import torch
from scripts.networks import PriorAttentionNet
from scripts.utils.errors import input_error_behind
from workflows import CHANNELS, SIZE, bundle_run

NAME = "BraTS20_Training_001"


def weights(path, bias: float) -> str:
    """Write untrained weights whose logits of the tumor core are ``bias`` or more."""
    torch.manual_seed(0)
    network = PriorAttentionNet(channels=CHANNELS)
    with torch.no_grad():
        network.outputs[3].bias[2] = bias
    torch.save(network.state_dict(), path)
    return str(path)


INFERENCE = {
    "plain": ["inference.json"],
    "exclusive": ["inference.json"],
    "whole brain": ["inference.json", "whole_brain.yaml"],
    "flips": ["inference.json", "tta.yaml"],
    "ensemble": ["inference.json", "ensemble.yaml"],
    "pipelined": ["inference.json", "inference_pipelined.yaml"],
    "pipelined ensemble": ["inference.json", "ensemble.yaml", "inference_pipelined.yaml"],
}
EVALUATION = {
    "plain": ["train.json", "evaluate.json"],
    "flips": ["train.json", "evaluate.json", "tta.yaml"],
    "ensemble": ["train.json", "evaluate.json", "ensemble.yaml"],
}
RUNS = {
    **{f"inference, {name}": configs for name, configs in INFERENCE.items()},
    **{f"evaluation, {name}": configs for name, configs in EVALUATION.items()},
}


@pytest.mark.parametrize("bias", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("run", RUNS)
def test_a_prediction_that_is_not_finite_stops_its_case_and_leaves_nothing(run, bias, small_cohort, tmp_path, caplog):
    names = RUNS[run]
    model: str | list[str] = weights(tmp_path / "bad.pt", bias)
    if "ensemble" in run:
        model = [weights(tmp_path / "good.pt", 0.5), model]
    place = {"dataset_dir": str(small_cohort / NAME), "output_dir": str(tmp_path / "out"), "model_file": model}
    if "inference" in run:
        place |= {"save_probabilities": True, "save_uncertainty": True}
    else:
        place |= {"cases": "all"}
    if "exclusive" in run:
        place |= {"exclusive": True}
    workers = 1 if "pipelined" in run else 0
    with pytest.raises(RuntimeError) as caught:
        bundle_run(*names, **place, **{**SIZE, "num_workers": workers})
    error = str(input_error_behind(caught.value))
    said = f"1 of 1 case failed: {NAME} ({NAME}: the network's output (pred) holds NaN or infinite values"
    assert error.startswith(said) and "\n" not in error
    assert not [path for path in (tmp_path / "out").rglob("*") if path.suffix in (".gz", ".csv")]
    # For an ensemble, the log also names the member.
    told = [message for message in caplog.messages if message.endswith("the output with these weights is not finite.")]
    assert told == (
        [f"{tmp_path / 'bad.pt'}: the output with these weights is not finite."] if "ensemble" in run else []
    )
