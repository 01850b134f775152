"""What a run draws on its way: samples at each checkpoint, from the same noise. Chapter 05 shows them.

    python sweeps/progress.py --method call

trains the run from the start and writes results/progress/digits-ir50-call-cpu-seed0.safetensors: `step` (K,), and for
each set of weights uint8 images (K, classes * per_class, C, H, W), with the run's settings and provenance.
"""

import argparse
import tempfile
from pathlib import Path

import torch

from callkit import checkpoints, evaluation, live, records, training
from callkit.config import make_config


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--dataset", default="digits")
    p.add_argument("--imbalance-ratio", type=float, default=50)
    p.add_argument("--method", default="call")
    p.add_argument("--profile", default="cpu")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--per-class", type=int, default=4)
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--out", type=Path, default=records.REPOSITORY / "results" / "progress", help="folder to write to")
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    settings = make_config(a.dataset, a.imbalance_ratio, a.method, a.profile, a.seed)
    records.check_writable(a.out)
    taken = {}
    with tempfile.TemporaryDirectory() as run:
        checkpoint = f"{run}/{checkpoints.CHECKPOINT}"
        for record in live.follow(training.train(settings, run), settings, run):
            if record.step % settings.checkpoint_every == 0:
                taken[record.step] = evaluation.snapshot(checkpoint, a.per_class)
        metadata = checkpoints.load_checkpoint(checkpoint, tensors=False)[1]
    tensors = {
        weights: torch.stack([images[weights] for images in taken.values()]) for weights in taken[settings.steps]
    }
    tensors["step"] = torch.tensor(list(taken))
    checkpoints.save_checkpoint(a.out / records.released_name(settings), tensors, metadata | {"per_class": a.per_class})


if __name__ == "__main__":
    main()
