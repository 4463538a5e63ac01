# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Memory that a workflow on a CPU has freed and will need again."""

from __future__ import annotations

import ctypes
import sys

import torch

# malloc.h of glibc, and the most that mallopt takes; glibc before 2.35 takes 32 MB at most for M_MMAP_THRESHOLD.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
THRESHOLDS = (2**31 - 1, 32 * 2**20)


def keep_freed_memory(device: torch.device | str = "cpu") -> bool:
    """Keep freed memory for the next tensor, instead of giving it back to the system and faulting it in again.

    glibc gives each large tensor back; on a CPU, where feature maps are allocated in every step, that costs minutes of
    system time in a run. The process then keeps the most memory that it has needed until it ends.

    Args:
        device: where the workflow computes; only for a CPU is anything set.

    Returns:
        Whether it was set: on Linux with glibc alone.
    """
    if torch.device(device).type != "cpu" or not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all(any(mallopt(name, value) for value in THRESHOLDS) for name in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD))
