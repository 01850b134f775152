"""Training: a generator of step records that can stop anywhere and go on as if it never had.

Every random draw of step k is a function of (seed, k), the settings and the kind of device, for each has generators of
its own. So a resumed run needs no generator states, equals an uninterrupted one bit for bit on the CPU, and two methods
with one seed see the same images, and on one kind of device the same timesteps and noise, but for two: RS draws other
images, and ADA its warps before the rest, which is then another.
"""

import signal
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from callkit import augment, data, distributed, files, records
from callkit.allocation import PRESETS, AllocationLoss
from callkit.checkpoints import (
    CHECKPOINT,
    DIVERGED,
    LOG,
    PREVIOUS,
    StepRecord,
    TrainingError,
    build_model,
    check_counts,
    load_newest,
    locked,
    log_line,
    read_log,
    save_checkpoint,
)
from callkit.config import Settings, TrainConfig, other_words
from callkit.diffusion import NoiseSchedule
from callkit.objectives import OBJECTIVES, Batch

EXPLODED = 10.0  # predicting no noise at all costs 1.0


def step_seed(seed: int, *stream: int) -> int:
    """A 63-bit seed for each (seed, stream), as good as independent. Zeros at a stream's end do not count."""
    return int(np.random.SeedSequence([seed, *stream]).generate_state(1, np.uint64)[0]) >> 1


@lru_cache(maxsize=2)
def _permutation(n: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(step_seed(seed, 0, epoch)))


def batch_index(n: int, batch_size: int, seed: int, step: int) -> Tensor:
    """Positions of step `step`'s images in an endless chain of shuffled epochs, int64 (batch_size,): no image twice
    before all once."""
    position = range(step * batch_size, (step + 1) * batch_size)
    return torch.stack([_permutation(n, seed, p // n)[p % n] for p in position])


def resampled_index(labels: Tensor, power: float, batch_size: int, seed: int, step: int) -> Tensor:
    """Positions drawn with replacement, int64 (batch_size,), class c with probability proportional to N_c^(1 - power).

    This is RS, for which the paper cites Mahajan et al. (2018) and gives no formula (Chapter 09): power 1 draws all
    classes equally often, 1/2 is half-way by square roots. labels int64 (N,).
    """
    n = labels.bincount().double()
    weights = n.pow(-power)[labels]
    return torch.multinomial(
        weights, batch_size, replacement=True, generator=torch.Generator().manual_seed(step_seed(seed, 0, step))
    )


def step_index(config: Settings, labels: Tensor, step: int) -> Tensor:
    """Positions of step `step`'s images, int64 (batch_size,): of shuffled epochs, or re-sampled where `config.resample`
    asks for it. labels int64 (N,) of the training set."""
    if config.resample:
        return resampled_index(labels, config.resample, config.batch_size, config.seed, step)
    return batch_index(len(labels), config.batch_size, config.seed, step)


def learning_rate(config: Settings, step: int) -> float:
    """Of step `step`, counted from 0: grows linearly over `config.warmup` steps, stays, and falls linearly over the
    last `config.cooldown`."""
    return config.lr * min(1.0, (step + 1) / max(1, config.warmup), (config.steps - step) / max(1, config.cooldown))


def ema_decay(config: Settings, step: int) -> float:
    """Of the weights' average at step `step`: small at first, so that the average forgets the initial weights."""
    return min(config.ema_decay, (1 + step) / (10 + step))


@contextmanager
def _global_seed(seed: int, device: torch.device):
    """Dropout draws from PyTorch's global generator: seed it for the block and put it back."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


@contextmanager
def _stop_signal():
    """Within the block SIGINT (Ctrl-C, "interrupt kernel"), SIGTERM and SIGUSR1 are noted, not acted on. What was noted
    and left without effect is a KeyboardInterrupt at its end."""
    received: list[int] = []
    signals = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]
    try:
        before = {s: signal.signal(s, lambda n, _: received.append(n)) for s in signals}
    except ValueError:  # not the main thread: signals are not ours to take
        before = {}
    try:
        yield received
    except GeneratorExit:  # the caller closed the generator of steps
        if not received:
            raise
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)
    if received:
        raise KeyboardInterrupt("stopped; run again to go on from there")


class _Batches:
    """Step k's batch as a function of (seed, k), on the device, from images that stay there."""

    def __init__(self, config: TrainConfig, train_set: data.ImageSet, allocation: AllocationLoss, device: torch.device):
        self.config, self.allocation, self.device = config, allocation, device
        self.images, self.labels = train_set.images.to(device), train_set.labels
        self.labels_there = self.labels.to(device)
        self.num_classes = train_set.num_classes
        self.frequency = train_set.frequency.to(device)

    def draw(self, step: int, generator: torch.Generator) -> tuple[Batch, Tensor]:
        """The batch, and each compared sample's weight in the allocation loss: together they average it."""
        c = self.config
        index = step_index(c, self.labels, step)
        rows, weights = self._compared(self.labels[index], step)
        there = index.to(self.device, non_blocking=True)
        x0, y = data.to_float(self.images[there]), self.labels_there[there]
        augmentation = None
        if c.augment:
            warp = augment.draw(len(y), generator)
            x0, augmentation = augment.apply(x0, warp.matrix()), warp.condition()
        elif c.flip:
            mirrored = torch.rand(y.shape, generator=generator, device=self.device) < 0.5
            x0 = torch.where(mirrored[:, None, None, None], x0.flip(-1), x0)
        dropped = torch.rand(y.shape, generator=generator, device=self.device) < c.label_drop
        return Batch(x0, y, y.masked_fill(dropped, self.num_classes), self.frequency, augmentation, rows), weights

    def _compared(self, y: Tensor, step: int) -> tuple[Tensor | None, Tensor]:
        """Rows whose second prediction is wanted (None: all), and their weights. Equally many for each process."""
        if self.config.branch_share == 1:
            return None, torch.full((len(y),), 1 / len(y), device=self.device)
        generator = torch.Generator().manual_seed(step_seed(self.config.seed, 4, step))
        shares = y.chunk(distributed.world_size())
        size = max(1, round(self.config.branch_share * len(shares[0])))
        drawn = [self.allocation.subset(share, size, generator) for share in shares]
        rows = torch.cat([rows + i * len(shares[0]) for i, (rows, _) in enumerate(drawn)])
        weights = torch.cat([weights for _, weights in drawn]) / len(shares)
        return tuple(v.to(self.device, non_blocking=True) for v in (rows, weights))


class _State:
    """What a checkpoint holds: the weights, their EMA, Adam's moments, and the sums for the next record."""

    def __init__(
        self, config: Settings, parameters: dict[str, nn.Parameter], optimiser: torch.optim.Optimizer, counts, device
    ):
        self.config, self.parameters, self.optimiser = config, parameters, optimiser
        self.splits = data.splits(counts)
        self.ema = {k: p.detach().clone() for k, p in parameters.items()}
        self.totals = torch.zeros(3, device=device)  # base loss, allocation loss, gradient norm
        # by class: base loss and samples, distance and compared samples
        self.by_class = torch.zeros(4, len(counts), device=device)

    def update(self, step: int) -> Tensor:
        """Adam with warm-up and clipping, then the EMA; returns the gradient's norm before clipping."""
        c = self.config
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(c, step)
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), c.grad_clip, foreach=True)
        self.optimiser.step()
        with torch.no_grad():
            torch._foreach_lerp_(list(self.ema.values()), list(self.parameters.values()), 1 - ema_decay(c, step))
        return norm

    def record(self, step: int, seconds: float) -> StepRecord:
        """Averages since the last one, which are then forgotten."""
        loss, drawn, distance, compared = self.by_class
        base, allocation, norm = (self.totals / drawn.sum() * self.config.batch_size).tolist()
        record = StepRecord(
            step=step,
            loss=base + allocation,
            base_loss=base,
            allocation_loss=allocation,
            grad_norm=norm,
            seconds=seconds,
            base_loss_by_class=(loss / drawn).tolist(),
            distance_by_class=(distance / compared).tolist(),
            base_loss_by_split={k: (loss[c].sum() / drawn[c].sum()).item() for k, c in self.splits.items()},
        )
        self.totals.zero_()
        self.by_class.zero_()
        return record

    def tensors(self) -> dict[str, Tensor]:
        tensors = {f"model.{k}": p for k, p in self.parameters.items()} | {f"ema.{k}": v for k, v in self.ema.items()}
        for name in ("exp_avg", "exp_avg_sq"):
            tensors |= {f"{name}.{k}": self.optimiser.state[p][name] for k, p in self.parameters.items()}
        return tensors | {"log.totals": self.totals, "log.by_class": self.by_class}

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor], step: int) -> None:
        self.totals.copy_(tensors["log.totals"])
        self.by_class.copy_(tensors["log.by_class"])
        for k, p in self.parameters.items():
            p.copy_(tensors[f"model.{k}"])
            self.ema[k].copy_(tensors[f"ema.{k}"])
            self.optimiser.state[p] = {
                "step": torch.tensor(float(step), device=p.device if self.optimiser.defaults["fused"] else None),
                "exp_avg": torch.empty_like(p).copy_(tensors[f"exp_avg.{k}"]),
                "exp_avg_sq": torch.empty_like(p).copy_(tensors[f"exp_avg_sq.{k}"]),
            }


def _same_run(config: Settings, saved: dict, done: int, path: Path) -> None:
    """ValueError unless the `done` steps of the run with the settings `saved` are the first ones of `config`'s."""
    try:
        there = type(config).from_dict(saved)
        if config.steps > there.steps and all(learning_rate(config, k) == learning_rate(there, k) for k in range(done)):
            saved = saved | {"steps": config.steps, "cooldown": config.cooldown}
        changed = other_words(config, saved)
    except ValueError as error:
        raise ValueError(f"{path} belongs to another kind of run ({error}); use another run folder") from error
    if changed:
        raise ValueError(f"{path} belongs to a run with other settings ({changed}); use another run folder")


class Pieces(NamedTuple):
    """What `carry_out` trains: the network of a pixel model, or Stable Diffusion's adapters (`lora`)."""

    network: nn.Module  # what the base loss is given
    parameters: dict[str, nn.Parameter]  # trained ones, by name
    optimiser: torch.optim.Optimizer
    draw: Callable[[int, torch.Generator], tuple[Batch, Tensor]]  # step -> batch, weights of the compared samples
    allocation: AllocationLoss
    schedule: NoiseSchedule
    counts: np.ndarray  # training images per class
    about: dict  # what else a checkpoint tells, to build the model again
    precision: AbstractContextManager = nullcontext()
    compiled: bool = False


def train(
    config: TrainConfig,
    run: str | Path | None = None,
    device: str = "cpu",
    minutes: float | None = None,
    data_root: str | Path = "data",
    compile: bool = False,
    wait: bool = False,
) -> Iterator[StepRecord]:
    """Minimise Eq. (6), yielding a StepRecord every `config.log_every` steps.

    run      the run folder (default `records.run_folder(config)`). A checkpoint there is resumed from; if it is
             damaged, the one before. With more `steps` than it was planned for, it is made longer, if its learning
             rate was not falling yet; other settings, or another number of images in a class, raise ValueError before
             any work, and a process that trains there already TrainingError.
    minutes  stop after that much time with a checkpoint, loading and the caller's time with the records included; a
             later call goes on from there. `seconds`, of a record and in a checkpoint, are of training alone.
    compile  torch.compile the network, on a GPU with CUDA graphs: a minute or more at first, faster steps then.
    wait     where a process trains there already, wait for its end and go on from there.

    A checkpoint is written every `checkpoint_every` steps, at the end, at the time limit, and on SIGINT, SIGTERM or
    SIGUSR1, which then raise KeyboardInterrupt; the one before is kept beside it. These signals wait for the end of a
    step from the first one on, also while the caller works on a record: close a generator that is left before its end
    (`contextlib.closing`), or Ctrl-C stays without effect. TrainingError, naming the term, if a
    loss is not finite or explodes; diverged.json in the run folder then says the same to
    `evaluation.record_divergence`. Under torchrun (`distributed.started`) every process calls this with the same
    arguments, and the first one writes.
    """
    if config.batch_size % distributed.world_size():
        raise ValueError(
            f"batch_size must be a multiple of the number of processes, {distributed.world_size()}, "
            f"got {config.batch_size}"
        )
    run, device = Path(run) if run is not None else records.run_folder(config), distributed.checked_device(device)
    yield from carry_out(config, run, device, minutes, lambda: _pieces(config, device, data_root, compile), wait)


def _pieces(config: TrainConfig, device: torch.device, data_root: str | Path, compile: bool) -> Pieces:
    train_set = data.load_for(config, data_root).train
    num_classes, in_channels, image_size = train_set.num_classes, *train_set.images.shape[1:3]
    with _global_seed(step_seed(config.seed, 1), torch.device("cpu")):
        model = build_model(config, in_channels, num_classes).to(device).train()
    if compile:
        # The two halves, so that what is drawn and what is scaled stays outside.
        mode = "reduce-overhead" if device.type == "cuda" else "default"
        model.encode, model.decode = (torch.compile(f, mode=mode) for f in (model.encode, model.decode))
    parameters = dict(model.named_parameters())
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
    return Pieces(
        network=distributed.Sharded(model) if distributed.world_size() > 1 else model,
        parameters=parameters,
        optimiser=torch.optim.Adam(parameters.values(), lr=config.lr, fused=True),
        draw=_Batches(config, train_set, allocation, device).draw,
        allocation=allocation,
        schedule=NoiseSchedule().to(device),
        counts=train_set.counts,
        about={"in_channels": in_channels, "num_classes": num_classes, "image_size": image_size},
        precision=torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"),
        compiled=compile,
    )


def carry_out(
    config: Settings,
    run: Path,
    device: torch.device,
    minutes: float | None,
    prepare: Callable[[], Pieces],
    wait: bool = False,
) -> Iterator[StepRecord]:
    """The steps of `train` for any model: `prepare` makes it, once the run folder is found free and fitting."""
    deadline = None if minutes is None else time.perf_counter() + 60 * minutes
    with locked(run, wait) if distributed.rank() == 0 else nullcontext():
        distributed.wait_for_all()  # none may look into the folder before it is this run's
        found = load_newest(run, tensors=False)
        if found:
            _same_run(config, found[-1]["config"], found[-1]["step"], run / CHECKPOINT)
        if not found or found[-1]["step"] < config.steps:
            yield from _steps(config, run, device, deadline, prepare())


def _resume(state: _State, run: Path, counts: np.ndarray) -> tuple[int, float, dict | None]:
    """Steps, seconds and provenance of the run's newest checkpoint, to which `state` is set; zeros and None without
    one."""
    if not (found := load_newest(run)):
        return 0, 0.0, None
    path, tensors, metadata = found
    check_counts(metadata, counts, path)
    state.restore(tensors, metadata["step"])
    return metadata["step"], metadata["seconds"], metadata["provenance"]


def _provenance(device: torch.device, compiled: bool, done: int, before: dict | None) -> dict:
    """Of what is trained now. Under "parts" that of what was trained otherwise before, in order, each with its last
    step: `before` is the provenance of the `done` steps. A warning says that they were trained on another kind of
    device."""
    now = records.provenance(device) | {"processes": distributed.world_size(), "compiled": compiled}
    if before is None:
        return now
    former = {k: v for k, v in before.items() if k != "parts"}
    if former["device"].startswith("cpu") != (device.type == "cpu"):
        warnings.warn(
            f"this run goes on with {now['device']}, whose random draws are others than those of {former['device']}, "
            f"which trained it to step {done}: it will be another run than one on either alone",
            stacklevel=2,
        )
    differs = former | {"finished": ""} != now | {"finished": ""}
    parts = before.get("parts", []) + [former | {"step": done}] * differs
    return now | ({"parts": parts} if parts else {})


def _advice(config: Settings, term: str) -> str:
    """What to try where this term has exploded."""
    if term != "allocation loss":
        return "Try a smaller lr."
    default = PRESETS["bounded"]["bound"]
    if config.bound is None:
        how = "use allocation='bounded', on the command line --allocation bounded"
        return f"The diversity term -omega_Div D has no floor with bound=None: {how}."
    if getattr(config, "bound_form", None) == "relative":  # Stable Diffusion has one form
        floor = "The diversity term has no floor with a large relative bound"
        return f"{floor}: try a smaller bound than {config.bound:g}, or the exponential one, by default {default:g}."
    return f"Try a smaller bound, here {config.bound:g} and by default {default:g}, or a smaller lr."


def _steps(
    config: Settings,
    run: Path,
    device: torch.device,
    deadline: float | None,  # by time.perf_counter
    pieces: Pieces,
) -> Iterator[StepRecord]:
    network, parameters, optimiser, draw, allocation, schedule, counts, about, precision, compiled = pieces
    checkpoint, leader = run / CHECKPOINT, distributed.rank() == 0
    generator, objective = torch.Generator(device), OBJECTIVES[config.base]
    state = _State(config, parameters, optimiser, counts, device)
    start, seconds_before, before = _resume(state, run, counts)
    distributed.wait_for_all()  # the first process must not change the folder before all have read it
    if leader:
        # A log is cut back to the checkpoint: steps after it are done again.
        kept = "".join(log_line(r) for r in read_log(run / LOG) if r.step <= start)
        with files.replacing(run / LOG) as temporary:
            temporary.write_text(kept)
        (run / DIVERGED).unlink(missing_ok=True)
    provenance = _provenance(device, compiled, start, before)
    began = time.perf_counter()
    callers = 0.0  # seconds that the caller had a record for

    def seconds() -> float:
        return seconds_before + time.perf_counter() - began - callers

    def metadata_at(step: int) -> dict:
        return {
            "config": config.to_dict(),
            "counts": counts.tolist(),
            "step": step,
            "seconds": seconds(),
            "provenance": provenance | {"finished": records.now()},
        }

    def save(step: int) -> None:
        save_checkpoint(checkpoint, state.tensors(), metadata_at(step) | about, previous=run / PREVIOUS)

    def check(step: int, base_loss: Tensor, allocation_loss: Tensor, grad_norm: Tensor) -> None:
        largest = torch.finfo(torch.float32).max
        terms = {"base loss": (base_loss, EXPLODED), "allocation loss": (allocation_loss, EXPLODED)}
        for term, (value, limit) in (terms | {"gradient norm": (grad_norm, largest)}).items():
            if abs(value.item()) <= limit:  # not so for NaN
                continue
            if leader:
                found = {"term": term, "value": str(value.item())}  # NaN and infinity are not JSON
                files.write_json(run / DIVERGED, metadata_at(step) | found)
            raise TrainingError(
                f"step {step}: the {term} is {value.item():.3g}, beyond ±{limit:g}; stopped. "
                f"The last good checkpoint is {checkpoint if checkpoint.exists() else 'none'}. {_advice(config, term)}"
            )

    with _stop_signal() as stop, (run / LOG).open("a") as log:
        for step in range(start, config.steps):
            generator.manual_seed(step_seed(config.seed, 2, step))
            batch, weights = draw(step, generator)
            with _global_seed(step_seed(config.seed, 3, step), device), precision:
                out = objective(network, batch, schedule, generator, both=config.call, **config.base_options)
            base_loss, allocation_loss = out.loss.mean(), out.loss.new_zeros(())
            if config.call:
                rows = slice(None) if batch.rows is None else batch.rows
                allocated = allocation(out.eps[rows], out.eps_general, batch.y[rows], out.loss[rows])
                allocation_loss = (weights * allocated.loss).sum()
            state.optimiser.zero_grad()
            (base_loss + allocation_loss).backward()
            distributed.sum_gradients(state.parameters.values())
            grad_norm = state.update(step)
            with torch.no_grad():
                state.totals += torch.stack([base_loss, allocation_loss, grad_norm])
                ones = torch.ones_like(out.loss)
                state.by_class[:2].index_add_(1, batch.y, torch.stack([out.loss, ones]))
                if config.call:
                    state.by_class[2:].index_add_(1, batch.y[rows], torch.stack([allocated.distance, ones[rows]]))

            done = step + 1
            # once: a signal during the yield below is the next step's
            interrupted = distributed.any_process(bool(stop))
            out_of_time = deadline is not None and distributed.any_process(time.perf_counter() > deadline)
            leaving = interrupted or out_of_time or done == config.steps
            to_log = done % config.log_every == 0 or done == config.steps
            to_save = done % config.checkpoint_every == 0 or leaving
            if to_log or to_save:
                check(done, base_loss, allocation_loss, grad_norm)
            record = state.record(done, seconds()) if to_log else None
            if record and leader:
                log.write(log_line(record))
                log.flush()
            if to_save and leader:
                save(done)
            if record:
                handed_over = time.perf_counter()
                yield record
                callers += time.perf_counter() - handed_over
            if interrupted:
                raise KeyboardInterrupt(f"stopped at step {done}; run again to go on from there")
            if out_of_time:
                return
