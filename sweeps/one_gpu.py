"""Become `python ARGUMENTS`, on a GPU that no other job of this machine has: `python one_gpu.py ARGUMENTS`.

It is the first free one of those in CUDA_VISIBLE_DEVICES, or of all, and taken for as long as the process lives; while
none is free it waits. Without a GPU there is nothing to take. Jobs of Slurm have been given theirs, and wait only for
processes of the same job.
"""

import os
import subprocess
import sys
import tempfile
import time
from itertools import takewhile
from pathlib import Path


def visible() -> list[str]:
    if (named := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name for name in takewhile(lambda name: not name.startswith("-"), named.split(",")) if name]
    # in a process of its own: one that waits should not hold a loaded PyTorch
    count = [sys.executable, "-c", "import torch; print(torch.cuda.device_count())"]
    return [str(i) for i in range(int(subprocess.run(count, check=True, stdout=subprocess.PIPE, text=True).stdout))]


def take(names: list[str]) -> str:
    import fcntl

    # Each job of Slurm may call its own GPU "0".
    job = f"job-{number}-" if (number := os.environ.get("SLURM_JOB_ID")) else ""
    while True:
        for name in names:
            path = Path(tempfile.gettempdir()) / f"callkit-{os.getuid()}-{job}gpu-{name.replace('/', '-')}.lock"
            lock = os.open(path, os.O_RDWR | os.O_CREAT)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
                continue
            os.set_inheritable(lock, True)  # the lock outlives this program, and ends with the process
            return name
        time.sleep(1)


if __name__ == "__main__":
    if names := visible():
        os.environ["CUDA_VISIBLE_DEVICES"] = take(names)
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
