"""Training: a generator of step records that can stop anywhere and go on as if it never had.

Every random draw of step k is a function of (seed, k) alone. So a resumed run needs no generator states,
equals an uninterrupted one bit for bit on the CPU, and two methods with one seed see the same images,
timesteps and noise.
"""

import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from callkit import augment, data, records
from callkit.allocation import AllocationLoss
from callkit.capacity import merge, reserve
from callkit.config import TrainConfig
from callkit.diffusion import NoiseSchedule
from callkit.objectives import OBJECTIVES, Batch
from callkit.unet import UNet

CHECKPOINT, LOG, DIVERGED = "checkpoint.safetensors", "log.jsonl", "diverged.json"  # what a run folder holds
EXPLODED = 10.0  # predicting no noise at all costs 1.0


class TrainingError(RuntimeError):
    """Training cannot go on; the last good checkpoint is kept."""


@dataclass(frozen=True)
class StepRecord:
    """Averages over the last `log_every` steps."""

    step: int  # steps done
    loss: float  # base + allocation
    base_loss: float
    allocation_loss: float
    grad_norm: float  # before clipping
    seconds: float  # of training so far, over all resumed parts
    base_loss_by_class: list[float]  # NaN for a class that was not drawn
    distance_by_class: list[float]  # D of Eq. (4); NaN without CALL


def build_model(config: TrainConfig, in_channels: int, num_classes: int) -> UNet:
    """The network of `config`, with capacity reserved if it asks for CALL. Initialised from the global generator."""
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
    return reserve(model, config.rank, config.where) if config.call else model


def step_seed(seed: int, *stream: int) -> int:
    """An independent 63-bit seed for each (seed, stream)."""
    return int(np.random.SeedSequence([seed, *stream]).generate_state(1, np.uint64)[0] >> 1)


@lru_cache(maxsize=2)
def _permutation(n: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(step_seed(seed, 0, epoch)))


def batch_index(n: int, batch_size: int, seed: int, step: int) -> Tensor:
    """Positions of step `step`'s images in an endless chain of shuffled epochs: no image twice before all once."""
    position = range(step * batch_size, (step + 1) * batch_size)
    return torch.stack([_permutation(n, seed, p // n)[p % n] for p in position])


def resampled_index(labels: Tensor, power: float, batch_size: int, seed: int, step: int) -> Tensor:
    """Positions drawn with replacement, class c with probability proportional to N_c^(1 - power) (RS)."""
    n = labels.bincount().double()
    weights = n.pow(-power)[labels]
    return torch.multinomial(
        weights, batch_size, replacement=True, generator=torch.Generator().manual_seed(step_seed(seed, 0, step))
    )


@contextmanager
def _global_seed(seed: int, device: torch.device):
    """Dropout draws from PyTorch's global generator: seed it for the block and put it back."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


@contextmanager
def _stop_signal():
    """Within the block SIGINT (Ctrl-C, "interrupt kernel") and SIGTERM are noted, not acted on."""
    received: list[int] = []
    try:
        before = {s: signal.signal(s, lambda n, _: received.append(n)) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: signals are not ours to take
        before = {}
    try:
        yield received
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)


def save_checkpoint(path: Path, tensors: dict[str, Tensor], metadata: dict) -> None:
    """One safetensors file, metadata as JSON in its header, written under a temporary name and renamed."""
    tensors = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    with records.replacing(path) as temporary:
        save_file(tensors, temporary, metadata={"callkit": json.dumps(metadata)})


def load_checkpoint(path: str | Path, tensors: bool = True) -> tuple[dict[str, Tensor], dict]:
    """(tensors, metadata) of a file that `save_checkpoint` wrote. ValueError if it is damaged or not ours.

    With tensors=False only the header is read, and the first dictionary is empty.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        with safe_open(path, framework="pt") as f:
            names = f.keys() if tensors else ()
            return {k: f.get_tensor(k) for k in names}, json.loads(f.metadata()["callkit"])
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged or was not written by callkit: {error}") from error


def steps_done(run: str | Path) -> int:
    """How far the run in this folder has come; 0 if it has no checkpoint yet."""
    checkpoint = Path(run) / CHECKPOINT
    return load_checkpoint(checkpoint, tensors=False)[1]["step"] if checkpoint.exists() else 0


def available_weights(path: str | Path) -> list[str]:
    """What `load_model` can make of a checkpoint and evaluation should: theta, and with CALL theta_g."""
    return ["theta", "theta_g"] if load_checkpoint(path, tensors=False)[1]["config"]["call"] else ["theta"]


def load_model(path: str | Path, weights: str = "theta", device: str = "cpu") -> tuple[UNet, TrainConfig]:
    """A plain U-Net in eval mode from a checkpoint's EMA weights, and the run's config.

    weights  "theta" merges the expert in; "theta_g" leaves it out; "reserved" keeps the decomposition,
             for `expert_scale`. Without CALL there is only "theta".
    """
    if weights not in ("theta", "theta_g", "reserved"):
        raise ValueError(f"unknown weights {weights!r}; known: theta, theta_g, reserved")
    tensors, metadata = load_checkpoint(path)
    config = TrainConfig.from_dict(metadata["config"])
    if weights != "theta" and not config.call:
        raise ValueError(f"{path} was trained without CALL: it has no {weights!r}")
    model = build_model(config, metadata["in_channels"], metadata["num_classes"])
    prefix = "ema."
    state = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit the network that its config describes: {error}") from error
    if weights != "reserved":
        model = merge(model, scale=1.0 if weights == "theta" else 0.0)
    return model.eval().requires_grad_(False).to(device), config


def save_released(checkpoint: str | Path, path: str | Path) -> None:
    """The part of a checkpoint that a reader needs: EMA weights and metadata, no optimiser."""
    tensors, metadata = load_checkpoint(checkpoint)
    save_checkpoint(Path(path), {k: v for k, v in tensors.items() if k.startswith("ema.")}, metadata)


def read_log(path: str | Path) -> list[StepRecord]:
    """The step records in a run's log.jsonl; none if it does not exist yet."""

    def from_json(value):
        if isinstance(value, list):
            return [from_json(v) for v in value]
        return float("nan") if value is None else value

    if not Path(path).exists():
        return []
    lines = [line for line in Path(path).read_text().splitlines(keepends=True) if line.endswith("\n")]  # no torn one
    return [StepRecord(**{k: from_json(v) for k, v in json.loads(line).items()}) for line in lines]


def _log_line(record: StepRecord) -> str:
    return json.dumps(records.to_json(record.__dict__), allow_nan=False) + "\n"


def _same_run(config: TrainConfig, saved: dict, path: Path) -> None:
    ours, saved = config.to_dict(), TrainConfig.from_dict(saved).to_dict()
    changed = [f"{k}: {saved[k]!r} there, {v!r} now" for k, v in ours.items() if saved[k] != v]
    if changed:
        raise ValueError(f"{path} belongs to a run with other settings ({'; '.join(changed)}); use another run folder")


def train(
    config: TrainConfig,
    run: str | Path | None = None,
    device: str = "cpu",
    minutes: float | None = None,
    data_root: str | Path = "data",
) -> Iterator[StepRecord]:
    """Minimise Eq. (6), yielding a StepRecord every `config.log_every` steps.

    run      the run folder (default `records.run_folder(config)`). A checkpoint there is resumed from;
             one of a run with other settings, or a damaged one, raises ValueError before any work.
    minutes  stop after that much time, with a checkpoint; a later call goes on from there.

    A checkpoint is written every `checkpoint_every` steps, at the end, at the time limit, and on SIGINT or
    SIGTERM, which then raise KeyboardInterrupt. TrainingError, naming the term, if a loss is not finite or
    explodes; diverged.json in the run folder then says the same to `evaluation.record_divergence`.
    """
    device = torch.device(device)
    run = Path(run) if run is not None else records.run_folder(config)
    checkpoint = run / CHECKPOINT
    if config.base not in OBJECTIVES:
        raise ValueError(f"unknown base {config.base!r}; known: {', '.join(OBJECTIVES)}")
    objective = OBJECTIVES[config.base]
    records.check_writable(run)
    resumed = load_checkpoint(checkpoint) if checkpoint.exists() else None
    if resumed:
        _same_run(config, resumed[1]["config"], checkpoint)

    train_set = data.load_long_tailed(config.dataset, config.imbalance_ratio, data_root, config.image_size).train
    images, labels = train_set.images.to(device), train_set.labels.to(device)
    num_classes = train_set.num_classes
    with _global_seed(step_seed(config.seed, 1), torch.device("cpu")):
        model = build_model(config, images.shape[1], num_classes).to(device).train()
    schedule = NoiseSchedule().to(device)
    frequency = torch.tensor(train_set.counts / len(train_set), dtype=torch.float32, device=device)
    allocation = AllocationLoss(
        train_set.counts,
        config.lam,
        config.consistency,
        config.diversity,
        config.bound,
        config.bound_form,
        config.stop_gradient,
        config.centred,
    ).to(device)
    parameters = dict(model.named_parameters())
    ema = {k: p.detach().clone() for k, p in parameters.items()}
    optimiser = torch.optim.Adam(parameters.values(), lr=config.lr)
    generator = torch.Generator(device)

    # Sums since the last record: base loss, allocation loss, gradient norm; by class base loss, distance, samples.
    totals = torch.zeros(3, device=device)
    by_class = torch.zeros(3, num_classes, device=device)

    start, seconds_before = 0, 0.0
    if resumed:
        tensors, metadata = resumed
        start, seconds_before = metadata["step"], metadata["seconds"]
        totals.copy_(tensors["log.totals"])
        by_class.copy_(tensors["log.by_class"])
        with torch.no_grad():
            for k, p in parameters.items():
                p.copy_(tensors[f"model.{k}"])
                ema[k].copy_(tensors[f"ema.{k}"])
                optimiser.state[p] = {
                    "step": torch.tensor(float(start)),
                    "exp_avg": tensors[f"exp_avg.{k}"].to(device),
                    "exp_avg_sq": tensors[f"exp_avg_sq.{k}"].to(device),
                }
    # A log is cut back to the checkpoint: steps after it are done again.
    kept = [_log_line(r) for r in read_log(run / LOG) if r.step <= start]
    (run / LOG).write_text("".join(kept))
    (run / DIVERGED).unlink(missing_ok=True)
    if start >= config.steps:
        return

    provenance = records.provenance(device)
    began = time.perf_counter()

    def seconds() -> float:
        return seconds_before + time.perf_counter() - began

    def save(step: int) -> None:
        tensors = {f"model.{k}": p for k, p in parameters.items()} | {f"ema.{k}": v for k, v in ema.items()}
        tensors |= {"log.totals": totals, "log.by_class": by_class}
        for name in ("exp_avg", "exp_avg_sq"):
            tensors |= {f"{name}.{k}": optimiser.state[p][name] for k, p in parameters.items()}
        save_checkpoint(
            checkpoint,
            tensors,
            {
                "config": config.to_dict(),
                "step": step,
                "seconds": seconds(),
                "in_channels": images.shape[1],
                "num_classes": num_classes,
                "image_size": images.shape[-1],
                "counts": train_set.counts.tolist(),
                "provenance": provenance,
            },
        )

    with _stop_signal() as stop, (run / LOG).open("a") as log:
        for step in range(start, config.steps):
            generator.manual_seed(step_seed(config.seed, 2, step))
            if config.resample:
                index = resampled_index(train_set.labels, config.resample, config.batch_size, config.seed, step)
            else:
                index = batch_index(len(images), config.batch_size, config.seed, step)
            index = index.to(device)
            x0, y = data.to_float(images[index]), labels[index]
            augmentation = None
            if config.augment:
                warp = augment.draw(len(y), generator)
                x0, augmentation = augment.apply(x0, warp.matrix()), warp.condition()
            elif config.flip:
                mirrored = torch.rand(y.shape, generator=generator, device=device) < 0.5
                x0 = torch.where(mirrored[:, None, None, None], x0.flip(-1), x0)
            dropped = torch.rand(y.shape, generator=generator, device=device) < config.label_drop
            batch = Batch(x0, y, y.masked_fill(dropped, num_classes), frequency, augmentation)

            with _global_seed(step_seed(config.seed, 3, step), device):
                out = objective(model, batch, schedule, generator, both=config.call, **config.base_options)
            base_loss = out.loss.mean()
            if config.call:
                allocated = allocation(out.eps, out.eps_general, y, out.loss)
                allocation_loss, distance = allocated.loss.mean(), allocated.distance
            else:
                allocation_loss, distance = base_loss.new_zeros(()), torch.full_like(out.loss, float("nan"))

            for group in optimiser.param_groups:
                group["lr"] = config.lr * min(1.0, (step + 1) / max(1, config.warmup))
            optimiser.zero_grad()
            (base_loss + allocation_loss).backward()
            grad_norm = nn.utils.clip_grad_norm_(parameters.values(), config.grad_clip)
            optimiser.step()
            decay = min(config.ema_decay, (1 + step) / (10 + step))
            with torch.no_grad():
                torch._foreach_lerp_(list(ema.values()), list(parameters.values()), 1 - decay)

                totals += torch.stack([base_loss, allocation_loss, grad_norm])
                ones = torch.ones_like(out.loss)
                by_class.index_add_(1, y, torch.stack([out.loss, distance, ones]))

            done = step + 1
            out_of_time = minutes is not None and time.perf_counter() - began > 60 * minutes
            interrupted = bool(stop)  # once: a signal during the yield below is the next step's
            leaving = interrupted or out_of_time or done == config.steps
            if done % config.log_every == 0 or done % config.checkpoint_every == 0 or leaving:
                for term, value, limit in (
                    ("base loss", base_loss, EXPLODED),
                    ("allocation loss", allocation_loss, EXPLODED),
                    ("gradient norm", grad_norm, torch.finfo(torch.float32).max),
                ):
                    if not abs(value.item()) <= limit:  # also true of NaN
                        records.write_json(
                            run / DIVERGED,
                            {
                                "config": config.to_dict(),
                                "counts": train_set.counts.tolist(),
                                "step": done,
                                "term": term,
                                "value": str(value.item()),  # NaN and infinity are not JSON
                                "seconds": seconds(),
                                "provenance": provenance,
                            },
                        )
                        raise TrainingError(
                            f"step {done}: the {term} is {value.item():.3g}, beyond ±{limit:g}; stopped. "
                            f"The last good checkpoint is {checkpoint if checkpoint.exists() else 'none'}. "
                            + (
                                "The diversity term -omega_Div D has no floor with bound=None: "
                                "use allocation='bounded'."
                                if term == "allocation loss" and config.bound is None
                                else "Try a smaller lr."
                            )
                        )
            record = None
            if done % config.log_every == 0 or done == config.steps:
                base_mean, allocation_mean, norm_mean = (totals / by_class[2].sum() * config.batch_size).tolist()
                record = StepRecord(
                    step=done,
                    loss=base_mean + allocation_mean,
                    base_loss=base_mean,
                    allocation_loss=allocation_mean,
                    grad_norm=norm_mean,
                    seconds=seconds(),
                    base_loss_by_class=(by_class[0] / by_class[2]).tolist(),
                    distance_by_class=(by_class[1] / by_class[2]).tolist(),
                )
                totals.zero_()
                by_class.zero_()
                log.write(_log_line(record))
                log.flush()
            if done % config.checkpoint_every == 0 or leaving:
                save(done)
            if record:
                yield record
            if interrupted:
                raise KeyboardInterrupt(f"stopped at step {done}; run again to go on from there")
            if out_of_time:
                return
