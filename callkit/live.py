"""Watching a run: a progress bar with speed, time left and the loss of each split, and TensorBoard's curves."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

from tqdm.auto import tqdm

from callkit.checkpoints import StepRecord, steps_done
from callkit.config import TrainConfig


def follow(
    steps: Iterable[StepRecord], config: TrainConfig, run: str | Path, tensorboard: bool = False
) -> Iterator[StepRecord]:
    """Pass on the step records of `training.train` and show them, in a terminal, a notebook or (rarely) a log file.

    tensorboard  also write the curves to RUN/tensorboard. ValueError if the package is not installed.
    """
    writer_of = _writer() if tensorboard else None
    seldom = 0.1 if sys.stderr.isatty() or "ipykernel" in sys.modules else 60  # seconds
    with ExitStack() as stack:
        bar = stack.enter_context(tqdm(total=config.steps, initial=steps_done(run), unit="step", mininterval=seldom))
        writer = None
        for record in steps:
            if writer_of and not writer:  # now the folder is known to be this run's
                writer = stack.enter_context(closing(writer_of(Path(run) / "tensorboard")))
            shown = {"loss": record.base_loss, **record.base_loss_by_split}
            if config.call:
                shown["allocation"] = record.allocation_loss
            bar.set_postfix({k: f"{v:.3g}" for k, v in shown.items()}, refresh=False)
            bar.update(record.step - bar.n)
            if writer:
                for name, value in scalars(record).items():
                    writer.add_scalar(name, value, record.step)
            yield record


def scalars(record: StepRecord) -> dict[str, float]:
    """What TensorBoard shows of a record: name -> value."""
    split = {f"base loss/{name}": value for name, value in record.base_loss_by_split.items()}
    distance = {f"distance/class {c}": d for c, d in enumerate(record.distance_by_class) if d == d}
    return {
        "loss/base": record.base_loss,
        "loss/allocation": record.allocation_loss,
        "gradient norm": record.grad_norm,
        **split,
        **distance,
    }


def _writer():
    """TensorBoard's, a class."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError(f"TensorBoard's curves need its package: pip install tensorboard ({error})") from error
    return SummaryWriter
