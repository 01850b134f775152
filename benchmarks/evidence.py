"""What chapter 15 needs and no record has: three measurements of released networks, and of the training images.

    python benchmarks/evidence.py [--out benchmarks/evidence.json]

pruning   Spearman's correlation of a class's rarity with the rise of its loss when a tenth of DDPM is pruned, for each
          way of pruning and set of images (chapter 06)
repairs   FID by split of theta^g, of theta^g with two additions that can hold no image, and of theta (chapter 08)
copies    scores by split of a machine that repeats the training images of each class in turn (chapter 09)
"""

import argparse
from pathlib import Path

import probe
import torch

from callkit import data, files, metrics, probes, records
from callkit.capacity import merge
from callkit.checkpoints import load_model
from callkit.diffusion import NoiseSchedule

DDPM, CALL = (f"digits-ir50-{method}-cpu-seed0.safetensors" for method in ("ddpm", "call"))
SETS = ("training images", "balanced set")


def pruned(images: data.ImageSet, draws: int) -> dict[str, dict[str, float]]:
    """{"correlation", "p"} by way of pruning, measured on `images`."""
    model, _ = load_model(records.results_folder() / DDPM)
    found = probe.pruned(model, images, draws)
    return {how: {k: of[k] for k in ("correlation", "p")} for how, of in found.items()}


def repairs(real: data.LongTailed, per_class: int) -> dict[str, dict[str, float]]:
    """FID by split; one noise for all."""
    model, _ = load_model(records.results_folder() / CALL, "reserved")
    general = merge(model, 0.0)
    offset = probes.offset(model, real.train, NoiseSchedule())
    networks = {
        "theta_g": general,
        "theta_g + a number per class": probes.WithOffset(general, offset.mean),
        "theta_g + rank-one embedding projections": merge(probes.truncated_expert(model, rank=1, only="emb")),
        "theta": merge(model),
    }
    found = {name: probes.scores(network, real, per_class) for name, network in networks.items()}
    return {name: {s: by[s]["fid"] for s in ("many", "medium", "few", "overall")} for name, by in found.items()}


def copies(real: data.LongTailed) -> dict:
    """metrics.evaluate's scores by split, of 300 images a class, as a record has."""
    train = real.train
    index = metrics.copy_machine(train, per_class=300)
    scores = metrics.evaluate(train.images[index], train.labels[index], real)["metrics"]
    return {s: scores[s] for s in ("many", "medium", "few", "overall")}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--draws", type=int, default=32, help="timesteps and noises per image")
    p.add_argument("--per-class", type=int, default=200, help="generated images of a class")
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--out", type=Path, help="write the result as JSON here")
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    real = data.load_long_tailed("digits", 50)
    sets = dict(zip(SETS, (real.train, real.full), strict=True))
    result = {
        "what": f"{DDPM} pruned; {CALL} repaired; training images copied",
        "draws": a.draws,
        "per_class": a.per_class,
        "pruning": {s: pruned(images, a.draws) for s, images in sets.items()},
        "repairs": repairs(real, a.per_class),
        "copies": copies(real),
        "provenance": records.provenance(torch.device("cpu")),
    }
    for part in ("pruning", "repairs", "copies"):
        print(part, *(f"  {name}: {scores}" for name, scores in result[part].items()), sep="\n")
    if a.out:
        files.write_json(a.out, result)


if __name__ == "__main__":
    main()
