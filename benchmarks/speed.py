"""Speed as ratios, measured interleaved in one run.

    python benchmarks/speed.py [--out benchmarks/speed.json]

Each round times every variant once, in turn, so that a busy machine slows all alike; a ratio is the median over
rounds of the variant's time over its baseline's time in the same round.
"""

import argparse
import time
from pathlib import Path
from statistics import median

import torch
from tqdm.auto import tqdm

from callkit import augment, data, records
from callkit.allocation import AllocationLoss
from callkit.capacity import merge
from callkit.config import make_config
from callkit.diffusion import NoiseSchedule
from callkit.objectives import OBJECTIVES, Batch
from callkit.training import build_model

# Training steps that differ in cost: re-sampling (RS) costs what DDPM does.
STEPS = {
    "DDPM": "ddpm",
    "focal": "focal",
    "ADA": "ada",
    "CBDM": "cbdm",
    "OC": "oc",
    "CALL": "call",
    "CBDM + CALL": "cbdm-call",
    "OC + CALL": "oc-call",
}
BASELINES = {
    "sample, merged": "sample, plain",
    "sample, unmerged": "sample, plain",
    **{f"step, {name}": "step, DDPM" for name in STEPS if name != "DDPM"},
}


def variants(batch_size: int) -> dict:
    """Name -> a function that runs it once. Sampling is one network evaluation: the sampler around it is the same."""
    torch.manual_seed(0)
    plain, reserved = (build_model(make_config("digits", 50, m, "cpu"), 1, 10) for m in ("ddpm", "call"))
    merged = merge(reserved)
    x, y = torch.rand(batch_size, 1, 8, 8) * 2 - 1, torch.arange(batch_size) % 10
    t = torch.randint(1000, (batch_size,))
    schedule, generator = NoiseSchedule(), torch.Generator()
    counts = data.load_long_tailed("digits", 50).train.counts
    frequency = torch.tensor(counts / counts.sum(), dtype=torch.float32)
    allocation = AllocationLoss(counts)

    def sample(model):
        def run():
            with torch.no_grad():
                model.eval()(x, t, y)

        return run

    def step(method):
        config = make_config("digits", 50, method, "cpu")
        model = build_model(config, 1, 10)
        objective, optimiser = OBJECTIVES[config.base], torch.optim.Adam(model.parameters(), lr=1e-4)

        def run():
            generator.manual_seed(0)
            images, told = x, None
            if config.augment:
                warp = augment.draw(len(y), generator)
                images, told = augment.apply(x, warp.matrix()), warp.condition()
            batch = Batch(images, y, y, frequency, told)
            out = objective(model.train(), batch, schedule, generator, both=config.call)
            loss = out.loss.mean()
            if config.call:
                loss = loss + allocation(out.eps, out.eps_general, y).loss.mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()

        return run

    return {
        "sample, plain": sample(plain),
        "sample, merged": sample(merged),
        "sample, unmerged": sample(reserved),
        **{f"step, {name}": step(method) for name, method in STEPS.items()},
    }


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--rounds", type=int, default=60)
    p.add_argument("--batch-size", type=int, default=64)
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--out", type=Path, help="write the result as JSON here")
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    runs = variants(a.batch_size)
    seconds = {name: [] for name in runs}
    for i in tqdm(range(a.rounds + 3), unit="round"):
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            if i >= 3:  # after the warm-up
                seconds[name].append(time.perf_counter() - began)
    ratios = {
        name: median(v / b for v, b in zip(seconds[name], seconds[baseline], strict=True))
        for name, baseline in BASELINES.items()
    }
    print(f"\n{'':18}  ms (median)   ratio")
    for name, values in seconds.items():
        ratio = f"{ratios[name]:.3f} of {BASELINES[name]}" if name in ratios else "1"
        print(f"{name:18}  {1e3 * median(values):8.1f}      {ratio}")
    if a.out:
        result = {
            "what": "digits network, one call each, interleaved; ratios are medians over rounds",
            "rounds": a.rounds,
            "batch_size": a.batch_size,
            "milliseconds": {name: 1e3 * median(v) for name, v in seconds.items()},
            "ratios": ratios,
            "provenance": records.provenance(torch.device("cpu")),
        }
        records.write_json(a.out, result)


if __name__ == "__main__":
    main()
