# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""The processors, their precision and the memory of this process, and a way to keep freed memory for reuse."""

import ctypes
import math
import os
import re
import sys
from pathlib import Path

import torch
from scripts.utils.errors import InputError

# Names from malloc.h of glibc, and the largest values: before 2.35 glibc takes at most 32 MB for M_MMAP_THRESHOLD.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
MALLOPT_VALUES = (2**31 - 1, 32 * 2**20)


def keep_freed_memory(device: torch.device | str = "cpu") -> bool:
    """Keep freed memory for the next tensor, if ``device`` is a CPU, instead of returning it to the system.

    glibc returns the memory of each large tensor, and the system must map it again for the next one. On a CPU, feature
    maps are allocated in every step, so this costs minutes of system time in a run. After this call the process keeps
    the most memory that it has needed until it ends.

    Returns:
        Whether it was set, which is possible only on Linux with glibc.
    """
    if torch.device(device).type != "cpu" or not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all(any(mallopt(name, value) for value in MALLOPT_VALUES) for name in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD))


def computes_in(device: torch.device | str, dtype: str) -> bool:
    """Whether ``device`` computes in ``dtype`` ("bfloat16" or "float16"), so that mixed precision makes it faster.

    A GPU does. A CPU does so in bfloat16 only, and only with AVX-512 BF16 or AMX instructions. Without them torch
    emulates the type, a hundred times slower.

    Example:
        >>> computes_in("cuda", "float16"), computes_in("cpu", "float16")
        (True, False)
    """
    kind = torch.device(device).type
    if kind == "cpu" and dtype == "bfloat16":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return kind == "cuda"


def out_of_memory(error: BaseException | None) -> bool:
    """Whether ``error``, or a cause of it, says that the memory of a GPU or of the machine did not suffice.

    Example:
        >>> out_of_memory(torch.OutOfMemoryError("CUDA out of memory.")), out_of_memory(ValueError("another size"))
        (True, False)
    """
    # Not every part of torch and CUDA has torch's own error for it.
    told = "out of memory|can't allocate memory|ALLOC_FAILED"
    while error is not None:
        if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and re.search(told, str(error))):
            return True
        error = error.__cause__
    return False


def windows_at_a_time(device: torch.device | str, most: int = 4) -> int:
    """Number of windows of 128^3 to run at a time: as many as the GPU's memory holds, up to ``most``; 1 on a CPU.

    Four windows take 9.1 GB with the full-size network in mixed precision (counted); weights and maps take the rest.

    Example:
        >>> windows_at_a_time("cpu")
        1
    """
    device = torch.device(device)
    if device.type != "cuda":
        return 1
    return int(min(most, max(1, (torch.cuda.mem_get_info(device)[0] / 1e9 - 1) // 2.5)))


def processors(most: float = math.inf) -> int:
    """Number of processors that this process may use, which a scheduler may limit, or ``most`` if that is less."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return int(min(found, most))


def container_memory() -> float:
    """Memory that this process's control group still grants, in bytes; infinite if it sets no limit."""
    try:
        limit, used = (Path("/sys/fs/cgroup", name).read_text() for name in ("memory.max", "memory.current"))
        return float(limit) - float(used)
    except (OSError, ValueError):
        return math.inf


def check_shared_memory(workers: int, batch_bytes: float) -> None:
    """Refuse processes that load data (``workers``) if /dev/shm, through which they hand batches on, is too small.

    They would die of it in the middle of a run. A container often has 64 MB. Each process is two batches ahead.
    """
    needed = 2 * workers * int(os.environ.get("LOCAL_WORLD_SIZE", "1")) * batch_bytes
    try:
        found = os.statvfs("/dev/shm")
    except OSError:  # there is none on this system
        return
    free = found.f_bavail * found.f_frsize
    if workers and free < needed:
        raise InputError(
            f"--num_workers {workers}: they need {needed / 1e6:.0f} MB of shared memory, and /dev/shm has "
            f"{free / 1e6:.0f} MB; give the container more (docker run --shm-size), or set --num_workers 0."
        )


def available_memory() -> float:
    """Memory that is available without swapping, in bytes; half of all memory if the system does not report it."""
    try:
        found = re.search(r"^MemAvailable: *(\d+) kB", Path("/proc/meminfo").read_text(encoding="ascii"), re.MULTILINE)
    except OSError:
        found = None
    if found is None:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")) / 2
    return float(found[1]) * 1024
