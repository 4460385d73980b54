"""The machine that a rank runs on: processor, GPU, versions; what a reader of figures needs."""

import os
import platform
import re
import socket
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import torch

from ds_moe_mtl.ranks.rendezvous import Ranks

EMULATED = (
    "note: this processor has no bf16 of its own (no AMX, no AVX512-BF16): it is emulated, and can "
    "be many times slower than train.precision=fp32"
)
_FLAGS = re.compile(r"flags|Features")
_BF16 = ("amx_bf16", "avx512_bf16", "bf16")
"""What x86 and Arm call it."""

_PACKAGES = ("torch", "deepspeed", "transformers", "datasets", "triton", "numpy", "ds_moe_mtl")


def environment(ranks: Ranks, device: torch.device, extra: dict) -> dict:
    """Return what a reader needs to judge or repeat the run: command, versions, machine."""
    return {
        "command": sys.argv,
        "launcher": ranks.launcher,
        "world_size": ranks.world_size,
        "device": device_name(device),
        "gpu": gpu_facts(device) if device.type == "cuda" else None,
        "threads": torch.get_num_threads(),
        "host": socket.gethostname(),
        "versions": installed_versions(_PACKAGES),
        **extra,
    }


def take_cores(threads: int | None, ranks: Ranks) -> None:
    """Give this rank `threads` CPU threads; None: its share of the machine's cores, unless
    OMP_NUM_THREADS says.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // ranks.local_world_size))


def emulates_bf16(flags: str | None = None) -> bool:
    """Return whether this processor multiplies bf16 by way of fp32: it knows none of its own.

    flags: what /proc/cpuinfo says it can do; None: asks it. Where nothing is said, False.
    """
    if flags is None:
        info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
        named = (line.partition(":")[2] for line in info.splitlines() if _FLAGS.match(line))
        flags = next(named, "")
    return bool(flags.split()) and not set(flags.split()) & set(_BF16)


def device_name(device: torch.device) -> str:
    """Return a GPU's or this machine's processor's name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()


def gpu_facts(device: torch.device) -> dict:
    """Return what else tells one GPU's figures from another's: capability, memory, software."""
    properties = torch.cuda.get_device_properties(device)
    return {
        "capability": f"{properties.major}.{properties.minor}",
        "memory_bytes": properties.total_memory,
        "multiprocessors": properties.multi_processor_count,
        "driver": _driver_version(),
        "cuda": torch.version.cuda,
        "nccl": ".".join(map(str, torch.cuda.nccl.version())),
    }


def installed_versions(packages: Sequence[str]) -> dict[str, str]:
    """Return Python's version and those of `packages`, "not installed" where one is missing."""
    versions = {"python": platform.python_version()}
    for name in packages:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def _driver_version() -> str:
    """Return what nvidia-smi says of the driver, "unknown" where it says nothing."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        return answer.stdout.splitlines()[0].strip()
    except (OSError, subprocess.SubprocessError, IndexError):
        return "unknown"


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.partition(':')[2].strip()} ({os.cpu_count()} CPUs)"
    return platform.processor() or platform.machine()
