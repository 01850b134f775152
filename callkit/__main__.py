"""Command line: train, evaluate, sample, table. Each stage starts from what the one before left on disk."""

import argparse
import re
import sys
from pathlib import Path

import torch

from callkit import checkpoints, config, data, distributed, files, live, records, training

DATA_ROOT = "where downloaded data sets are (default: %(default)s)"
STOPPED = 75  # exit status of a run that can go on: the shell's "temporary failure"


def add_train(
    commands,
    networks=config.NETWORKS,
    methods=config.METHODS,
    profiles=config.PROFILES,
    ratio=50,
    root=Path("runs"),
    compiled="the network, on a GPU with CUDA graphs",
):
    p = commands.add_parser("train", help="train a model, or go on with one that was stopped")
    names = ", ".join(name for name in networks if name != "imagefolder")
    p.add_argument(
        "--dataset",
        default="digits",
        help=f"one of {names}, or imagefolder:PATH for your own images (default: %(default)s)",
    )
    p.add_argument(
        "--imbalance-ratio",
        type=imbalance_ratio,
        help="largest class / smallest class; 1 is balanced, and natural keeps all images "
        f"(default: {ratio}; natural for your own images)",
    )
    p.add_argument("--method", default="call", help=f"one of {', '.join(methods)} (default: %(default)s)")
    p.add_argument("--profile", default="cpu", help=f"size of the run: {', '.join(profiles)} (default: %(default)s)")
    p.add_argument("--seed", type=int, default=0, help="of everything random in training (default: %(default)s)")
    p.add_argument(
        "--allocation",
        default="bounded",
        help=f"preset of the allocation loss: {', '.join(config.PRESETS)} (default: %(default)s)",
    )
    add_set(p, "override any setting but base_options, which is for Python alone")
    p.add_argument(
        "--run",
        type=Path,
        help=f"run folder (default: {root}/<dataset>-ir<IR>/<method>-<profile>/seed<seed>[-NAME=VALUE of each --set])",
    )
    p.add_argument("--minutes", type=float, help="stop after that long with a checkpoint; run again to go on")
    p.add_argument("--data-root", type=Path, default=Path("data"), help=DATA_ROOT)
    p.add_argument("--compile", action="store_true", help=f"torch.compile {compiled}")
    p.add_argument(
        "--wait", action="store_true", help="wait while another process trains in the run folder, then go on"
    )
    p.add_argument("--tensorboard", action="store_true", help="also write curves to RUN/tensorboard")
    add_device(p)
    p.set_defaults(command=train, make_config=config.make_config, go=training.train, root=root, usual_ratio=ratio)
    return p


def add_set(p, words: str) -> None:
    p.add_argument("--set", action="extend", nargs="*", default=[], metavar="NAME=VALUE", help=words)


def imbalance_ratio(text: str) -> float | str:
    return text if text == "natural" else float(text)


def add_device(p) -> None:
    default = "cuda" if torch.cuda.is_available() else "cpu"
    p.add_argument("--device", type=device, default=default, help="cpu, cuda or cuda:N (default: %(default)s)")
    p.add_argument("--threads", type=positive, help="CPU threads (default: all cores; under torchrun one)")


def device(text: str) -> str:
    try:
        distributed.checked_device(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return int(text)


def _value(text: str):
    """A NAME=VALUE value: None, bool, int, float, comma-separated tuple of integers or text."""
    if re.fullmatch(r"[-\d]*,[-\d,]*", text):
        return tuple(_value(part) for part in text.split(",") if part)
    words = {"None": None, "True": True, "False": False}
    if text in words:
        return words[text]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def settings(pairs: list[str]) -> dict:
    """What `--set` was given, by name. ValueError unless it is NAME=VALUE, each name once, and no word of a run."""
    found = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"--set takes NAME=VALUE, got {pair!r}")
        if name in config.WORDS:
            raise ValueError(f"{name} is one of the words that name a run: use --{name.replace('_', '-')}, not --set")
        if name in found:
            raise ValueError(f"--set gives {name} twice")
        found[name] = _value(value)
    return found


def chosen_ratio(a) -> float | None:
    """The imbalance ratio that was asked for, or the usual one; None keeps the counts as they are."""
    if a.imbalance_ratio is None:
        return None if a.dataset.startswith(data.IMAGEFOLDER) else a.usual_ratio
    return None if a.imbalance_ratio == "natural" else a.imbalance_ratio


def train(a) -> None:
    overrides = settings(a.set)
    c = a.make_config(a.dataset, chosen_ratio(a), a.method, a.profile, a.seed, a.allocation, **overrides)
    run = a.run or records.run_folder(c, a.root)
    words = f"{c.method} on {c.dataset}, IR {records.ratio_word(c.imbalance_ratio)}, profile {c.profile}, seed {c.seed}"
    steps = a.go(c, run, a.device, a.minutes, a.data_root, a.compile, a.wait)
    if distributed.rank() > 0:
        for _ in steps:
            pass
        return
    print(f"{words}: {c.steps:,} steps -> {run}", flush=True)
    for _ in live.follow(steps, c, run, a.tensorboard):
        pass
    done = checkpoints.steps_done(run)
    print("finished" if done == c.steps else f"stopped at step {done:,} of {c.steps:,}; run again to go on")
    print(f"checkpoint: {run / checkpoints.CHECKPOINT}")


def add_evaluate(commands):
    p = commands.add_parser("evaluate", help="sample a balanced set from a run and write a record of its metrics")
    p.add_argument("run", type=Path, help="run folder, or a checkpoint file")
    words = "the network with its expert or without (default: both with CALL, else theta)"
    p.add_argument("--weights", choices=checkpoints.WEIGHTS, help=words)
    add_guidance(p)
    p.add_argument("--extractor", help="digits, lite0 or inception (default: by data set and profile)")
    p.add_argument("--images", type=positive, help="how many to generate (default: as many as the profile says)")
    p.add_argument("--save-images", type=Path, help="also write every generated image to this folder, as PNG")
    p.add_argument("--results", type=Path, help="folder for the records (default: the run folder)")
    p.add_argument("--data-root", type=Path, default=Path("data"), help=DATA_ROOT)
    add_device(p)
    p.set_defaults(command=evaluate, load_model=checkpoints.load_model, kind=config.TrainConfig)
    return p


def add_guidance(p) -> None:
    scale = config.GUIDANCE_SCALE
    p.add_argument("--guidance-scale", type=float, default=scale, help="1 is none (default: %(default)s)")


def checkpoint_of(run: Path) -> Path:
    return run / checkpoints.CHECKPOINT if run.is_dir() else run


def evaluate(a) -> None:
    from callkit.evaluation import evaluate_run, record_divergence

    leader = distributed.rank() == 0
    if (a.run / checkpoints.DIVERGED).exists():
        paths = [record_divergence(a.run, a.results, a.kind)] if leader else []
    else:
        checkpoint = checkpoint_of(a.run)
        weights = [a.weights] if a.weights else checkpoints.available_weights(checkpoint)
        paths = [
            evaluate_run(
                checkpoint,
                w,
                a.results,
                a.device,
                a.data_root,
                a.guidance_scale,
                a.extractor,
                a.save_images / w if a.save_images else None,
                a.images,
                progress=leader,
                load_model=a.load_model,
            )
            for w in weights
        ]
    if not leader:
        return
    print(records.table([records.read_record(p) for p in paths]))
    print("records:", *paths, sep="\n  ")


def add_sample(commands):
    p = commands.add_parser("sample", help="write a picture of samples, one row per class")
    p.add_argument("run", type=Path, help="run folder, or a checkpoint file")
    p.add_argument("--out", type=Path, default=Path("samples.png"), help="the picture (default: %(default)s)")
    p.add_argument("--per-class", type=positive, default=10, help="images in a row (default: %(default)s)")
    p.add_argument("--weights", default="theta", choices=checkpoints.WEIGHTS, help="(default: %(default)s)")
    add_guidance(p)
    p.add_argument("--seed", type=int, default=0, help="of the noise (default: %(default)s)")
    add_device(p)
    p.set_defaults(command=sample, load_model=checkpoints.load_model)
    return p


def sample(a) -> None:
    from PIL import Image
    from torchvision.utils import save_image

    from callkit import sampling
    from callkit.diffusion import NoiseSchedule

    if a.out.suffix.lower() not in Image.registered_extensions():
        raise ValueError(f"--out must end like a picture, as in samples.png; got {a.out}")
    sampling.check_guidance_scale(a.guidance_scale)
    files.check_writable(a.out.parent)
    checkpoint = checkpoint_of(a.run)
    model, c = a.load_model(checkpoint, a.weights, a.device)
    size = checkpoints.load_checkpoint(checkpoint, tensors=False)[1]["image_size"]
    options = config.SAMPLING[c.profile]
    images = sampling.sample(
        model,
        NoiseSchedule(),
        sampling.balanced_labels(model.num_classes, a.per_class),
        size,
        a.seed,
        options["steps"],
        a.guidance_scale,
        progress=True,
    )
    save_image(images.float() / 255, a.out, nrow=a.per_class, padding=1)
    print(a.out)


def add_table(commands) -> None:
    p = commands.add_parser("table", help="tables from records, mean ± standard deviation over seeds")
    p.add_argument("results", type=Path, nargs="*", help="folders of records (default: the repository's results/)")
    instead = p.add_mutually_exclusive_group()
    instead.add_argument(
        "--metric",
        default="fid",
        choices=("fid", "kid", "recall", "precision", "is"),
        help="of the table by split (default: %(default)s)",
    )
    instead.add_argument("--paper", type=int, choices=records.PAPER_TABLES, help="the paper's table to set ours beside")
    instead.add_argument("--out", type=Path, help="write every table and result figure to this folder instead")
    p.set_defaults(command=table)


def table(a) -> None:
    folders = a.results or [records.results_folder()]
    finished, diverged = ([r for f in folders for r in records.load_records(f, diverged=d)] for d in (False, True))
    if not finished and not diverged:
        raise ValueError(f"no records in {', '.join(map(str, folders))}")
    if a.out:
        from callkit import tables

        written = tables.write(finished, diverged, a.out)
        print(f"{len(finished) + len(diverged)} records -> {len(written)} files in {a.out}")
    elif a.paper:
        print(records.beside_the_paper(a.paper, finished))
    else:
        print(records.table(finished + diverged, a.metric))


def main(argv: list[str] | None = None, prog: str = "python -m callkit", about: str = __doc__, adders=None) -> None:
    parser = argparse.ArgumentParser(prog=prog, description=about)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in adders or (add_train, add_evaluate, add_sample, add_table):
        add(commands)
    a = parser.parse_args(argv)
    if getattr(a, "threads", None):
        torch.set_num_threads(a.threads)
    try:
        if a.command in (train, evaluate):
            with distributed.started(a.device) as a.device:
                a.command(a)
        else:
            a.command(a)
    except (ValueError, OSError, ImportError, checkpoints.TrainingError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt as stopped:
        print(str(stopped) or "stopped", file=sys.stderr)
        sys.exit(STOPPED)


if __name__ == "__main__":
    main()
