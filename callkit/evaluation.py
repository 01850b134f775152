"""From a checkpoint to a record: sample a balanced set, compare it with the real images, write what was found.

notebooks/10_metrics has the protocol, and what it does not protect from.
"""

import hashlib
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.utils import save_image
from tqdm.auto import tqdm

from callkit import checkpoints, config, data, distributed, files, metrics, records, sampling
from callkit.diffusion import NoiseSchedule


def _reference(real: data.LongTailed) -> str:
    """What `real.reference` is, for the record."""
    if real.test is not None:
        return "the balanced test set, of which nothing is trained on"
    counts = real.full.counts
    if counts.max() < 1.1 * counts.min():
        return "the whole balanced set, training images included"
    return "the whole set, training images included; its classes are not of one size"


SAMPLE_SEED_OFFSET = 10_000  # so that sampling noise is not the training run's, and differs between seeds


def training_curve(log: list[checkpoints.StepRecord], counts) -> dict[str, list[float]]:
    """The log in at most 25 averages: base loss, allocation loss, and D of Eq. (4) by split."""
    chunks = [part for part in torch.arange(len(log)).chunk(25) if len(part)]
    groups = data.splits(counts)
    distance = torch.tensor([r.distance_by_class for r in log])
    curve = {
        "step": [log[int(part[-1])].step for part in chunks],
        "base_loss": [float(torch.tensor([log[i].base_loss for i in part]).mean()) for part in chunks],
        "allocation_loss": [float(torch.tensor([log[i].allocation_loss for i in part]).mean()) for part in chunks],
    }
    for split, classes in groups.items():
        values = [float(distance[part][:, classes].nanmean()) for part in chunks]
        curve[f"distance_{split}"] = [None if v != v else v for v in values]
    return curve


def whole_classes(images: int, num_classes: int) -> int:
    """So many images or somewhat fewer, as many of each class. ValueError for less than two a class."""
    if images < 2 * num_classes:
        raise ValueError(f"images must be at least two a class, {2 * num_classes}; got {images}")
    return images // num_classes * num_classes


def _about_the_run(run: config.Settings, steps: int, counts: list[int], **words) -> dict:
    words = {**run.words(), "overrides": run.overrides(), **words}
    return {**words, "steps": steps, "images_seen": steps * run.batch_size, "class_counts": counts}


def _about_training(metadata: dict, folder: Path) -> dict:
    """What a record says of the training of the run in `folder`."""
    return {
        "seconds": round(metadata["seconds"], 1),
        "curve": training_curve(checkpoints.read_log(folder / checkpoints.LOG), metadata["counts"]),
        "provenance": metadata["provenance"],
    }


def _record_path(results: Path, run: config.Settings, training: dict, *last_words: str) -> Path:
    """Where the run's record goes. OSError if nothing can be written there; ValueError if a record is there that this
    one must not replace: of other settings, of another training with these settings, or with a curve of its training
    where `training` has none."""
    files.check_writable(results)
    words = [records.data_word(run.dataset, run.imbalance_ratio), run.method, run.profile, f"seed{run.seed}"]
    path = results / ("-".join([*words, *records.file_words(run), *last_words]) + ".json")
    there = records.read_record(path) if path.exists() else {}
    if not there:
        return path
    try:
        changed = config.other_words(run, there["config"])
    except ValueError as error:
        changed = str(error)
    if changed:
        raise ValueError(
            f"{path} is the record of a run with other settings ({changed}): write elsewhere, by --results"
        )
    before = there["training"]
    if before["curve"]["step"] and not training["curve"]["step"]:
        raise ValueError(
            f"{path} has the curve of its training, which is not in the folder of this checkpoint and would be lost: "
            "write elsewhere, by --results"
        )
    # a run that diverged may go on, and diverge again
    if "diverged" not in there and before["provenance"] != training["provenance"]:
        ended = [t["provenance"]["finished"] for t in (before, training)]
        raise ValueError(
            f"{path} is the record of another training with these settings (it ended {ended[0]}, this one {ended[1]}): "
            "write elsewhere, by --results, or remove it first"
        )
    return path


def record_divergence(
    run: str | Path, results: str | Path | None = None, kind: type[config.Settings] = config.TrainConfig
) -> Path:
    """The record of a run that `train` stopped because a loss exploded: when, which, and its curve until then.

    It has "diverged" where the record of a finished run has sampling, evaluation and metrics.
    """
    run, results = Path(run), Path(results or run)
    found = json.loads((run / checkpoints.DIVERGED).read_text())
    settings, training = kind.from_dict(found["config"]), _about_training(found, run)
    path = _record_path(results, settings, training, "diverged")
    record = {
        "schema_version": records.SCHEMA_VERSION,
        "run": _about_the_run(settings, found["step"], found["counts"]),
        "config": settings.to_dict(),
        "diverged": {k: found[k] for k in ("step", "term", "value")},
        "training": training,
        "provenance": records.provenance(torch.device("cpu")),
    }
    files.write_json(path, record)
    return path


def describe_samples(
    model: nn.Module,
    labels: Tensor,
    image_size: int,
    seed: int,
    steps: int,
    guidance_scale: float,
    extractor: str,
    folder: Path,
    save_images: Path | None = None,
    progress: bool = False,
) -> metrics.Description | None:
    """Sample in a stream and keep the images' descriptions alone, in one file of `folder` per batch.

    Batches that are there already are not sampled again; under torchrun the processes share the others, and the first
    alone returns the descriptions. Each file says what its batch took, where: seconds and device, which need not be
    this process's. With `save_images` every image becomes <class>-<number>.png there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    device = next(model.parameters()).device
    batch = sampling.batch_size_for(image_size)
    paths = [folder / f"{i:06}.safetensors" for i in range(len(labels.split(batch)))]
    missing = [i for i, p in enumerate(paths) if not p.exists()][distributed.rank() :: distributed.world_size()]
    sampler = sampling.sampler(model, NoiseSchedule())
    batches = sampler(labels, image_size, seed, steps, guidance_scale, batch, wanted=missing)
    distributed.wait_for_all()  # all have looked before the first writes
    with tqdm(total=min(len(missing) * batch, len(labels)), desc="sampling", unit="img", disable=not progress) as bar:
        began = time.perf_counter()
        for i, images in zip(missing, batches, strict=True):
            about = {"seconds": time.perf_counter() - began, "device": records.device_name(device)}
            if save_images:
                save_images.mkdir(parents=True, exist_ok=True)
                for j, image in enumerate(images, i * batch):
                    name = f"{int(labels[j]):03}-{j:06}.png"
                    save_image(image.float() / 255, save_images / name)
            described = metrics.describe(images, extractor, str(device))
            checkpoints.save_checkpoint(paths[i], described._asdict(), about)
            bar.update(len(images))
            began = time.perf_counter()
    distributed.wait_for_all()
    if distributed.rank() > 0:
        return None
    return metrics.join([metrics.Description(**checkpoints.load_checkpoint(p)[0]) for p in paths])


def _sampled(folder: Path) -> dict:
    """What the batches in `folder` took together, over all processes and interruptions, and on which devices."""
    about = [checkpoints.load_checkpoint(p, tensors=False)[1] for p in sorted(folder.glob("*.safetensors"))]
    devices = ", ".join(sorted({a["device"] for a in about}))
    return {"seconds": round(sum(a["seconds"] for a in about), 1), "device": devices}


def snapshot(checkpoint: str | Path, per_class: int = 4, device: str = "cpu") -> dict[str, Tensor]:
    """Samples of each set of weights of a checkpoint, one noise for all: name -> uint8 (classes * per_class, C, H, W).

    Taken at each checkpoint of a run, they show which classes are learnt when (Chapter 05).
    """
    size = checkpoints.load_checkpoint(checkpoint, tensors=False)[1]["image_size"]
    images = {}
    for weights in checkpoints.available_weights(checkpoint):
        model, run = checkpoints.load_model(checkpoint, weights, device)
        labels = sampling.balanced_labels(model.num_classes, per_class)
        steps = config.SAMPLING[run.profile]["steps"]
        images[weights] = sampling.sample(model, NoiseSchedule(), labels, size, steps=steps)
    return images


@contextmanager
def _workplace(folder: Path) -> Iterator[None]:
    """Within the block this evaluation alone, with all its processes, works in `folder`: another one waits, and says
    so. It is removed at the end, unless that is an error."""
    lock = folder.with_name(f"{folder.name}.lock")
    leader = distributed.rank() == 0
    with ExitStack() as stack:
        if leader:
            said = f"another process evaluates this in {folder.parent}; waiting for its end"
            stack.enter_context(files.alone(lock, lambda: said))
        distributed.wait_for_all()  # none may look into the folder before it is this evaluation's
        yield
        if leader:
            if folder.exists():  # not if it was found to be done
                shutil.rmtree(folder)
            lock.unlink(missing_ok=True)


def evaluate_run(
    checkpoint: str | Path,
    weights: str = "theta",
    results: str | Path | None = None,
    device: str = "cpu",
    data_root: str | Path = "data",
    guidance_scale: float = config.GUIDANCE_SCALE,
    extractor: str | None = None,
    save_images: str | Path | None = None,
    images: int | None = None,
    progress: bool = False,
    load_model: Callable[..., tuple[nn.Module, config.Settings]] = checkpoints.load_model,
) -> Path | None:
    """Sample, measure and write the record of one set of weights; returns the record's path in `results`.

    results      defaults to the checkpoint's folder
    extractor    a key of metrics.EXTRACTORS; defaults to `config.default_extractor`
    save_images  a folder for all generated images as PNG; by default none is written
    images       how many to generate, in place of the profile's number, equally many of each class; the splits then
                 have those that are of their classes
    load_model   what makes a network and its settings of the checkpoint, for those that `training` did not write

    The number of images and of sampler steps are the profile's (`config.SAMPLING`). Interrupted and called again, it
    goes on: what was sampled waits in `results`, in a folder that is removed at the end. While another process does the
    same it waits, and leaves the record as that one wrote it. Under torchrun all processes sample, and the first one
    measures and writes; the others return None. ValueError for a damaged checkpoint, an unfinished run, unknown weights
    or extractor, a scale that is no number, fewer than two images a class, data that have changed since, a record in
    the way that this one must not replace, before any work; FileNotFoundError without a checkpoint, and OSError if
    nothing can be written in `results`.
    """
    sampling.check_guidance_scale(guidance_scale)
    checkpoint = Path(checkpoint)
    results = Path(results or checkpoint.parent)
    model, run = load_model(checkpoint, weights, device)
    default = config.default_extractor(run.dataset, run.profile)
    extractor = extractor or default
    metrics.check_extractor(extractor)
    metadata = checkpoints.load_checkpoint(checkpoint, tensors=False)[1]
    if metadata["step"] < run.steps:
        raise ValueError(
            f"{checkpoint} is at step {metadata['step']:,} of {run.steps:,}, and an unfinished run is no result: "
            "train it to the end"
        )
    usual = config.SAMPLING[run.profile]
    steps, per_split = usual["steps"], usual["per_split"]
    most = config.usual_images(run.profile, model.num_classes)
    images = most if images is None else images
    images = whole_classes(images, model.num_classes)
    if images != most:
        per_split = None
    words = [f"g{guidance_scale:g}"] if guidance_scale != config.GUIDANCE_SCALE else []
    words += [extractor] if extractor != default else []
    words += [f"n{images}"] if images != most else []
    training = _about_training(metadata, checkpoint.parent)
    path = _record_path(results, run, training, *words, weights)
    real = data.load_for(run, data_root)
    checkpoints.check_counts(metadata, real.train.counts, checkpoint)

    groups = data.splits(real.train.counts)
    counts = metrics.generated_counts(groups, model.num_classes, images, per_split)
    labels = torch.arange(model.num_classes).repeat_interleave(torch.from_numpy(counts))
    seed = SAMPLE_SEED_OFFSET + run.seed
    identity = [metrics.file_hash(checkpoint), weights, guidance_scale, seed, steps, labels.tolist(), extractor]
    identity += [metrics.extractor_hash(extractor), str(save_images)]
    unfinished = results / f".evaluating-{hashlib.sha256(repr(identity).encode()).hexdigest()[:16]}"
    leader, before = distributed.rank() == 0, path.read_bytes() if path.exists() else None
    with _workplace(unfinished):
        if distributed.any_process(leader and path.exists() and path.read_bytes() != before):
            if leader:
                tqdm.write(f"{path} has been written by another process meanwhile", file=sys.stderr)
            return path if leader else None
        generated = describe_samples(
            model,
            labels,
            real.full.images.shape[-1],
            seed,
            steps,
            guidance_scale,
            extractor,
            unfinished,
            Path(save_images) if save_images else None,
            progress,
        )
        if generated is None:
            return None
        described = metrics.describe_real(real.reference, extractor, Path(data_root) / data.CACHE, device, progress)
        scores = metrics.score(generated, labels, real, described, images, per_split, progress)

        record = {
            "schema_version": records.SCHEMA_VERSION,
            "run": _about_the_run(
                run, metadata["step"], metadata["counts"], weights=weights, guidance_scale=guidance_scale
            ),
            "config": run.to_dict(),
            "sampling": {
                "sampler": "ddim",
                "steps": steps,
                "clip_x0": getattr(model, "clip_x0", True),
                "weights": "ema",
                "seed": seed,
                **_sampled(unfinished),
            },
            "evaluation": {
                "extractor": extractor,
                "extractor_sha256": metrics.extractor_hash(extractor),
                "generated_images": images,
                "generated_images_per_split": per_split,
                "real_images": len(real.reference),
                "reference": _reference(real),
                "recall_neighborhood": metrics.NEIGHBORHOOD,
                "kid_subset_size": metrics.KID_SUBSET_SIZE,
            },
            **scores,
            "training": training,
            "provenance": records.provenance(torch.device(device)),
        }
        files.write_json(path, record)
        return path
