# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""On a CPU, freed memory stays with the process, so large tensors cause no new page faults each time."""

import os
import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from scripts.utils.errors import InputError
from scripts.utils.machine import check_shared_memory, keep_freed_memory, out_of_memory, processors, windows_at_a_time
from workflows import ROOT

GLIBC = platform.libc_ver()[0] == "glibc"
# The program counts the page faults of ten tensors of 64 MB, one after another.
COUNT = """
import resource, sys
import torch
from scripts.utils.machine import keep_freed_memory
print(keep_freed_memory(sys.argv[1]) if len(sys.argv) > 1 else None)
# The first tensors give the heap its holes.
for _ in range(20):
    torch.ones(16 << 20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(16 << 20)
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) * resource.getpagesize())
"""


def faulted_in(*device: str) -> tuple[str, int]:
    """Run the function in a process of its own; return its result and the bytes of the tensors' page faults."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"):
        environment.pop(name, None)
    command = [sys.executable, "-W", "ignore", "-c", COUNT, *device]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    returned, faults = done.stdout.split()
    return returned, int(faults)


@pytest.mark.slow
@pytest.mark.skipif(not GLIBC, reason="another allocator than glibc's")
def test_large_tensors_are_not_faulted_in_again():
    tensors = 10 * (64 << 20)
    returned, faults = faulted_in("cpu")
    assert returned == "True"
    assert faults < tensors / 100
    # Without the setting, and for a GPU, each tensor causes faults. A huge page counts as one fault, so the test only
    # asks for many more than above.
    for device in ((), ("cuda",)):
        returned, without = faulted_in(*device)
        assert returned == ("None" if not device else "False")
        assert without > 2 * max(faults, 1 << 20)


def test_elsewhere_nothing_is_set(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert keep_freed_memory("cpu") is False
    monkeypatch.setattr(sys, "platform", "linux")
    assert keep_freed_memory(torch.device("cuda:0")) is False


@pytest.mark.parametrize(("free", "most", "number"), [(1, 4, 1), (3, 4, 3), (16, 4, 4)])
def test_a_number_of_processors_may_have_a_limit(free, most, number, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(free)))
    assert (processors(), processors(most)) == (free, number)


@pytest.mark.parametrize(("workers", "ranks", "fits"), [(2, 1, True), (3, 1, False), (2, 2, False), (0, 1, True)])
def test_loaders_need_shared_memory_for_two_batches_each(workers, ranks, fits, monkeypatch):
    free = SimpleNamespace(f_bavail=40_000, f_frsize=1000)
    monkeypatch.setattr(os, "statvfs", lambda path: {"/dev/shm": free}[path])
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    if fits:
        check_shared_memory(workers, 10e6)
        return
    told = rf"--num_workers {workers}: they need {20 * workers * ranks} MB of shared memory, and /dev/shm has 40 MB"
    with pytest.raises(InputError, match=told):
        check_shared_memory(workers, 10e6)


@pytest.mark.parametrize(
    ("error", "short"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."), True),
        (MemoryError(), True),
        (RuntimeError("sizes do not match"), False),
        (ValueError("out of memory"), False),
        (None, False),
    ],
)
def test_an_error_of_memory_is_known_also_as_a_cause(error, short):
    assert out_of_memory(error) == short
    wrapped = RuntimeError("applying transform")
    wrapped.__cause__ = error
    assert out_of_memory(wrapped) == short


@pytest.mark.parametrize(("gigabytes", "windows"), [(2, 1), (4, 1), (8, 2), (11, 4), (139, 4)])
def test_as_many_windows_run_at_a_time_as_the_gpus_free_memory_holds(gigabytes, windows, monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (gigabytes * 10**9, 0))
    assert windows_at_a_time("cuda:1") == windows
    assert windows_at_a_time("cpu") == 1
