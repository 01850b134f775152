"""What averaging the weights does to CALL while its two predictions part: chapter 16.

    python benchmarks/averaging.py [--seeds 0 1 2] [--out benchmarks/averaging.json]

Samples are drawn from an exponential moving average (EMA) of the weights. Of W = W^g + BA it averages W^g, B and A one
by one, and the product of two averages is not the average of the product. Here are runs of CALL on digits on their way,
with FID by split of three networks at each stop:

last       the weights of that step
factors    the average as it is, of W^g, B and A
products   the average of W^g + BA, made of the checkpoints (every 50 steps) with the same decay
"""

import argparse
import tempfile
from contextlib import closing
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from callkit import checkpoints, data, probes, records
from callkit.capacity import merge
from callkit.checkpoints import build_model
from callkit.config import TrainConfig, make_config
from callkit.training import train

WORDS = "digits", 50, "call", "cpu"
EVERY = 50  # steps between checkpoints
SPLITS = ("many", "medium", "few", "overall")


def merged(tensors: dict[str, Tensor], prefix: str, config: TrainConfig, num_classes: int) -> nn.Module:
    """The plain network of the checkpoint's tensors with that prefix."""
    model = build_model(config, 1, num_classes)
    model.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
    return merge(model)


def follow(seed: int, stops: list[int], per_class: int, real: data.LongTailed, folder: Path) -> list[dict]:
    """One row for each stop of one run."""
    config = make_config(*WORDS, seed, log_every=EVERY, checkpoint_every=EVERY)
    rows, average = [], None
    with closing(train(config, folder)) as steps:
        for record in tqdm(steps, total=stops[-1] // EVERY, desc=f"seed {seed}", unit="checkpoint"):
            tensors, _ = checkpoints.load_checkpoint(folder / checkpoints.CHECKPOINT)
            last = merged(tensors, "model.", config, real.full.num_classes)
            decay = min(config.ema_decay, (1 + record.step) / (10 + record.step)) ** EVERY
            average = average or {k: v.clone() for k, v in last.state_dict().items()}
            for name, value in last.state_dict().items():
                average[name].lerp_(value, 1 - decay)
            if record.step in stops:
                factors = merged(tensors, "ema.", config, real.full.num_classes)
                products = merged(tensors, "ema.", config, real.full.num_classes)
                products.load_state_dict(average)
                row = {"step": record.step, "distance_by_class": record.distance_by_class, "fid": {}}
                for name, network in (("last", last), ("factors", factors), ("products", products)):
                    scores = probes.scores(network, real, per_class)
                    row["fid"][name] = {s: scores[s]["fid"] for s in SPLITS}
                rows.append(row)
            if record.step == stops[-1]:
                return rows


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    p.add_argument("--stops", type=int, nargs="+", default=list(range(1_400, 3_001, 200)), help=f"multiples of {EVERY}")
    p.add_argument("--per-class", type=int, default=100, help="generated images of a class")
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--out", type=Path, help="write the result as JSON here, after each seed")
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    real = data.load_long_tailed(*WORDS[:2])
    result = {"what": "CALL on digits, IR 50: FID of three networks of one run", "per_class": a.per_class, "runs": {}}
    for seed in a.seeds:
        with tempfile.TemporaryDirectory() as folder:
            rows = follow(seed, a.stops, a.per_class, real, Path(folder) / "run")
        result["runs"][str(seed)] = rows
        for row in rows:
            print(seed, row["step"], {k: round(by["few"], 1) for k, by in row["fid"].items()}, "Few", flush=True)
        if a.out:
            records.write_json(a.out, result | {"provenance": records.provenance(torch.device("cpu"))})


if __name__ == "__main__":
    main()
