"""Speed and memory as ratios, measured interleaved in one run.

    python benchmarks/speed.py --network small --out benchmarks/speed.json
    python benchmarks/speed.py --network paper --batch-size 8 --rounds 8 --memory --out benchmarks/speed-paper.json

Each round times every variant once, in turn, so that a busy machine slows all alike; a ratio is the median over rounds
of the time of the variant over that of its baseline in the same round. A training step is one of
`callkit.training.train`, with all that belongs to it. Peak memory is that of a process of its own, less what it took
before the data and the network of the first step; on a GPU what PyTorch allocated.
"""

import argparse
import gc
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from unittest import mock

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from callkit import data, files, records
from callkit.capacity import expert_scale, merge
from callkit.checkpoints import build_model
from callkit.config import make_config
from callkit.diffusion import NoiseSchedule
from callkit.training import train
from callkit.unet import UNet, take

NETWORK = {"small": ("digits", 1, 8), "paper": ("cifar10", 3, 32)}  # whose network, image channels and size
# A training step each: method and settings. Re-sampling (RS) costs what DDPM does.
STEPS = {
    "DDPM": ("ddpm", {}),
    "CALL": ("call", {}),
    "CALL, two passes": ("call", {}),
    "CALL, half": ("call", dict(branch_share=0.5)),
    "focal": ("focal", {}),
    "ADA": ("ada", {}),
    "CBDM": ("cbdm", {}),
    "OC": ("oc", {}),
    "CBDM + CALL": ("cbdm-call", {}),
    "OC + CALL": ("oc-call", {}),
    "DDPM, bf16": ("ddpm", dict(precision="bf16")),
    "CALL, bf16": ("call", dict(precision="bf16")),
    "CALL, half, bf16": ("call", dict(precision="bf16", branch_share=0.5)),
}
PUBLISHED = "step, DDPM as published"
BASELINES = {
    "sample, merged": "sample, plain",
    "sample, unmerged": "sample, plain",
    PUBLISHED: "step, DDPM",
    **{f"step, {name}": "step, DDPM" for name in STEPS if name != "DDPM"},
}
NAMES = ["sample, plain", "sample, merged", "sample, unmerged", PUBLISHED, *(f"step, {name}" for name in STEPS)]


def two_passes(model, x_t, t, y, augmentation=None, rows=None, masks=None):
    """`UNet.forward_both` without a shared encoder."""
    masks = masks or model.dropout_masks(x_t)
    eps = model(x_t, t, y, augmentation, masks)
    with expert_scale(model, 0.0):
        inputs = (take(v, rows) for v in (x_t, t, y, augmentation))
        return eps, model(*inputs, [take(m, rows) for m in masks])


def published_step(model: UNet, x0: torch.Tensor, y: torch.Tensor) -> Callable[[], None]:
    """A step as the field's public code does it: contiguous float32, Adam and the EMA one tensor at a time."""
    schedule, ema = NoiseSchedule().to(x0.device), {k: v.clone() for k, v in model.state_dict().items()}
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-4, foreach=False)

    def step():
        t = torch.randint(1000, y.shape, device=y.device)
        eps = torch.randn_like(x0)
        loss = F.mse_loss(model(schedule.q_sample(x0, t, eps), t, y), eps)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        with torch.no_grad():
            for name, value in model.state_dict().items():
                ema[name].copy_(0.9999 * ema[name] + 0.0001 * value)

    return step


def make(name: str, a: argparse.Namespace, folder: Path) -> Callable[[], None]:
    """A function that runs the variant once."""
    dataset, channels, size = NETWORK[a.network]
    g = torch.Generator().manual_seed(0)
    images = torch.randint(256, (500, channels, size, size), generator=g, dtype=torch.uint8)
    full = data.ImageSet(images, torch.arange(500) % 10, tuple("0123456789"))
    kind, what = name.split(", ", 1)
    if kind == "step" and name != PUBLISHED:
        method, settings = STEPS[what]
        config = make_config(dataset, 50, method, "paper", batch_size=a.batch_size, log_every=1, **settings)
        counts = data.long_tailed_counts(50, 10, 50)
        fake = data.LongTailed(full, data.long_tailed_indices(full.labels, counts))
        steps = train(config, folder / what.replace(" ", ""), a.device)
        forward_both = two_passes if "two passes" in name else UNet.forward_both

        def step():
            with (
                mock.patch.object(data, "load_long_tailed", lambda *_: fake),
                mock.patch.object(UNet, "forward_both", forward_both),
            ):
                next(steps)

        return step
    torch.manual_seed(0)
    method = "ddpm" if what in ("plain", "DDPM as published") else "call"
    model = build_model(make_config(dataset, 50, method), channels, 10).to(a.device)
    x0, y = data.to_float(images[: a.batch_size].to(a.device)), full.labels[: a.batch_size].to(a.device)
    if kind == "step":
        return published_step(model.train().to(memory_format=torch.contiguous_format), x0, y)
    model = (merge(model) if what == "merged" else model).eval()
    t = torch.randint(1000, y.shape, generator=g).to(a.device)

    @torch.no_grad()
    def sample():
        model(x0, t, y)  # one network evaluation: the sampler around it is the same

    return sample


def run(step: Callable[[], None], device: str) -> float:
    """Seconds of one call."""
    synchronise = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    synchronise()
    began = time.perf_counter()
    step()
    synchronise()
    return time.perf_counter() - began


def time_all(names: list[str], a: argparse.Namespace, folder: Path) -> dict[str, list[float]]:
    """Seconds of each variant in each round. Nothing of a variant is left, nor of its memory on a GPU."""
    variants, seconds = {name: make(name, a, folder) for name in names}, {name: [] for name in names}
    for i in tqdm(range(a.rounds + 2), unit="round"):
        for name in names:
            elapsed = run(variants[name], a.device)
            if i >= 2:  # after the warm-up
                seconds[name].append(elapsed)
    while variants:  # the last one first: each training puts back the signal handlers that it found
        variants.popitem()
    gc.collect()
    if a.device.startswith("cuda"):
        torch.cuda.empty_cache()
    return seconds


STATUS = Path("/proc/self/status")


def high_water_mark() -> int:
    """Bytes of memory that this process has held at most (Linux; getrusage would count its parent's as well)."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])


def peak_memory(name: str, a: argparse.Namespace) -> int:
    """Bytes that three calls take at most, in this process."""
    on_a_gpu = a.device.startswith("cuda")
    with tempfile.TemporaryDirectory() as folder:
        if on_a_gpu:
            torch.cuda.reset_peak_memory_stats()
        before = 0 if on_a_gpu else high_water_mark()
        step = make(name, a, Path(folder))
        for _ in range(3):
            step()
        peak = torch.cuda.max_memory_allocated() if on_a_gpu else high_water_mark() - before
        del step  # a training ends before its folder does
        return peak


def memory_of(name: str) -> int:
    """`peak_memory`, in a process of its own."""
    command = [sys.executable, __file__, *sys.argv[1:], "--peak", name]
    measured = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if measured.returncode:
        sys.exit(f"error: the memory of {name!r} could not be measured, for the reason above; the timings are complete")
    return json.loads(measured.stdout)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--network", choices=NETWORK, default="small", help="the digits network, or the paper's")
    p.add_argument("--batch-size", type=int, default=64)
    p.add_argument("--rounds", type=int, default=60)
    p.add_argument("--only", nargs="*", default=[], help="variants whose name contains one of these; baselines besides")
    p.add_argument("--memory", action="store_true", help="measure peak memory as well")
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--out", type=Path, help="write the result as JSON here")
    p.add_argument("--peak", help=argparse.SUPPRESS)  # this process measures the memory of one variant
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    if a.memory and not a.device.startswith("cuda") and not STATUS.exists():
        p.error(f"--memory on a CPU reads {STATUS}, which Linux alone has: leave it out")
    if a.peak:
        print(json.dumps(peak_memory(a.peak, a)))
        return
    names = [n for n in NAMES if not a.only or n in BASELINES.values() or any(word in n for word in a.only)]
    with tempfile.TemporaryDirectory() as folder:
        seconds = time_all(names, a, Path(folder))
    ratios = {
        name: median(v / b for v, b in zip(seconds[name], seconds[baseline], strict=True))
        for name, baseline in BASELINES.items()
        if name in names
    }
    print(f"\n{'':24}  ms (median)   ratio")
    for name, values in seconds.items():
        ratio = f"{ratios[name]:.3f} of {BASELINES[name]}" if name in ratios else "1"
        print(f"{name:24}  {1e3 * median(values):9.1f}   {ratio}", flush=True)
    result = {
        "what": f"{a.network} network, one call each, interleaved; ratios are medians over rounds",
        "rounds": a.rounds,
        "batch_size": a.batch_size,
        "milliseconds": {name: 1e3 * median(v) for name, v in seconds.items()},
        "ratios": ratios,
        "peak_memory_bytes": {},
        "provenance": records.provenance(torch.device(a.device)),
    }
    if a.out:
        files.write_json(a.out, result)
    if a.memory:
        print(f"\n{'':24}  peak memory, MB")
        for name in names:
            result["peak_memory_bytes"][name] = memory_of(name)
            print(f"{name:24}  {result['peak_memory_bytes'][name] / 1e6:9.0f}", flush=True)
        if a.out:
            files.write_json(a.out, result)


if __name__ == "__main__":
    main()
