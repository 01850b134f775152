"""Two trained runs from inside, one of a base loss and one with CALL, on any data: chapter 16 shows some on CIFAR-10.

    python benchmarks/probe.py RUN_OF_DDPM RUN_WITH_CALL [--out benchmarks/cifar10/attention-bfloat16/probe.json]

A run is a folder or a checkpoint. Measured are, by class,

pruning   how much the first network's loss rises when a tenth of it is pruned, for each way of pruning and set of
          images (chapter 6)
loss      on training images, of the first network, of theta, of theta^g, and of theta^g with one direction of the
          expert in each projection of the class embedding, which can hold no image, or in each decomposed matrix
          (chapter 8)
attention by block of the up path: the largest singular values of q and k and the sizes of their biases; a key's bias
          has no effect, so its gradient is zero, and what moves it is rounding
distance  D between the two predictions at several timesteps, on training images; under `runs` that of the log

A loss here is DDPM's, Eq. (2), whatever the networks were trained with.
"""

import argparse
from pathlib import Path

import scipy.stats
import torch
from tqdm import tqdm

from callkit import data, files, probes, pruning, records
from callkit.__main__ import checkpoint_of
from callkit.capacity import merge
from callkit.checkpoints import LOG, load_checkpoint, load_model, read_log
from callkit.config import TITLES
from callkit.diffusion import NoiseSchedule

TIMESTEPS = [50, 150, 300, 450, 600, 750, 900]
SCHEDULE = NoiseSchedule()


def first_of_each(images: data.ImageSet, per_class: int) -> data.ImageSet:
    of_class = [(images.labels == c).nonzero()[:per_class, 0] for c in range(images.num_classes)]
    return images.subset(torch.cat(of_class))


def by_class(losses: torch.Tensor, images: data.ImageSet) -> list[float]:
    return [losses[images.labels == c].mean().item() for c in range(images.num_classes)]


def pruned(model: torch.nn.Module, images: data.ImageSet, draws: int) -> dict:
    """By way of pruning, of a tenth: the rise by class with its 95 % interval, and its rank correlation with rarity."""
    before, found = pruning.losses(model, images, SCHEDULE, draws), {}
    for how in pruning.HOW:
        after = pruning.losses(pruning.prune(model, 0.1, how), images, SCHEDULE, draws)
        s = pruning.sensitivity(before, after, images.labels, images.num_classes)
        correlation, p = scipy.stats.spearmanr(range(images.num_classes), s.change)
        found[how] = {"change": s.change.tolist(), "interval": s.change_ci.tolist(), "before": s.before.tolist()}
        found[how] |= {"correlation": float(correlation), "p": float(p)}
    return found


def about(run: Path) -> dict:
    """What was trained, where and for how long; D by class in its log, which a released checkpoint has not."""
    metadata = load_checkpoint(checkpoint_of(run), tensors=False)[1]
    found = {k: metadata[k] for k in ("config", "step", "seconds", "provenance")}
    log = [r for r in read_log(run / LOG) if r.step <= metadata["step"]]
    return found | {"log": {"step": [r.step for r in log], "distance": [r.distance_by_class for r in log]}}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("base", type=Path)
    p.add_argument("call", type=Path)
    p.add_argument("--per-class", type=int, default=30, help="real images of each class")
    p.add_argument("--draws", type=int, default=8, help="timesteps and noises per image")
    p.add_argument("--data-root", type=Path, default=Path("data"))
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--out", type=Path, help="write the result as JSON here")
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    base, config = load_model(checkpoint_of(a.base))
    call, other = load_model(checkpoint_of(a.call), "reserved")
    real, others = (data.load_for(c, a.data_root) for c in (config, other))
    if not torch.equal(real.train.images, others.train.images):
        words = [f"{records.data_word(c.dataset, c.imbalance_ratio)}, seed {c.seed}" for c in (config, other)]
        p.error(f"the runs have other training images, {words[0]} and {words[1]}")
    seen = first_of_each(real.train, a.per_class)
    sets = {"training images": seen, "balanced set": first_of_each(real.full, a.per_class)}
    networks = {
        TITLES[config.method]: base,
        "theta": merge(call),
        "theta_g": merge(call, 0.0),
        "theta_g + rank-one embedding projections": merge(probes.truncated_expert(call, rank=1, only="emb")),
        "theta_g + rank-one expert": merge(probes.truncated_expert(call, rank=1)),
    }
    losses = {}
    for name, network in tqdm(networks.items(), desc="losses", unit="network"):
        losses[name] = by_class(pruning.losses(network, seen, SCHEDULE, a.draws), seen)
    result = {
        "runs": {config.method: about(a.base), other.method: about(a.call)},
        "per_class": a.per_class,
        "draws": a.draws,
        "class_names": real.train.class_names,
        "class_counts": real.train.counts.tolist(),
        "loss": losses,
        "attention": {name: probes.attention_sizes(networks[name]) for name in list(networks)[:3]},
        "timesteps": TIMESTEPS,
        "distance": probes.branch_distance(call, seen, SCHEDULE, TIMESTEPS).tolist(),
        "pruning": {s: pruned(base, images, a.draws) for s, images in tqdm(sets.items(), desc="pruning", unit="set")},
        "provenance": records.provenance(torch.device("cpu")),
    }
    for name, values in losses.items():
        print(f"loss of {name}, by class: {' '.join(f'{v:.4f}' for v in values)}")
    for images, by_how in result["pruning"].items():
        found = (f"{how} {of['correlation']:+.2f}" for how, of in by_how.items())
        print(f"rank correlation of rarity and rise on {images}: {', '.join(found)}")
    if a.out:
        files.write_json(a.out, result)


if __name__ == "__main__":
    main()
