"""What a run folder holds: checkpoints, the log of step records, and a lock while somebody trains there."""

import json
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch
from filelock import Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from callkit import augment, files
from callkit.capacity import merge, reserve
from callkit.config import TrainConfig
from callkit.unet import UNet

CHECKPOINT, PREVIOUS = "checkpoint.safetensors", "checkpoint.previous.safetensors"
WEIGHTS = ("theta", "theta_g")  # what is evaluated of a run with CALL
LOG, DIVERGED, LOCK, HOLDER = "log.jsonl", "diverged.json", "lock", "holder"


class TrainingError(RuntimeError):
    """Training cannot go on, or not begin; the last good checkpoint is kept."""


def build_model(config: TrainConfig, in_channels: int, num_classes: int) -> UNet:
    """The network of `config`, with capacity reserved if it asks for CALL. Initialised from the global generator.

    Its weights are channels-last in memory, and so are then the images, which is faster on a CPU but for small ones.
    """
    model = UNet(
        in_channels,
        num_classes,
        config.channels,
        config.channel_mult,
        config.attention_levels,
        config.num_res_blocks,
        config.dropout,
        augment.CONDITION_SIZE if config.augment else 0,
    )
    model = reserve(model, config.rank, config.where) if config.call else model
    return model.to(memory_format=torch.channels_last) if config.channels >= 64 else model


def save_checkpoint(path: Path, tensors: dict[str, Tensor], metadata: dict, previous: Path | None = None) -> None:
    """One safetensors file, metadata as JSON in its header, written under a temporary name and renamed.

    With `previous` the file that was at `path` gets that name instead of being lost, unless it is damaged: then what
    has that name is the better one. OSError if it cannot be written; what was there before then still is.
    """
    tensors = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    with files.replacing(path) as temporary:
        try:
            save_file(tensors, temporary, metadata={"callkit": json.dumps(metadata)})
        except SafetensorError as error:
            raise OSError(f"cannot write {path}: {error}") from error
        if previous and path.exists() and _whole(path):
            os.replace(path, previous)


def _whole(path: Path) -> bool:
    try:
        load_checkpoint(path, tensors=False)
    except ValueError:
        return False
    return True


def load_checkpoint(path: str | Path, tensors: bool = True) -> tuple[dict[str, Tensor], dict]:
    """(tensors, metadata) of a file that `save_checkpoint` wrote. FileNotFoundError if there is none, another OSError
    if it cannot be opened, ValueError if it is damaged or not ours.

    With tensors=False only the header is read, and the first dictionary is empty.
    """
    while True:
        before = _identity(path)
        try:
            found = _read_checkpoint(path, tensors)
        except (OSError, ValueError):
            if _identity(path) == before:
                raise
        else:
            if _identity(path) == before:
                return found
        # Somebody trains there. safetensors opens a file twice: a header of the one that was replaced and numbers of
        # the next would be neither.


def _identity(path: str | Path) -> tuple[int, ...] | None:
    """What tells a file from the next of its name; None if there is none."""
    with suppress(FileNotFoundError):
        found = os.stat(path)
        return found.st_ino, found.st_size, found.st_mtime_ns
    return None


def _read_checkpoint(path: str | Path, tensors: bool) -> tuple[dict[str, Tensor], dict]:
    try:
        open(path, "rb").close()  # safetensors takes a file that it may not open for one that is not there
        with safe_open(path, framework="pt") as f:
            names = f.keys() if tensors else ()
            return {k: f.get_tensor(k) for k in names}, json.loads(f.metadata()["callkit"])
    except FileNotFoundError:
        raise FileNotFoundError(f"no checkpoint at {path}") from None
    except RuntimeError as error:  # no memory for it, say
        raise OSError(f"cannot read {path}: {error}") from error
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged or was not written by callkit: {error}") from error


def load_newest(run: str | Path, tensors: bool = True) -> tuple[Path, dict[str, Tensor], dict] | None:
    """The newest checkpoint of a run folder that can be read, and what `load_checkpoint` finds there; None if the
    folder has none.

    A damaged newest one is passed over, with a warning, for the one before; ValueError if there is none before.
    """
    path, previous = Path(run) / CHECKPOINT, Path(run) / PREVIOUS
    try:
        return path, *load_checkpoint(path, tensors)
    except FileNotFoundError:  # the first is still to come, or this one has just got the other name
        if not previous.exists():
            return None
    except ValueError as error:
        if not previous.exists():
            raise
        warnings.warn(f"{error}; going back to {previous.name}", stacklevel=2)
    return previous, *load_checkpoint(previous, tensors)


def steps_done(run: str | Path) -> int:
    """How far the run in this folder has come; 0 if it has no checkpoint yet."""
    found = load_newest(run, tensors=False)
    return found[-1]["step"] if found else 0


def available_weights(path: str | Path) -> list[str]:
    """What `load_model` can make of a checkpoint and evaluation should: theta, and with CALL theta_g."""
    return list(WEIGHTS) if load_checkpoint(path, tensors=False)[1]["config"]["call"] else ["theta"]


def check_weights(path: str | Path, weights: str) -> None:
    """ValueError unless `load_model` knows these weights and the checkpoint has them."""
    if weights not in (known := (*WEIGHTS, "reserved")):
        raise ValueError(f"unknown weights {weights!r}; known: {', '.join(known)}")
    if weights != "theta" and "theta_g" not in available_weights(path):
        raise ValueError(f"{path} was trained without CALL: it has no {weights!r}")


def check_counts(metadata: dict, counts, path: str | Path) -> None:
    """ValueError unless the checkpoint's run had as many training images of each class as there are now."""
    if metadata["counts"] != (now := [int(n) for n in counts]):
        raise ValueError(
            f"the data set has changed since the run of {path} began: training images by class {metadata['counts']} "
            f"then, {now} now"
        )


@torch.no_grad()
def load_ema(parameters: dict[str, Tensor], tensors: dict[str, Tensor], path: str | Path) -> None:
    """Give a network's trained parameters the averaged values of the checkpoint at `path`, whose tensors these are.
    ValueError unless names and shapes are the same."""
    ema = {k.removeprefix("ema."): v for k, v in tensors.items() if k.startswith("ema.")}
    wrong = sorted(ema.keys() ^ parameters.keys()) or [k for k, p in parameters.items() if p.shape != ema[k].shape]
    if wrong:
        raise ValueError(
            f"{path} does not fit the network that its config describes: of {len(wrong)} parameters name or shape "
            f"differs, {wrong[0]} the first"
        )
    for name, parameter in parameters.items():
        parameter.copy_(ema[name])


def load_model(path: str | Path, weights: str = "theta", device: str = "cpu") -> tuple[UNet, TrainConfig]:
    """A plain U-Net in eval mode from a checkpoint's EMA weights, and the run's config.

    weights  "theta" merges the expert in; "theta_g" leaves it out; "reserved" keeps the decomposition,
             for `expert_scale`. Without CALL there is only "theta".

    FileNotFoundError if there is no checkpoint; ValueError if it is damaged, has no such weights, or does not fit the
    network that its own config describes.
    """
    check_weights(path, weights)
    tensors, metadata = load_checkpoint(path)
    if "class_names" in metadata:
        raise ValueError(f"{path} is of Stable Diffusion: use python -m callkit.lora")
    config = TrainConfig.from_dict(metadata["config"])
    model = build_model(config, metadata["in_channels"], metadata["num_classes"])
    load_ema(dict(model.named_parameters()), tensors, path)
    if weights != "reserved":
        model = merge(model, scale=1.0 if weights == "theta" else 0.0)
    return model.eval().requires_grad_(False).to(device), config


def save_released(checkpoint: str | Path, path: str | Path, dtype: torch.dtype = torch.float32) -> None:
    """The part of a checkpoint that a reader needs: EMA weights and metadata, no optimiser. bfloat16 halves the file;
    `load_model` makes float32 of it again."""
    tensors, metadata = load_checkpoint(checkpoint)
    save_checkpoint(Path(path), {k: v.to(dtype) for k, v in tensors.items() if k.startswith("ema.")}, metadata)


@dataclass(frozen=True)
class StepRecord:
    """Averages over the steps since the last record, `log_every` but at a run's end."""

    step: int  # steps done
    loss: float  # base + allocation
    base_loss: float
    allocation_loss: float
    grad_norm: float  # before clipping
    seconds: float  # of training so far, over all resumed parts
    base_loss_by_class: list[float]  # NaN for a class that was not drawn
    distance_by_class: list[float]  # D of Eq. (4); NaN without CALL
    base_loss_by_split: dict[str, float] = field(default_factory=dict)  # of the samples drawn from Many, Medium, Few


def read_log(path: str | Path) -> list[StepRecord]:
    """The step records in a run's log.jsonl; none if it does not exist yet."""

    def from_json(value):
        if isinstance(value, list):
            return [from_json(v) for v in value]
        if isinstance(value, dict):
            return {k: from_json(v) for k, v in value.items()}
        return float("nan") if value is None else value

    lines = files.whole_lines(Path(path))
    return [StepRecord(**{k: from_json(v) for k, v in json.loads(line).items()}) for line in lines]


def log_line(record: StepRecord) -> str:
    return json.dumps(files.to_json(record.__dict__), allow_nan=False) + "\n"


@contextmanager
def locked(run: Path, wait: bool = False) -> Iterator[None]:
    """Within the block this process alone trains in `run`. TrainingError, naming the other, if one does already; or
    wait until it has ended, and say so.

    The lock is one of `files.alone`. The folder is made; OSError if that cannot be. What was made goes again if the
    block leaves nothing there.
    """
    made = [p for p in (run, *run.parents) if not p.exists()]
    files.check_writable(run)
    holder = run / HOLDER

    def in_use() -> str:
        return f"{run} is in use by {holder.read_text() if holder.exists() else 'another process'}"

    with ExitStack() as stack:
        try:
            stack.enter_context(files.alone(run / LOCK, wait and (lambda: f"{in_use()}; waiting for its end")))
        except Timeout:
            raise TrainingError(f"{in_use()}; wait for it, stop it, or choose another run folder") from None
        try:
            holder.write_text(f"process {os.getpid()} on {socket.gethostname()}")
            for left_by_a_killed_run in run.glob(f".{CHECKPOINT}.*"):
                left_by_a_killed_run.unlink()
            yield
        finally:
            holder.unlink(missing_ok=True)
            if made and {p.name for p in run.iterdir()} <= {LOCK}:
                with suppress(OSError):  # a folder that somebody else needs by now
                    (run / LOCK).unlink(missing_ok=True)
                    for folder in made:
                        folder.rmdir()
