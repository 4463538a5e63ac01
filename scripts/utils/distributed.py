# Copyright (c) the brats_mri_panet_segmentation authors
# SPDX-License-Identifier: Apache-2.0
"""Work of several processes (ranks), one for each device, as torchrun starts them for the multi-GPU overlays.

Each holds a copy of the network and takes its share of the cases. Without torchrun there is one process, so a multi-GPU
configuration can be loaded and inspected anywhere.
"""

import gc
import logging
import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.nn as nn
from scripts.utils.errors import InputError
from torch.nn.parallel import DistributedDataParallel

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Networks that this process has wrapped; stop() releases them.
_replicas: list[DistributedDataParallel] = []

# One rank may read a large cohort while the others wait. If it fails, torchrun ends all of them.
TIMEOUT = timedelta(hours=4)


def on_any_rank(flag: bool, device: torch.device) -> bool:
    """Whether ``flag`` is true on any rank. Every rank must call this, with the device of its tensors."""
    if not dist.is_initialized():
        return flag
    found = torch.tensor(float(flag), device=device)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return bool(found)


def gathered(value: T) -> list[T]:
    """``value`` of each rank, by rank. Every rank must call this. Tensors in it must be on the CPU."""
    if world_size() == 1:
        return [value]
    values: list[T] = [value] * world_size()
    dist.all_gather_object(values, value)
    return values


def rank() -> int:
    """This process's number among the processes that work together, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes that work together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def launched_rank() -> int:
    """The number that torchrun gave this process; 0 without torchrun."""
    return int(os.environ.get("RANK", "0"))


def launched_world_size() -> int:
    """Number of processes that torchrun started; 1 without torchrun."""
    if "WORLD_SIZE" not in os.environ:
        logger.warning("Not started by torchrun: one process does all the work.")
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank_device() -> torch.device:
    """This process's GPU; the CPU if the machine has no GPU."""
    local = os.environ.get("LOCAL_RANK", "0")
    return torch.device(f"cuda:{local}" if torch.cuda.is_available() else "cpu")


def use_device(device: torch.device | str) -> None:
    """Make ``device`` the current GPU, if it is one with a number, for calls of torch that name no device."""
    device = torch.device(device)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)


def start(device: torch.device | str, world_size: int) -> None:
    """Use ``device``, and join the other processes, if there are any, by NCCL on GPUs and by Gloo on CPUs."""
    if dist.is_initialized():
        return
    device = torch.device(device)
    if device.type == "cuda" and world_size > 1:
        ranks, devices = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
        if ranks > devices:
            raise InputError(
                f"--nproc_per_node {ranks}: this machine has {devices} GPU{'s' * (devices != 1)}; "
                "start at most one process for each, or add --device cpu."
            )
    use_device(device)
    if world_size == 1:
        return
    if "SLURM_JOB_ID" in os.environ:
        # Within a job of SLURM, ignite takes the local rank from here, which torchrun does not set.
        os.environ["SLURM_LOCALID"] = os.environ.get("LOCAL_RANK", "0")
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)


def stop() -> None:
    """Leave the other processes, once all processes have come to this call."""
    if not dist.is_initialized():
        return
    dist.barrier()
    # At the interpreter's end, objects that hold the group would be destroyed in any order, while threads still run.
    for replica in _replicas:
        for name in ("reducer", "logger", "process_group"):
            replica.__dict__.pop(name, None)
    _replicas.clear()
    gc.collect()
    dist.destroy_process_group()


def on_rank_zero(work: Callable[[], None]) -> None:
    """Do ``work`` on rank 0 alone, while the other ranks wait for it.

    If it fails, the other ranks end too. They print no message, so the cause is shown only once.
    """
    failed = True
    try:
        if rank() == 0:
            work()
        failed = False
    finally:
        if world_size() > 1:
            device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else "cpu"
            flag = torch.tensor([int(failed)], device=device)
            dist.broadcast(flag, src=0)
            if bool(flag) and not failed:
                raise SystemExit(1)


def from_rank_zero(work: Callable[[], T]) -> T:
    """What ``work`` returns on rank 0, on all ranks; as ``on_rank_zero``."""
    found: list[Any] = [None]

    def do() -> None:
        found[0] = work()

    on_rank_zero(do)
    if world_size() > 1:
        dist.broadcast_object_list(found, src=0)
    result: T = found[0]
    return result


def unwrap(network: nn.Module) -> nn.Module:
    """The network without its wrapper. Wrappers of torch and of this bundle keep the network as ``module``."""
    inner: nn.Module = getattr(network, "module", network)
    return inner


def replicate(network: nn.Module, device: torch.device | str) -> nn.Module:
    """``network`` on ``device``, the device of this process. Of several processes, each gets a copy."""
    network = network.to(device)
    return network if world_size() == 1 else wrap(network, device)


def wrap(network: nn.Module, device: torch.device | str) -> nn.Module:
    """``network``, on ``device``, as a part of the group of processes.

    Gradients are averaged over the processes. On GPUs, batch normalization uses the samples of all processes. torch has
    no such normalization for CPUs.
    """
    devices = None
    if torch.device(device).type == "cuda":
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        leave_out_of_compilation(network)
        devices = [torch.device(device)]
    else:
        logger.warning("On CPUs, each process normalizes a batch by its own samples.")
    # Synchronized statistics are equal on all ranks, so they need no broadcast. A broadcast in every forward pass would
    # also block ranks that validate different numbers of windows.
    replica = DistributedDataParallel(network, devices, broadcast_buffers=False, gradient_as_bucket_view=True)
    _replicas.append(replica)
    return replica


def leave_out_of_compilation(network: nn.Module) -> None:
    """Keep ``torch.compile`` away from the parts of ``network`` that synchronize a batch normalization.

    torch cannot compile the synchronization. It would cut the graph at each of these layers, and give up after eight.
    """
    for part in network.children():
        if any(isinstance(layer, nn.SyncBatchNorm) for layer in part.modules()):
            part.forward = torch.compiler.disable(part.forward)
