# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Phantoms in raw form, for tests."""

import functools
from collections.abc import Callable

import numpy as np
from scripts.lab.phantoms.cohort import AFFINE, make_patient
from scripts.lab.phantoms.raw import RawPhantom, raw_phantom
from scripts.preparation.grids import Volume


@functools.cache
def made(index: int = 1) -> tuple[dict, np.ndarray]:
    return make_patient(2, index, "demo")


@functools.cache
def raw(seed: int = 0, degrees: float = 15.0, mm: float = 15.0) -> RawPhantom:
    images, label = made()
    return raw_phantom(images, label, AFFINE, np.random.default_rng(seed), degrees, mm)


def true_brain(phantom: RawPhantom) -> Callable[[Volume], Volume]:
    """What gives the true brain of any scan of a phantom, in place of the network that finds it."""

    def find(head: Volume) -> Volume:
        name = next(name for name, scan in phantom.scans.items() if np.allclose(scan.affine, head.affine, atol=1e-3))
        return Volume(phantom.brain.voxels, phantom.to_scan[name] @ phantom.brain.affine)

    return find
