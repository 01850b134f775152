"""Command line: train, evaluate, sample, table. Each stage starts from what the one before left on disk."""

import argparse
import sys
from pathlib import Path

import torch
from tqdm.auto import tqdm

from callkit import config, records, training


def _add_train(commands) -> None:
    p = commands.add_parser("train", help="train a model, or go on with one that was stopped")
    names = ", ".join(name for name in config.NETWORKS if name != "imagefolder")
    p.add_argument("--dataset", default="digits", help=f"one of {names}, or imagefolder:PATH for your own images")
    p.add_argument(
        "--imbalance-ratio",
        type=_imbalance_ratio,
        default=50,
        help="largest class / smallest class; 1 is balanced, and natural keeps all images",
    )
    p.add_argument("--method", default="call", help=f"one of {', '.join(config.METHODS)}")
    p.add_argument("--profile", default="cpu", help=f"one of {', '.join(config.PROFILES)}")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument(
        "--allocation", default="bounded", help=f"preset of the allocation loss: {', '.join(config.PRESETS)}"
    )
    p.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="override any setting of TrainConfig")
    p.add_argument("--run", type=Path, help="run folder (default: runs/<dataset>-ir<IR>/<method>-<profile>/seed<seed>)")
    p.add_argument("--minutes", type=float, help="stop after that long with a checkpoint; run again to go on")
    p.add_argument("--data-root", type=Path, default=Path("data"), help="where downloaded data sets are")
    _add_device(p)
    p.set_defaults(command=train)


def _imbalance_ratio(text: str) -> float | None:
    return None if text == "natural" else float(text)


def _add_device(p) -> None:
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: %(default)s")
    p.add_argument("--threads", type=int, help="CPU threads (default: all cores)")


def _value(text: str):
    """A NAME=VALUE value: None, bool, int, float, comma-separated tuple or word."""
    if "," in text:
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


def train(a) -> None:
    overrides = {}
    for pair in a.set:
        name, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"--set takes NAME=VALUE, got {pair!r}")
        overrides[name] = _value(value)
    c = config.make_config(a.dataset, a.imbalance_ratio, a.method, a.profile, a.seed, a.allocation, **overrides)
    run = a.run or records.run_folder(c)
    words = f"{c.method} on {c.dataset}, IR {records.ratio_word(c.imbalance_ratio)}, profile {c.profile}, seed {c.seed}"
    print(f"{words}: {c.steps:,} steps -> {run}")
    with tqdm(total=c.steps, initial=training.steps_done(run), unit="step") as bar:
        for record in training.train(c, run, a.device, a.minutes, a.data_root):
            bar.update(record.step - bar.n)
            bar.set_postfix(loss=f"{record.base_loss:.4f}", allocation=f"{record.allocation_loss:.4f}")
    print(f"checkpoint: {run / training.CHECKPOINT}")


def _add_evaluate(commands) -> None:
    p = commands.add_parser("evaluate", help="sample a balanced set from a run and write a record of its metrics")
    p.add_argument("run", type=Path, help="run folder, or a checkpoint file")
    p.add_argument("--weights", nargs="+", help="theta, theta_g or both (default: both with CALL, else theta)")
    p.add_argument("--guidance-scale", type=float, default=config.GUIDANCE_SCALE, help="1 is none")
    p.add_argument("--extractor", help="digits, lite0 or inception (default: by data set and profile)")
    p.add_argument("--save-images", type=Path, help="also write every generated image to this folder, as PNG")
    p.add_argument("--results", type=Path, help="folder for the records (default: the run folder)")
    p.add_argument("--data-root", type=Path, default=Path("data"))
    _add_device(p)
    p.set_defaults(command=evaluate)


def _checkpoint(run: Path) -> Path:
    return run / training.CHECKPOINT if run.is_dir() else run


def evaluate(a) -> None:
    from callkit.evaluation import evaluate_run, record_divergence

    if (a.run / training.DIVERGED).exists():
        paths = [record_divergence(a.run, a.results)]
    else:
        checkpoint = _checkpoint(a.run)
        weights = a.weights or training.available_weights(checkpoint)
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
                progress=True,
            )
            for w in weights
        ]
    print(records.table([records.read_record(p) for p in paths]))
    print("records:", *paths, sep="\n  ")


def _add_sample(commands) -> None:
    p = commands.add_parser("sample", help="write a picture of samples, one row per class")
    p.add_argument("run", type=Path, help="run folder, or a checkpoint file")
    p.add_argument("--out", type=Path, default=Path("samples.png"))
    p.add_argument("--per-class", type=int, default=10)
    p.add_argument("--weights", default="theta", help="theta or theta_g")
    p.add_argument("--seed", type=int, default=0)
    _add_device(p)
    p.set_defaults(command=sample)


def sample(a) -> None:
    from torchvision.utils import save_image

    from callkit import sampling
    from callkit.diffusion import NoiseSchedule

    checkpoint = _checkpoint(a.run)
    model, c = training.load_model(checkpoint, a.weights, a.device)
    size = training.load_checkpoint(checkpoint, tensors=False)[1]["image_size"]
    options = config.SAMPLING[c.profile]
    images = sampling.sample(
        model,
        NoiseSchedule().to(a.device),
        sampling.balanced_labels(model.num_classes, a.per_class),
        size,
        a.seed,
        options["steps"],
        config.GUIDANCE_SCALE,
        progress=True,
    )
    save_image(images.float() / 255, a.out, nrow=a.per_class, padding=1)
    print(a.out)


def _add_table(commands) -> None:
    p = commands.add_parser("table", help="tables from records, mean ± standard deviation over seeds")
    p.add_argument("results", type=Path, nargs="?", help="folder of records (default: the repository's results/)")
    p.add_argument("--metric", default="fid", choices=("fid", "kid", "recall", "precision", "is"))
    p.add_argument("--paper", type=int, choices=records.PAPER_TABLES, help="set ours beside this table of the paper")
    p.set_defaults(command=table)


def table(a) -> None:
    if a.paper:
        print(records.beside_the_paper(a.paper, records.load_records(a.results)))
        return
    found = records.load_records(a.results) + records.load_records(a.results, diverged=True)
    if not found:
        raise ValueError(f"no records in {a.results or records.results_folder()}")
    print(records.table(found, a.metric))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m callkit", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (_add_train, _add_evaluate, _add_sample, _add_table):
        add(commands)
    a = parser.parse_args(argv)
    if getattr(a, "device", "cpu").startswith("cuda") and not torch.cuda.is_available():
        sys.exit(f"error: --device {a.device}, but PyTorch finds no CUDA device here")
    if getattr(a, "threads", None):
        torch.set_num_threads(a.threads)
    try:
        a.command(a)
    except (ValueError, OSError, training.TrainingError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt as stopped:
        sys.exit(str(stopped) or "stopped")


if __name__ == "__main__":
    main()
