"""Train methods side by side for some minutes, and measure them on the way: `make train-slice MINUTES=10`.

    python sweeps/train_slice.py --minutes 10 --dataset cifar10 --imbalance-ratio 100 --methods ddpm oc oc-call

The methods take turns, one checkpoint interval of the profile at a time, so that none is ever more than one ahead: it
is steps that they get equally many of, not seconds. At each such mark a method's averaged weights are left in bfloat16,
sampled and measured: FID by split, of theta and with CALL of theta_g, one line in `marks.jsonl` of the run folder. Call
it again and all goes on from where it stopped. Run folders are those of `callkit train`, which can take one over.

The minutes hold for everything. An evaluation that would take longer than what is left is put off to the next call,
which begins with it, and one that does take longer is broken off and goes on there. Only the evaluation that a call
begins with, and the features of the real images, kept in a file if these are many, may outlast the minutes: or nothing
would ever be finished.
"""

import argparse
import json
import shutil
import signal
import sys
import time
from contextlib import closing, contextmanager
from pathlib import Path

import torch
from cost import method_ratio, sampling_steps

from callkit import __main__ as cli
from callkit import checkpoints, config, data, evaluation, files, live, metrics, records, sampling, training, viz

MARKS, MEASURED, LOCK = "marks.jsonl", "weights-bf16.safetensors", ".marks.lock"
MARGIN = 1.2  # on the estimate of an evaluation


class OutOfTime(Exception):
    """Raised within `time_limit`."""


@contextmanager
def time_limit(seconds: float | None):
    """OutOfTime in the block once that long has gone by (None: no limit; nor is there one on Windows)."""

    def over(*_):
        raise OutOfTime

    if seconds is None or not hasattr(signal, "setitimer"):
        yield
        return
    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def read_marks(run: Path) -> list[dict]:
    """The lines of a run's marks.jsonl; one that was cut off is dropped, and done again."""
    return [json.loads(line) for line in files.whole_lines(run / MARKS)]


def add_mark(run: Path, mark: dict) -> None:
    """One more line, in place of one that was cut off."""
    with files.replacing(run / MARKS) as temporary:
        temporary.write_text("".join(json.dumps(m) + "\n" for m in [*read_marks(run), mark]))


class Slice:
    """What is to be compared, how far it is, and the clock."""

    def __init__(
        self,
        runs: dict[Path, config.TrainConfig],
        minutes: float,
        images: int,
        device: str,
        data_root: Path,
        compile: bool = False,
        guidance_scale: float = config.GUIDANCE_SCALE,
    ):
        sampling.check_guidance_scale(guidance_scale)
        self.runs, self.minutes, self.guidance_scale = runs, minutes, guidance_scale
        self.device, self.data_root, self.compile = device, data_root, compile
        self.began = time.monotonic()
        c = next(iter(runs.values()))
        if c.checkpoint_every % c.log_every:
            raise ValueError(
                f"checkpoint_every must be a multiple of log_every, {c.log_every}, got {c.checkpoint_every}"
            )
        self.every, self.steps = c.checkpoint_every, c.steps
        self.sampler_steps = config.SAMPLING[c.profile]["steps"]
        self.extractor = config.default_extractor(c.dataset, "gpu")  # also for `paper`: no download
        metrics.check_extractor(self.extractor)
        self.real = data.load_for(c, data_root)
        self.load_seconds = time.monotonic() - self.began  # training loads the images again, every time
        self.images = evaluation.whole_classes(images, self.real.full.num_classes)

    def left(self) -> float:
        """Seconds."""
        return 60 * self.minutes - (time.monotonic() - self.began)

    def say(self, text: str) -> None:
        minutes, seconds = divmod(round(time.monotonic() - self.began), 60)
        print(f"[{minutes}:{seconds:02} of {self.minutes:g} min] {text}", flush=True)

    def describe_real(self) -> None:
        """The reference: mean and covariance of all real images and of each split's."""
        images, groups = self.real.reference, data.splits(self.real.train.counts)
        self.groups = {"overall": list(range(images.num_classes)), **groups}
        cache = self.data_root / data.CACHE
        self.say(f"{self.extractor} features of {len(images):,} real images")
        described = metrics.describe_real(images, self.extractor, cache, self.device, progress=True)
        features = {k: described.features[_of(images.labels, c)] for k, c in self.groups.items()}
        if lone := [k for k, of in features.items() if len(of) < 2]:
            raise ValueError(f"FID needs at least two real images, and {lone[0].capitalize()} has one")
        self.reference = {k: metrics.statistics(of) for k, of in features.items()}

    def marks(self, run: Path) -> list[dict]:
        """Those of the run that were sampled as this slice samples: so many images at this guidance scale."""
        wanted = (self.images, self.guidance_scale)
        return [m for m in read_marks(run) if (m["images"], m["guidance_scale"]) == wanted]

    def lacking(self, run: Path) -> list[str]:
        """Weights of the run that have to be evaluated before it may train on."""
        step = checkpoints.steps_done(run)
        if step == 0 or (step % self.every and step != self.steps):
            return []
        have = {m["weights"] for m in self.marks(run) if m["step"] == step}
        return [w for w in checkpoints.WEIGHTS[: 1 + self.runs[run].call] if w not in have]

    def seconds_per_step(self, run: Path) -> float | None:
        found = checkpoints.load_newest(run, tensors=False)
        return found[-1]["seconds"] / found[-1]["step"] if found else None

    def estimate(self, run: Path) -> float | None:
        """Seconds that an evaluation will take: as the last one did, before that by the ratio of a sampler's step to a
        training step in benchmarks/speed.json. None before any training."""
        for other in (run, *self.runs):
            seconds = [m["seconds"]["evaluation"] for m in self.marks(other)]
            if whole := [s for s in seconds if s is not None]:
                return MARGIN * whole[-1]
        if (step := self.seconds_per_step(run)) is None:
            return None
        c = self.runs[run]
        steps = sampling_steps(self.images, self.sampler_steps, self.guidance_scale, c.batch_size)
        return MARGIN * steps * step / method_ratio(c.method)  # its own steps take longer than DDPM's

    def train(self, run: Path) -> None:
        """To the next mark, or until the time is over."""
        c, done = self.runs[run], checkpoints.steps_done(run)
        mark = min(done // self.every * self.every + self.every, c.steps)
        self.say(f"{c.method}: training, step {done:,} to {mark:,} of {c.steps:,}")
        steps = training.train(c, run, self.device, self.left() / 60, self.data_root, self.compile)
        with closing(steps), closing(live.follow(steps, c, run)) as shown:
            for record in shown:
                if record.step == mark:  # its checkpoint is written
                    break

    def evaluate(self, run: Path, weights: str) -> None:
        """Add the mark of the run's newest checkpoint, unless another process has by the time this one has its turn."""
        with files.alone(run / LOCK):
            if weights in self.lacking(run):
                self._evaluate(run, weights)

    def _evaluate(self, run: Path, weights: str) -> None:
        c, began = self.runs[run], time.monotonic()
        checkpoint, (source, _, metadata) = run / MEASURED, checkpoints.load_newest(run, tensors=False)
        checkpoints.check_counts(metadata, self.real.train.counts, source)
        self.say(f"{c.method}: evaluating {weights} at step {metadata['step']:,}")
        checkpoints.save_released(source, checkpoint, torch.bfloat16)
        model, _ = checkpoints.load_model(checkpoint, weights, self.device)
        labels = sampling.balanced_labels(model.num_classes, self.images // model.num_classes)
        seed = evaluation.SAMPLE_SEED_OFFSET + c.seed  # the same noise for all
        parts = run / f".mark-{metadata['step']}-{weights}-{self.images}-g{self.guidance_scale:g}"
        broken_off, size = parts.exists(), self.real.full.images.shape[-1]
        options = (size, seed, self.sampler_steps, self.guidance_scale, self.extractor, parts)
        features = evaluation.describe_samples(model, labels, *options, progress=True).features
        fid = {
            k: metrics.frechet(metrics.statistics(features[_of(labels, classes)]), self.reference[k])
            for k, classes in self.groups.items()
        }
        line = {
            "step": metadata["step"],
            "weights": weights,
            "fid": fid,
            "run": c.words() | {"overrides": c.overrides(), "class_counts": metadata["counts"]},
            "equal": "training steps of all methods",
            "compared": [other.method for other in self.runs.values()],
            "images": self.images,
            "sampling": {"sampler": "ddim", "steps": self.sampler_steps, "seed": seed, "weights": "ema, bfloat16"},
            "guidance_scale": self.guidance_scale,
            "extractor": self.extractor,
            "extractor_sha256": metrics.extractor_hash(self.extractor),
            "real_images": len(self.real.reference),
            "seconds": {
                "training": round(metadata["seconds"], 1),
                "evaluation": None if broken_off else round(time.monotonic() - began, 1),
            },
            "provenance": records.provenance(torch.device(self.device)),
        }
        add_mark(run, line)
        shutil.rmtree(parts, ignore_errors=True)  # the mark is there

    def going(self) -> list[Path]:
        """The runs that did not diverge."""
        return [run for run in self.runs if not (run / checkpoints.DIVERGED).exists()]

    def go_on(self) -> None:
        """Do what is due until the time is over, or all is done."""
        begun = False
        while going := self.going():
            steps = {run: checkpoints.steps_done(run) for run in going}
            due = [(run, lacking[0]) for run in going if (lacking := self.lacking(run))]
            if due:
                run, weights = due[0]
                needed = self.estimate(run)
                if begun and needed > self.left():
                    self.say(f"an evaluation takes about {needed:.0f} s: the next call begins with it")
                    return
                try:
                    with time_limit(self.left() if begun else None):
                        self.evaluate(run, weights)
                except OutOfTime:
                    self.say("the evaluation took longer than the last: the next call goes on with it")
                    return
            else:
                run = min(going, key=steps.get)
                if steps[run] == self.steps or self.left() <= self.load_seconds:
                    return
                try:
                    self.train(run)
                except checkpoints.TrainingError as error:
                    if not (run / checkpoints.DIVERGED).exists():
                        raise
                    self.say(f"{self.runs[run].method} is out: {error}")
            begun = True

    def standing(self) -> str:
        """How far each method is, the scores at the last mark that all have, and what the next one will take."""
        lines, rest = [], 0.0
        steps, going = {run: checkpoints.steps_done(run) for run in self.runs}, self.going()
        least = min((steps[run] for run in going), default=self.steps)
        next_mark = min(least // self.every * self.every + self.every, self.steps)
        for run, c in self.runs.items():
            speed = self.seconds_per_step(run)
            words = f"{steps[run]:,} of {c.steps:,} steps" + (f", {1000 * speed:.0f} ms each" if speed else "")
            lines.append(f"  {c.method}: {words}{'' if run in going else ', diverged'}; {run}")
            if run in going:
                rest += max(0, next_mark - steps[run]) * (speed or 0) + (1 + c.call) * (self.estimate(run) or 0)
        marks = {run: self.marks(run) for run in going or self.runs}
        common = set.intersection(*({m["step"] for m in found} for found in marks.values()))
        if common:
            mark = max(common)
            lines += [
                f"FID by {self.extractor} at step {mark:,}, {self.images:,} images, guidance {self.guidance_scale:g}",
                "| method | weights | " + " | ".join(self.groups) + " |",
                "|---|---|" + "---:|" * len(self.groups),
            ]
            for found in marks.values():
                for m in found:
                    if m["step"] == mark:
                        scores = " | ".join(f"{m['fid'][k]:.1f}" for k in self.groups)
                        lines.append(f"| {m['run']['method']} | {m['weights']} | {scores} |")
        if least < self.steps and all(steps[run] for run in going):
            lines.append(f"the mark at {next_mark:,} steps, for all: about {rest / 60:.1f} minutes more")
        return "\n".join(lines)

    def draw(self, path: Path) -> None:
        """FID against steps, a line for each method and set of weights."""
        lines: dict[str, list[dict]] = {}
        for run, c in self.runs.items():
            for m in self.marks(run):
                name = c.method if m["weights"] == "theta" else f"{c.method}, θᵍ"
                lines.setdefault(name, []).append(m)
        if lines:
            viz.style()
            viz.mark_curves(lines, list(self.groups)).savefig(path, dpi=150)
            print(f"curves: {path}")


def _of(labels: torch.Tensor, classes: list[int]) -> torch.Tensor:
    return torch.isin(labels, torch.tensor(classes))


def settings_of(method: str, overrides: dict, methods: list[str]) -> dict:
    """Those of the overrides that are for this method: settings of CALL are for the methods that have it, if any do."""

    def call(name: str) -> bool:
        return overrides.get("call", config.choose(config.METHODS, "method", name)["call"])

    fits = call(method) or not any(map(call, methods))
    return {k: v for k, v in overrides.items() if fits or k not in config.OF_CALL}


def main(argv: list[str] | None = None) -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = "(default: %(default)s)"
    p.add_argument("--minutes", type=float, default=10, help=f"stop after that long {default}")
    p.add_argument("--dataset", default="cifar10", help=f"as in callkit train {default}")
    p.add_argument(
        "--imbalance-ratio",
        type=cli.imbalance_ratio,
        help="largest class / smallest class, or natural (default: 100; natural for your own images)",
    )
    methods = ["ddpm", "oc", "oc-call"]
    words = f"to train side by side, of {', '.join(config.METHODS)} (default: {' '.join(methods)})"
    p.add_argument("--methods", nargs="+", default=methods, help=words)
    p.add_argument("--profile", default="gpu", help=f"size of the runs: {', '.join(config.PROFILES)} {default}")
    p.add_argument("--seed", type=int, default=0, help=f"of everything random in training {default}")
    cli.add_set(p, "override any setting but base_options, for all methods; settings of CALL for those that have it")
    words = f"generated at each mark, equally many of each class {default}"
    p.add_argument("--images", type=cli.positive, default=2_000, help=words)
    words = f"of what is generated; 1 is none, OC's code uses 2.5 {default}"
    p.add_argument("--guidance-scale", type=float, default=config.GUIDANCE_SCALE, help=words)
    p.add_argument("--compile", action="store_true", help="torch.compile the networks, at each turn")
    p.add_argument("--root", type=Path, default=Path("runs"), help=f"where run folders are {default}")
    p.add_argument("--data-root", type=Path, default=Path("data"), help=cli.DATA_ROOT)
    cli.add_device(p)
    p.set_defaults(usual_ratio=100)
    a = p.parse_args(argv)
    if a.threads:
        torch.set_num_threads(a.threads)
    try:
        words, overrides = (a.dataset, cli.chosen_ratio(a)), cli.settings(a.set)
        configs = [
            config.make_config(*words, m, a.profile, a.seed, **settings_of(m, overrides, a.methods))
            for m in dict.fromkeys(a.methods)
        ]
        runs = {records.run_folder(c, a.root): c for c in configs}
        work = Slice(runs, a.minutes, a.images, a.device, a.data_root, a.compile, a.guidance_scale)
        stopped = False
        try:
            work.describe_real()
            work.go_on()
        except KeyboardInterrupt:
            stopped = True
        work.say("stopped; call it again to go on" if stopped else "done for now")
        print(work.standing())
        guided = "" if a.guidance_scale == config.GUIDANCE_SCALE else f"-g{a.guidance_scale:g}"
        work.draw(a.root / records.data_word(*words) / f"slice-{a.profile}-seed{a.seed}{guided}.png")
    except (ValueError, OSError, checkpoints.TrainingError) as error:
        sys.exit(f"error: {error}")
    if stopped:
        sys.exit(cli.STOPPED)


if __name__ == "__main__":
    main()
