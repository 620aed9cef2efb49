"""One GPU for each worker's process on a machine, whatever engine started them. Only a lock is no standard library."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_DRIVER = Path("/proc/driver/nvidia/gpus")


@dataclass
class Device:
    """A GPU by its name in CUDA_VISIBLE_DEVICES, and the lock that this process holds on it."""

    name: str
    lock: Any

    def free(self) -> None:
        if self.lock is not None:
            self.lock.release()


def visible() -> list[str]:
    """The GPUs that this process may use; none where there is no driver of NVIDIA's."""
    told = os.environ.get("CUDA_VISIBLE_DEVICES")
    if told is not None:
        return [name.strip() for name in told.split(",") if name.strip() not in ("", "-1")]
    return [str(k) for k in range(len(list(_DRIVER.iterdir())))] if _DRIVER.is_dir() else []


def claimed() -> Device | None:
    """A GPU that no other process of a sweep has; the first one where all are taken, None where there are none.

    The lock is a file of this machine, which the system gives back when its holder ends, however it ends.
    """
    names = visible()
    if not names:
        return None
    from filelock import FileLock, Timeout  # comes with huggingface_hub

    for name in names:
        lock = FileLock(Path(tempfile.gettempdir()) / f"bora-analysis-gpu-{name.replace('/', '-')}.lock")
        try:
            lock.acquire(timeout=0)
            return Device(name, lock)
        except (Timeout, OSError):
            continue
    return Device(names[os.getpid() % len(names)], None)
