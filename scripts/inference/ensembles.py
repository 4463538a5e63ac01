# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""One prediction from several model files."""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from monai.inferers import Inferer
from monai.utils import ensure_tuple
from scripts.inference.inferers import MeanProbability
from scripts.inference.openvino import OpenVINONetwork
from scripts.utils.distributed import unwrap
from scripts.utils.errors import InputError
from scripts.utils.tensors import load_torch

logger = logging.getLogger(__name__)


class EnsembleInferer(Inferer):
    """The mean probability of an ensemble: another inferer runs the network with the weights of each model file.

    The result is the logits of the mean, so the post-processing need not know of the ensemble. The network takes the
    weights of one member after the other. MONAI's ``EnsembleEvaluator`` keeps all networks in memory instead. OpenVINO,
    too, keeps each member that it has compiled.

    Args:
        inferer: the inferer that runs the network over the volume.
        model_file: files of bare weights, of two members or more.
        exclusive: the channels exclude each other (softmax) instead of overlapping (sigmoid).

    Raises:
        InputError: there are fewer than two model files.
    """

    # The engine must not load weights into the network as well, and the network must not be one in training.
    reads_model_file = True

    def __init__(self, inferer: Inferer, model_file: str | Sequence[str], exclusive: bool = False) -> None:
        super().__init__()
        self.inferer = inferer
        self.members = [str(file) for file in ensure_tuple(model_file)]
        self.exclusive = exclusive
        if len(self.members) < 2:
            raise InputError("--model_file: an ensemble needs two model files or more; for one, leave out the overlay.")

    def __call__(self, inputs: torch.Tensor, network: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return the logits of the mean probability, (batch, channel, *size), of the size of ``inputs``."""
        mean = MeanProbability(self.exclusive)
        for member in self.members:
            if isinstance(network, OpenVINONetwork):
                network.model_file = member
            else:
                unwrap(network).load_state_dict(load_torch(member))
            logits = self.inferer(inputs, network, *args, **kwargs)
            if not bool(torch.isfinite(logits).all()):
                # The mean is not finite either and ends the run, but that error does not name the member.
                logger.warning("%s: the output with these weights is not finite.", member)
            mean.add(logits)
        return mean.logits()
