"""From a checkpoint to a record: sample a balanced set, compare it with the real images, write what was found."""

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


def evaluate_run(
    checkpoint: str | Path,
    weights: str = "theta",
    results: str | Path | None = None,
    device: str = "cpu",
    data_root: str | Path = "data",
    progress: bool = False,
) -> Path:
    """Sample, measure and write the record of one set of weights; returns the record's path in `results`.

    `results` defaults to the checkpoint's folder. How many images, sampler steps and the guidance scale follow
    the run's profile (`config.SAMPLING`). ValueError for a damaged checkpoint, unknown weights or a data set
    without a feature extractor, before any work.
    """
    checkpoint = Path(checkpoint)
    results = Path(results or checkpoint.parent)
    model, run = training.load_model(checkpoint, weights, device)
    extractor = metrics.extractor_for(run.dataset)
    records.check_writable(results)
    metadata = training.load_checkpoint(checkpoint, tensors=False)[1]
    real = data.load_long_tailed(run.dataset, run.imbalance_ratio, data_root)

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
        config.GUIDANCE_SCALE,
        progress=progress,
    )
    sampling_seconds = time.perf_counter() - began
    scores = metrics.evaluate(images, labels, real, extractor)

    overrides = run.overrides()
    record = {
        "schema_version": records.SCHEMA_VERSION,
        "run": {
            **run.words(),
            "overrides": overrides,
            "weights": weights,
            "steps": metadata["step"],
            "images_seen": metadata["step"] * run.batch_size,
            "class_counts": metadata["counts"],
        },
        "config": run.to_dict(),
        "sampling": {
            "sampler": "ddim",
            "steps": options["steps"],
            "guidance_scale": config.GUIDANCE_SCALE,
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
    words = [run.dataset, f"ir{run.imbalance_ratio:g}", run.method, run.profile, f"seed{run.seed}"]
    words += [f"{k}={v}" for k, v in overrides.items()]
    path = results / ("-".join([*words, weights]) + ".json")
    records.write_json(path, record)
    return path
