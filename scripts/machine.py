# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The machine: the processors and the memory that this process may use, and memory that it will need again."""

from __future__ import annotations

import ctypes
import math
import os
import re
import sys
from pathlib import Path

import torch

# malloc.h of glibc, and the most that mallopt takes; glibc before 2.35 takes 32 MB at most for M_MMAP_THRESHOLD.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
MALLOPT_VALUES = (2**31 - 1, 32 * 2**20)


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
    return all(any(mallopt(name, value) for value in MALLOPT_VALUES) for name in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD))


def processors() -> int:
    """How many processors this process may use, which a scheduler may limit."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def container_memory() -> float:
    """Memory that this process's control group still grants, in bytes; infinite where none is limited."""
    try:
        limit, used = (Path("/sys/fs/cgroup", name).read_text() for name in ("memory.max", "memory.current"))
        return float(limit) - float(used)
    except (OSError, ValueError):
        return math.inf


def available_memory() -> float:
    """Memory that can be had without swapping, in bytes; half of all where the system does not say it."""
    try:
        found = re.search(r"^MemAvailable: *(\d+) kB", Path("/proc/meminfo").read_text(encoding="ascii"), re.MULTILINE)
    except OSError:
        found = None
    if found is None:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")) / 2
    return float(found[1]) * 1024
