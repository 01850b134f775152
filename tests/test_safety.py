"""A run survives what happens to runs: kills at any moment, damaged files, full disks, a second process.

As a script, `python tests/test_safety.py [KILLS]` kills and resumes one run that often, and compares it with another
that was left alone.
"""

import errno
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from callkit import checkpoints, files
from callkit.checkpoints import (
    CHECKPOINT,
    LOG,
    PREVIOUS,
    TrainingError,
    load_checkpoint,
    load_newest,
    read_log,
    save_checkpoint,
)
from callkit.config import make_config
from callkit.training import train

ROOT = Path(__file__).parents[1]
STEPS, EVERY = 120, 3


def settings(**options):
    return make_config(profile="smoke", **dict(steps=STEPS, checkpoint_every=EVERY, log_every=2) | options)


def start(run: Path, *options: str, **popen) -> subprocess.Popen:
    command = [sys.executable, "-m", "callkit", "train", "--profile", "smoke", "--run", str(run), "--device", "cpu"]
    command += ["--threads", "1", *options, "--set", f"steps={STEPS}", f"checkpoint_every={EVERY}", "log_every=2"]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **popen)


def kill_and_resume(kills: int, run: Path, seed: int = 0) -> int:
    """Kill -9 a run `kills` times, each a random moment after it has got further; let it end. Steps done twice."""
    moments, twice = random.Random(seed), 0
    for _ in range(kills):
        process, before = start(run), checkpoints.steps_done(run)
        while process.poll() is None and checkpoints.steps_done(run) < before + EVERY:
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.1))
        logged = max([r.step for r in read_log(run / LOG)], default=0)
        process.kill()
        process.communicate()
        twice += max(0, logged - checkpoints.steps_done(run))
        assert (
            logged - checkpoints.steps_done(run) < EVERY + 2
        )  # the interval, and what was logged while it was written
    process = start(run)
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    return twice


def assert_same_run(a: Path, b: Path) -> None:
    one, other = load_checkpoint(a / CHECKPOINT)[0], load_checkpoint(b / CHECKPOINT)[0]
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name
    logs = [[repr(r.__dict__ | {"seconds": 0}) for r in read_log(run / LOG)] for run in (a, b)]
    assert logs[0] == logs[1] and len(logs[0]) == STEPS // 2


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    run = tmp_path_factory.mktemp("whole")
    list(train(settings(), run))
    return run


def test_a_run_that_is_killed_ends_like_one_that_is_not(whole, tmp_path):
    kill_and_resume(3, tmp_path)
    assert_same_run(whole, tmp_path)
    assert not list(tmp_path.glob(".*")), "no half-written file is left"


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"\xff" * 100])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(whole, tmp_path, damage):
    for record in train(settings(), tmp_path):
        if record.step == 50:
            break
    assert checkpoints.steps_done(tmp_path) == 48
    (tmp_path / CHECKPOINT).write_bytes(damage((tmp_path / CHECKPOINT).read_bytes()))
    with pytest.warns(UserWarning, match=r"damaged or was not written by callkit.*going back to checkpoint\.previous"):
        assert checkpoints.steps_done(tmp_path) == 45
    first = train(settings(), tmp_path)
    with pytest.warns(UserWarning, match="going back to"):
        next(record for record in first if record.step == 50)  # saved at 48
    assert load_checkpoint(tmp_path / PREVIOUS)[1]["step"] == 45, "the damaged one took no other's place"
    list(first)
    assert_same_run(whole, tmp_path)


@pytest.mark.parametrize("tensors", [True, False])
def test_a_checkpoint_that_is_replaced_while_it_is_read_is_read_again(whole, tmp_path, monkeypatch, tensors):
    """safetensors takes the header from a first opening of the file and the numbers from a second."""
    newest, next_one = tmp_path / "newest.safetensors", tmp_path / "next.safetensors"
    checkpoints.save_checkpoint(newest, {"w": torch.zeros(64)}, {"step": 1})
    checkpoints.save_checkpoint(next_one, {"w": torch.ones(64)}, {"step": 2, "a header": 100 * "of another length"})
    openings = []

    class Opened:
        def __init__(self, path, framework):
            openings.append(path)
            self.header = safe_open(path, framework)
            if len(openings) == 1:
                os.replace(next_one, newest)
            self.numbers = safe_open(path, framework)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def keys(self):
            return self.header.keys()

        def metadata(self):
            return self.header.metadata()

        def get_tensor(self, name):
            return self.numbers.get_tensor(name)

    monkeypatch.setattr(checkpoints, "safe_open", Opened)
    found, metadata = checkpoints.load_checkpoint(newest, tensors)
    assert metadata["step"] == 2 and len(openings) == 2
    assert not tensors or (found["w"] == 1).all()


def test_a_file_is_on_the_disk_before_its_name_and_its_name_before_work_goes_on(tmp_path, monkeypatch):
    did, fsync, replace = [], os.fsync, os.replace

    def synced(descriptor):
        did.append(("sync", os.fstat(descriptor).st_ino))
        fsync(descriptor)

    def replaced(source, to):
        did.append(("rename", to.name))
        replace(source, to)

    path, previous = tmp_path / CHECKPOINT, tmp_path / PREVIOUS
    save_checkpoint(path, {"w": torch.zeros(1)}, {})
    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    save_checkpoint(path, {"w": torch.ones(1)}, {}, previous)
    file, folder = path.stat().st_ino, tmp_path.stat().st_ino
    assert did == [("rename", PREVIOUS), ("sync", file), ("rename", CHECKPOINT), ("sync", folder)]


def test_a_checkpoint_that_is_there_and_cannot_be_read_is_not_taken_for_none(whole, monkeypatch):
    def no_memory(*_, **__):
        raise RuntimeError("unable to mmap: Cannot allocate memory")

    monkeypatch.setattr(checkpoints, "safe_open", no_memory)
    with pytest.raises(OSError, match=r"cannot read .*checkpoint\.safetensors: unable to mmap"):
        load_newest(whole)


def test_a_checkpoint_is_as_readable_as_a_log_and_one_that_cannot_be_opened_is_not_passed_over(whole, tmp_path):
    assert (whole / CHECKPOINT).stat().st_mode == (whole / LOG).stat().st_mode
    (tmp_path / CHECKPOINT).mkdir()  # root may open everything else
    with pytest.raises(IsADirectoryError):
        load_newest(tmp_path)


@pytest.fixture(params=["ENOSYS", "ENOLCK", "EOPNOTSUPP", "ENOTSUP"])
def no_locks(request, monkeypatch):
    """As if the file system had none."""

    def fail(*_):
        raise OSError(getattr(errno, request.param), "not here")

    monkeypatch.setattr("fcntl.flock", fail)


def test_without_locks_a_file_is_made_all_the_same_and_nothing_is_left_to_wait_for(no_locks, tmp_path):
    with pytest.warns(UserWarning, match="is on a file system without locks"):
        made = files.made_once(tmp_path / "made", lambda path: path.write_text("all"))
    assert made.read_text() == "all" and not any(p.read_text() for p in tmp_path.iterdir() if p != made)


def test_without_locks_a_run_goes_on_and_says_so(no_locks, tmp_path):
    with pytest.warns(UserWarning, match="is on a file system without locks"), checkpoints.locked(tmp_path):
        (tmp_path / "done").touch()
    assert {p.name for p in tmp_path.iterdir()} <= {"done", checkpoints.LOCK}


def test_between_the_two_renames_there_is_always_one_checkpoint(tmp_path):
    for record in train(settings(), tmp_path):
        if record.step == 10:
            break
    (tmp_path / CHECKPOINT).unlink()  # killed after the old file got its new name
    assert load_newest(tmp_path)[-1]["step"] == 6
    (tmp_path / PREVIOUS).unlink()
    assert load_newest(tmp_path) is None


def keep_saving(run: Path, times: int) -> None:
    tensors, metadata = load_checkpoint(run / CHECKPOINT)
    for step in range(1, times + 1):
        save_checkpoint(run / CHECKPOINT, tensors, metadata | {"step": step}, run / PREVIOUS)


def test_one_who_looks_while_a_checkpoint_is_written_finds_one(whole, tmp_path):
    times = 300
    tensors, metadata = load_checkpoint(whole / CHECKPOINT)
    save_checkpoint(tmp_path / CHECKPOINT, tensors, metadata | {"step": 0}, tmp_path / PREVIOUS)
    # a process and not a thread: two threads in Python take turns, at best
    writer = get_context("spawn").Process(target=keep_saving, args=(tmp_path, times), daemon=True)
    writer.start()
    seen = []
    while writer.is_alive():
        seen.append(checkpoints.steps_done(tmp_path))
    assert writer.exitcode == 0 and checkpoints.steps_done(tmp_path) == times
    assert seen == sorted(seen) and len(set(seen)) > 10, "looked while it was written"


def test_two_processes_cannot_train_one_run(whole, tmp_path):
    first = train(settings(), tmp_path)
    next(first)
    second = start(tmp_path)
    output = second.communicate(timeout=120)[0]
    assert second.returncode == 1
    assert f"error: {tmp_path} is in use by process {os.getpid()} on " in output and "Traceback" not in output
    with pytest.raises(TrainingError, match=f"in use by process {os.getpid()} on "):
        next(train(settings(), tmp_path))
    list(first)  # unharmed
    assert_same_run(whole, tmp_path)
    assert list(train(settings(), tmp_path)) == [], "free again"


def test_a_second_process_waits_if_it_is_told_to(whole, tmp_path):
    first = train(settings(), tmp_path)
    next(first)
    second = start(tmp_path, "--wait")
    said = next(line for line in second.stdout if "waiting for its end" in line)
    assert f"{tmp_path} is in use by process {os.getpid()} on " in said
    for _ in range(20):
        next(first)
    first.close()
    output = second.communicate(timeout=120)[0]
    assert second.returncode == 0 and "finished" in output, output
    assert_same_run(whole, tmp_path)


def test_a_file_that_several_want_is_made_once(tmp_path):
    made = []

    def make(path):
        made.append(path)
        time.sleep(0.5)
        path.write_text("whole")

    def want(_):
        return files.made_once(tmp_path / "new" / "file", make).read_text()

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(want, range(4))) == ["whole"] * 4
    assert len(made) == 1


def test_what_a_killed_process_left_of_a_file_goes_and_other_users_may_wait_for_it(tmp_path):
    (tmp_path / ".file.12345").write_text("half")
    files.made_once(tmp_path / "file", lambda path: path.write_text("whole"))
    (lock,) = set(tmp_path.iterdir()) - {tmp_path / "file"}
    assert lock.name == ".file.lock" and lock.stat().st_mode & 0o777 == 0o666


def test_a_full_disk_loses_nothing(whole, tmp_path):
    """A limit on the size of files stands in for the disk: the log still fits, a checkpoint does not any more."""
    for record in train(settings(), tmp_path):
        if record.step == 10:
            break
    kept = {p.name: p.read_bytes() for p in tmp_path.glob("*.safetensors")}

    def small_files():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    process = start(tmp_path, preexec_fn=small_files)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 1
    assert f"error: cannot write {tmp_path / CHECKPOINT}" in output and "Traceback" not in output
    assert {p.name: p.read_bytes() for p in tmp_path.glob("*.safetensors")} == kept
    assert not list(tmp_path.glob(".*"))
    list(train(settings(), tmp_path))
    assert_same_run(whole, tmp_path)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_signal_stops_the_command_with_a_checkpoint_at_once(tmp_path, name):
    process = start(tmp_path)
    while process.poll() is None and checkpoints.steps_done(tmp_path) < EVERY:
        time.sleep(0.01)
    process.send_signal(getattr(signal, name))
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 75 and "run again to go on from there" in output, output
    assert f"stopped at step {checkpoints.steps_done(tmp_path)};" in output


if __name__ == "__main__":
    kills = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    with tempfile.TemporaryDirectory() as folder:
        killed, left_alone = Path(folder, "killed"), Path(folder, "left-alone")
        killed.mkdir()
        twice = kill_and_resume(kills, killed)
        torch.set_num_threads(1)
        list(train(settings(), left_alone))
        assert_same_run(left_alone, killed)
    print(f"{kills} kills, {kills} resumes, {twice} of {STEPS} steps logged twice; final weights identical")
