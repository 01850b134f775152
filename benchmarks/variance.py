"""How much noise a subset adds to the gradient of the allocation loss: measured on a released network.

    python benchmarks/variance.py [--out benchmarks/variance.json]

The gradient of one batch's allocation loss, estimated from a subset, minus that from the whole batch, in squared norm;
and for scale the variance of the whole batches' gradients, the noise that a batch has anyway.
"""

import argparse
from pathlib import Path

import torch
from tqdm import tqdm

from callkit import data, files, objectives, records
from callkit.allocation import AllocationLoss
from callkit.checkpoints import load_model
from callkit.diffusion import NoiseSchedule
from callkit.training import batch_index

CHECKPOINT = "digits-ir50-call-cpu-seed0.safetensors"


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--batches", type=int, default=40)
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--out", type=Path, help="write the result as JSON here")
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    model, config = load_model(records.results_folder() / CHECKPOINT, "reserved")
    model.requires_grad_(True)
    train_set = data.load_for(config).train
    allocation, schedule = AllocationLoss(train_set.counts, bound=config.bound), NoiseSchedule()

    def gradient(step: int, rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        index = batch_index(len(train_set), config.batch_size, 0, step)
        y = train_set.labels[index]
        batch = objectives.Batch(data.to_float(train_set.images[index]), y, y, train_set.frequency, rows=rows)
        out = objectives.ddpm(model, batch, schedule, torch.Generator().manual_seed(step), both=True)
        loss = (weights * allocation(out.eps[rows], out.eps_general, y[rows]).loss).sum()
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        return torch.cat([g.flatten() for g in gradients])

    size, generator = config.batch_size // 2, torch.Generator().manual_seed(0)
    by_weight = AllocationLoss(train_set.counts)
    by_weight.priority = (by_weight.omega_con - by_weight.omega_div).abs().double()
    whole, noise = [], {"subset": [], "by |omega_Con - omega_Div|": [], "uniform": []}
    for step in tqdm(range(a.batches), unit="batch"):
        everything = torch.arange(config.batch_size)
        whole.append(gradient(step, everything, torch.full((config.batch_size,), 1 / config.batch_size)))
        y = train_set.labels[batch_index(len(train_set), config.batch_size, 0, step)]
        uniform = torch.randperm(config.batch_size, generator=generator)[:size]
        drawn = {
            "subset": allocation.subset(y, size, generator),
            "by |omega_Con - omega_Div|": by_weight.subset(y, size, generator),
            "uniform": (uniform, torch.full((size,), 1 / size)),
        }
        for name, (rows, weights) in drawn.items():
            noise[name].append((gradient(step, rows, weights) - whole[-1]).pow(2).sum().item())
    batch_noise = torch.stack(whole).var(0).sum().item()
    result = {
        "what": f"variance that half a batch adds to the gradient of the allocation loss, {CHECKPOINT}",
        "batches": a.batches,
        "variance_between_batches": batch_noise,
        "added": {name: sum(values) / a.batches / batch_noise for name, values in noise.items()},
        "provenance": records.provenance(torch.device("cpu")),
    }
    print("variance that half a batch adds, relative to the variance between batches")
    for name, value in result["added"].items():
        print(f"{name:28} {value:.3f}")
    if a.out:
        files.write_json(a.out, result)


if __name__ == "__main__":
    main()
