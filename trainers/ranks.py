"""Join the other processes of a run, and leave them."""

from __future__ import annotations

import functools
import os
import sys
import warnings
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist


def start(timeout_s: float) -> Any:
    """Join the other ranks that the environment names, or be a group of one; return the deepspeed module."""
    deepspeed = import_deepspeed()
    if not dist.is_initialized():
        single = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
        if "RANK" not in os.environ:
            os.environ.update(single | {"MASTER_PORT": os.environ.get("MASTER_PORT", str(free_port()))})
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        # On a CPU DeepSpeed 0.19 would compile an operator here (a minute, g++, and a lock file on which every later
        # start waits for ever if a rank is killed meanwhile) that only its inference uses. So none counts as usable.
        deepspeed.ops.__compatible_ops__ = {}
        deepspeed.init_distributed(
            dist_backend="nccl" if torch.cuda.is_available() else "gloo",
            auto_mpi_discovery=False,
            timeout=timedelta(seconds=timeout_s),
            verbose=False,
        )
    return deepspeed


def free_port() -> int:
    """Return a TCP port that nobody uses at the moment."""
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def finish(status: int) -> NoReturn:
    """End this rank at once with an exit code; DeepSpeed now and then aborts while Python tears modules down."""
    if dist.is_initialized():
        if status == 0:
            dist.barrier()
        dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def import_deepspeed() -> Any:
    """Import DeepSpeed for the device that is here."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    if (arch := os.environ.get("TORCH_CUDA_ARCH_LIST", "")).endswith("a"):
        os.environ["TORCH_CUDA_ARCH_LIST"] = arch.removesuffix(
            "a"
        )  # the op builder reads "9.0a" as a number and crashes
    import deepspeed

    deepspeed.utils.logger.setLevel("WARNING")
    deepspeed.utils.nvtx.enable_nvtx = False  # a hundred ranges a step, for a profiler that nobody is told to use
    if torch.cuda.is_available():  # DeepSpeed looks at one number after each step, and would have it find names for 161
        deepspeed.get_accelerator().memory_stats = torch.cuda.memory_stats_as_nested_dict
    # On a CPU each step would start numactl to count the sockets: 1.5 ms or more.
    numa = deepspeed.utils.numa
    if not hasattr(numa.get_numa_cores, "cache_info"):
        numa.get_numa_cores = functools.cache(numa.get_numa_cores)
    # DeepSpeed 0.19 calls what torch 2.13 has given new names; one warning a rank and function.
    warnings.filterwarnings("ignore", message=".*is deprecated. Please use `torch.distributed", category=FutureWarning)
    return deepspeed
