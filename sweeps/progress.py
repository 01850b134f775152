"""What a run draws on its way: samples at each checkpoint, from the same noise. Chapter 05 shows them.

    python sweeps/progress.py --method call

trains the run from the start and writes results/progress/digits-ir50-call-cpu-seed0.safetensors: `step` (K,), and for
each set of weights uint8 images (K, classes * 4, C, H, W), with the run's settings and provenance.
"""

import argparse
import tempfile

import torch

from callkit import checkpoints, evaluation, files, live, records, training
from callkit.config import make_config

PER_CLASS = 4


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--method", default="call", help="(default: %(default)s)")
    p.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    settings, out = make_config("digits", 50, a.method, "cpu", 0), records.results_folder() / "progress"
    files.check_writable(out)
    taken = {}
    with tempfile.TemporaryDirectory() as run:
        checkpoint = f"{run}/{checkpoints.CHECKPOINT}"
        for record in live.follow(training.train(settings, run), settings, run):
            if record.step % settings.checkpoint_every == 0:
                taken[record.step] = evaluation.snapshot(checkpoint, PER_CLASS)
        metadata = checkpoints.load_checkpoint(checkpoint, tensors=False)[1]
    tensors = {
        weights: torch.stack([images[weights] for images in taken.values()]) for weights in taken[settings.steps]
    }
    tensors["step"] = torch.tensor(list(taken))
    checkpoints.save_checkpoint(out / records.released_name(settings), tensors, metadata | {"per_class": PER_CLASS})


if __name__ == "__main__":
    main()
