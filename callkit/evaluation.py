"""From a checkpoint to a record: sample a balanced set, compare it with the real images, write what was found."""

import json
import time
from pathlib import Path

import torch

from callkit import config, data, metrics, records, sampling, training
from callkit.diffusion import NoiseSchedule

SAMPLE_SEED_OFFSET = 10_000  # so that sampling noise is not the training run's, and differs between seeds


def training_curve(log: list[training.StepRecord], counts, points: int = 25) -> dict[str, list[float]]:
    """The log in `points` averages: base loss, allocation loss, and D of Eq. (4) by split."""
    chunks = [part for part in torch.arange(len(log)).chunk(points) if len(part)]
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


def _about_the_run(run: config.TrainConfig, steps: int, counts: list[int], **words) -> dict:
    words = {**run.words(), "overrides": run.overrides(), **words}
    return {**words, "steps": steps, "images_seen": steps * run.batch_size, "class_counts": counts}


def _write(results: Path, run: config.TrainConfig, *last_words: str, record: dict) -> Path:
    words = [records.data_word(run.dataset, run.imbalance_ratio), run.method, run.profile, f"seed{run.seed}"]
    words += [f"{k}={v}" for k, v in run.overrides().items()]
    path = results / ("-".join([*words, *last_words]) + ".json")
    records.write_json(path, record)
    return path


def record_divergence(run: str | Path, results: str | Path | None = None) -> Path:
    """The record of a run that `train` stopped because a loss exploded: when, which, and its curve until then.

    It has "diverged" where the record of a finished run has sampling, evaluation and metrics.
    """
    run, results = Path(run), Path(results or run)
    found = json.loads((run / training.DIVERGED).read_text())
    settings = config.TrainConfig.from_dict(found["config"])
    records.check_writable(results)
    record = {
        "schema_version": records.SCHEMA_VERSION,
        "run": _about_the_run(settings, found["step"], found["counts"]),
        "config": settings.to_dict(),
        "diverged": {k: found[k] for k in ("step", "term", "value")},
        "training": {
            "seconds": round(found["seconds"], 1),
            "curve": training_curve(training.read_log(run / training.LOG), found["counts"]),
            "provenance": found["provenance"],
        },
        "provenance": records.provenance(torch.device("cpu")),
    }
    return _write(results, settings, "diverged", record=record)


def evaluate_run(
    checkpoint: str | Path,
    weights: str = "theta",
    results: str | Path | None = None,
    device: str = "cpu",
    data_root: str | Path = "data",
    guidance_scale: float = config.GUIDANCE_SCALE,
    progress: bool = False,
) -> Path:
    """Sample, measure and write the record of one set of weights; returns the record's path in `results`.

    `results` defaults to the checkpoint's folder. How many images and sampler steps follow the run's profile
    (`config.SAMPLING`). ValueError for a damaged checkpoint, unknown weights or a data set without a feature
    extractor, before any work.
    """
    checkpoint = Path(checkpoint)
    results = Path(results or checkpoint.parent)
    model, run = training.load_model(checkpoint, weights, device)
    extractor = metrics.extractor_for(run.dataset)
    records.check_writable(results)
    metadata = training.load_checkpoint(checkpoint, tensors=False)[1]
    real = data.load_long_tailed(run.dataset, run.imbalance_ratio, data_root, run.image_size)

    options = config.SAMPLING[run.profile]
    labels = sampling.balanced_labels(model.num_classes, options["images"] // model.num_classes)
    seed = SAMPLE_SEED_OFFSET + run.seed
    began = time.perf_counter()
    images = sampling.sample(
        model,
        NoiseSchedule().to(torch.device(device)),
        labels,
        real.full.images.shape[-1],
        seed,
        options["steps"],
        guidance_scale,
        progress=progress,
    )
    sampling_seconds = time.perf_counter() - began
    scores = metrics.evaluate(images, labels, real, extractor)

    record = {
        "schema_version": records.SCHEMA_VERSION,
        "run": _about_the_run(
            run, metadata["step"], metadata["counts"], weights=weights, guidance_scale=guidance_scale
        ),
        "config": run.to_dict(),
        "sampling": {
            "sampler": "ddim",
            "steps": options["steps"],
            "clip_x0": True,
            "weights": "ema",
            "seed": seed,
            "seconds": round(sampling_seconds, 1),
        },
        "evaluation": {
            "extractor": extractor,
            "extractor_sha256": metrics.extractor_hash(extractor),
            "generated_images": len(images),
            "real_images": len(real.full),
            "reference": "the whole balanced set, training images included",
            "recall_neighborhood": metrics.NEIGHBORHOOD,
            "kid_subset_size": metrics.KID_SUBSET_SIZE,
        },
        **scores,
        "training": {
            "seconds": round(metadata["seconds"], 1),
            "curve": training_curve(training.read_log(checkpoint.parent / training.LOG), metadata["counts"]),
            "provenance": metadata["provenance"],
        },
        "provenance": records.provenance(torch.device(device)),
    }
    guidance = [f"g{guidance_scale:g}"] if guidance_scale != config.GUIDANCE_SCALE else []
    return _write(results, run, *guidance, weights, record=record)
