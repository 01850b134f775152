"""Files that several processes may write and read at once, and that a killed one must not leave half written."""

import errno
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout
from tqdm.auto import tqdm

NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP)  # what file systems without locks answer


def check_writable(folder: Path) -> None:
    """Create `folder`; a clear OSError now rather than after the work."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".write-test-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OSError(f"cannot write to {folder}: {error.strerror or error}") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` to write to: a reader sees the old file or the new one, never half of it, also
    after a power cut. Others may read it as they may any new file, whatever writes it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        os.chmod(temporary, mode)
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _keep_names(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _keep_names(folder: Path) -> None:
    """Have the disk keep a folder's names, where the system can be asked to."""
    with suppress(OSError):
        folder_itself = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(folder_itself)
        finally:
            os.close(folder_itself)


@contextmanager
def alone(path: Path, wait: bool | Callable[[], str] = True) -> Iterator[None]:
    """Within the block no other process is in one with this lock file. Where one is, this waits for its end, and says
    on stderr what `wait` returns if that is a function; filelock.Timeout if `wait` is False.

    The lock goes with the process, also when that is killed; on a file system without locks there is none, and a
    warning says so.
    """
    # A soft lock, a file that a killed process leaves behind, would shut others out for good; and other users must be
    # able to open the file.
    lock = FileLock(path, mode=0o666, fallback_to_soft=False)
    try:
        try:
            lock.acquire(timeout=-1 if wait is True else 0)
        except Timeout:
            if not callable(wait):
                raise
            tqdm.write(wait(), file=sys.stderr)  # beside a bar
            lock.acquire()
    except OSError as error:
        if isinstance(error, Timeout) or error.errno not in NO_LOCKS:
            raise
        warnings.warn(
            f"{path.parent} is on a file system without locks: see to it that one process at a time works there",
            stacklevel=4,
        )
    try:
        yield
    finally:
        lock.release()


def made_once(path: Path, make: Callable[[Path], None]) -> Path:
    """`path`, which `make` is told to write if it is not there. Of several processes one does, and the others wait."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_name(f".{path.name}.lock")
        with alone(lock):
            for left_by_a_killed_process in set(path.parent.glob(f".{path.name}.*")) - {lock}:
                left_by_a_killed_process.unlink()
            if not path.exists():
                with replacing(path) as temporary:
                    make(temporary)
    return path


def whole_lines(path: Path) -> list[str]:
    """The lines of a file to which somebody may be writing, or was when killed: without a torn last one. None without a
    file."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [line for line in lines if line.endswith("\n")]


def to_json(value):
    """`value` with NaN as null, for strict JSON."""
    if isinstance(value, dict):
        return {k: to_json(v) for k, v in value.items()}
    if isinstance(value, list):
        return [to_json(v) for v in value]
    return None if value != value else value


def write_json(path: Path, value) -> None:
    """Atomic. NaN becomes null."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(to_json(value), indent=1, allow_nan=False) + "\n")
