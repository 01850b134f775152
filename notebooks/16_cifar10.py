# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# (ch-cifar)=
# # 16 · A first look at CIFAR-10
#
# **Objective.** Leave the 8 × 8 images: train on CIFAR-10 for some minutes of a GPU, see when and how far the two
# predictions part, what the networks draw, and whether CALL helps; learn how rounding ruined a first attempt; and look
# inside. **Prerequisites.** {doc}`03_unet_and_ddim`, {doc}`07_a_floor_for_the_loss`, {doc}`11_ablations`. **Time.** 20
# minutes to read, seconds to run. **The one figure.** {numref}`fig-cifar-distance`.
#
# There are three sets of runs. In the **first** DDPM, OC, and OC with CALL were trained once, and everything was
# multiplied in bfloat16, attention included; with CALL something went wrong. In the **second** the same three were
# trained again from the same seed, with attention in float32; nothing else was changed on purpose, and it went longer.
# Both are of one seed, kept apart in `benchmarks/cifar10`, and no verdict of {doc}`15_report` counts them. The
# **third** has five seeds, of DDPM, of OC, and of CALL on either loss, all in float32, by a smaller network; its
# records are in `results/`, and they count. All are beginnings: a fortieth of the paper's training at most.

# %% tags=["parameters"]
dataset = "cifar10"
imbalance_ratio = 100
profile = "gpu"

# %% tags=["remove-output"]
from unittest import mock

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from callkit import data, notebook, probes, pruning, records, tables, training, viz
from callkit.allocation import AllocationLoss
from callkit.checkpoints import build_model, load_checkpoint, load_model
from callkit.config import TITLES, TrainConfig, make_config, without_call
from callkit.diffusion import NoiseSchedule
from callkit.statistics import interval_words, mean_interval, paired
from callkit.unet import Attention

words = dict(dataset=dataset, imbalance_ratio=imbalance_ratio, profile=profile)
notebook.check(**words)
viz.style()
folder = records.REPOSITORY / "benchmarks" / "cifar10"
first, second = (folder / f"attention-{p}" for p in ("bfloat16", "float32"))
budget = {"steps": 4_000, "channels": 64, "precision": "bf16"}
methods = ("ddpm", "oc", "oc-call")


def scored(folder):
    """A run's records by (method, weights, steps)."""
    for method in methods:
        notebook.need_record(folder, **words, method=method, overrides=budget)
    found = [r["run"] | r for r in records.load_records(folder, **words)]
    return {(r["method"], r["weights"], r["steps"]): r for r in found}


then, now = scored(first), scored(second)
third = {
    (method, weights): records.load_records(
        dataset=dataset,
        imbalance_ratio=imbalance_ratio,
        profile="cpu",
        method=method,
        weights=weights,
        overrides={"steps": 4_000, "channels": 32},
    )
    for method in ("ddpm", "call", "oc", "oc-call")
    for weights in ("theta", "theta_g")
}
base_of = {method: without_call(method) for method in ("call", "oc-call")}
probe = records.benchmark("cifar10/attention-bfloat16/probe")
inside = {
    method: [
        records.benchmark(f"cifar10/five-seeds/probe-{base}-seed{r['run']['seed']}")
        for r in third[base, "theta"]
    ]
    for method, base in base_of.items()
}
runs = records.benchmark("cifar10/attention-float32/runs")
names, counts = runs["class_names"], np.array(runs["class_counts"])
splits = data.splits(counts)

# %% [markdown]
# ## What was run
#
# The paper's network, narrower, and only the beginning of a training:


# %% tags=["hide-input"]
def size(channels):
    config = make_config(dataset, imbalance_ratio, "ddpm", channels=channels)
    model = build_model(config, 3, len(counts))
    return sum(p.numel() for p in model.parameters())


def column(config, methods, seeds, steps, precision, drawn, extractor, device):
    return {
        "methods": methods,
        "seeds": seeds,
        "million parameters": f"{size(config.channels) / 1e6:.1f}",
        "steps of 64 images": " to ".join(f"{n:,}" for n in dict.fromkeys(steps)),
        "times an image is seen": f"{64 * steps[-1] / counts.sum():,.0f}",
        "learning rate; warm-up": f"{config.lr:g}; {config.warmup:,}",
        "products; attention": precision,
        "images drawn": f"{drawn:,}",
        "extractor": extractor,
        "device": device,
    }


def of_run(r, methods, seeds, precision, steps):
    seen = r["evaluation"]["generated_images"], r["evaluation"]["extractor"]
    device = r["training"]["provenance"]["device"]
    config = TrainConfig.from_dict(r["config"])
    return column(config, methods, seeds, steps, precision, *seen, device)


three = ", ".join(TITLES[m] for m in methods)
lasted = sorted(run["step"] for run in runs["runs"].values())
paper = make_config(dataset, imbalance_ratio, "ddpm", "paper")
seeds = len(third["ddpm", "theta"])
pd.DataFrame(
    {
        "first": of_run(
            then["ddpm", "theta", 4_000], three, 1, "bfloat16; bfloat16", [4_000]
        ),
        "second": of_run(
            now["ddpm", "theta", 4_000],
            three,
            1,
            "bfloat16; float32",
            [lasted[0], lasted[-1]],
        ),
        "third": of_run(
            third["ddpm", "theta"][0],
            "DDPM, OC, ± CALL",
            seeds,
            "float32; float32",
            [4_000],
        ),
        "the paper": column(
            paper,
            three,
            "not stated",
            [paper.steps],
            "not stated",
            50_000,
            "inception",
            "A100",
        ),
    }
)

# %% [markdown]
# The three of the first run, and of the second, were trained side by side on one GPU, for six to nine minutes. Of the
# third five seeds at a time were, for two and a half to five minutes, on DDPM's loss in one session and on OC's in
# another. All were compiled (`--compile`), and runs of one seed saw the same images, timesteps and noise. `bfloat16` is
# a format of 16 bits, with eight significant bits where float32 has 24; all matrix products are in it but those of
# attention in the second run, and of the output convolution in both; in the third none is. `lite0` is
# EfficientNet-Lite0 ({doc}`10_metrics`). In the second run OC + CALL, the slowest, is logged to step 6,000 and has
# scores at 4,000; what it drew later, and the weights of all three, were not kept.
#
# ## The predictions part, and go where theory says
#
# The second run. After a first rise $D$ falls back to $10^{-5}$, and nothing seems to happen for three thousand steps.
# Then, within some three hundred, it rises by four orders of magnitude, on the rare classes alone, the four of Few and
# *dog*, the smallest of Medium:

# %% mystnb={"figure": {"caption": "CIFAR-10, IR 100: distance D between the two predictions by class, a point per 100 training steps, and its last quarter on a linear axis. The triangles are not fitted. They mark the rest points b ln(ω_Div / ω_Con) of {eq}`eq-lambda-rest`, which follow from the training counts and the bound.", "name": "fig-cifar-distance"}, "image": {"alt": "Left, ten lines near 1e-5 until step 3,200; those of the five rarest classes then rise to between 0.04 and 0.4 within 300 steps, and the other five stay. Right, the five levels, each wavering a little below a triangle.", "classes": "dark-light"}}
config = TrainConfig.from_dict(runs["runs"]["oc-call"]["config"])
rest = AllocationLoss(counts, bound=config.bound).rest_points().numpy()
log = runs["runs"]["oc-call"]["log"]
viz.rest_points(log["step"], log["distance"], rest, names, splits)
# %% [markdown]
# The triangles come from an argument about a model with two numbers ({doc}`11_ablations`): a class comes to rest where
# the slope of the allocation loss in $D$ vanishes. It knows nothing of images or networks. Beside it $D$ itself, a mean
# over the last thousand steps:

# %%
late = np.mean(log["distance"][-10:], axis=0)
pd.DataFrame(
    {
        "training images": [f"{n:,}" for n in counts],
        "rest point": [f"{d:.2g}" for d in rest],
        "D": [f"{d:.2g}" for d in late],
        "D over rest point": [
            f"{d / r:.2f}" if r > 0 else "" for d, r in zip(late, rest, strict=True)
        ],
    },
    index=names,
)

# %% [markdown]
# *Where* the classes go the model has right to the last one: the order, which of them part at all, and that all come to
# nearly the same share of their rest points, a tenth short. The sign of $\omega_\text{Div} - \omega_\text{Con}$ decides
# who parts, and it changes between the fifth and the sixth. About *when* the model is wrong: by it the rarest class
# would part first, by far, but all five pass 0.01 within one hundred steps, as if by one switch. What the loss fixes is
# *how far* the predictions are apart on each class, and it takes that from the class counts. Nothing in it asks that
# the difference be of use.
#
# ## What they draw

# %% tags=["hide-input"] mystnb={"figure": {"caption": "The second run after 4,000 steps, averaged weights: three images of each class, drawn from the same noise by DDPM, OC, and OC with CALL, with its expert (θ) and without (θᵍ). Above each column how many training images its class has. DDIM in 50 steps, no guidance.", "name": "fig-cifar-samples"}, "image": {"alt": "Four blocks of ten columns of small colour images. DDPM, OC and CALL draw nearly the same blurred beginnings of pictures; with CALL those of the five rarest classes are a little smoother. Without the expert the five common columns look as with it, and the five rarest are purple noise.", "classes": "dark-light"}}
drawn, _ = load_checkpoint(second / "samples.safetensors")
shown = {
    "DDPM": "ddpm, theta",
    "OC": "oc, theta",
    "OC + CALL, θ": "oc-call, theta",
    "OC + CALL, θᵍ": "oc-call, theta_g",
}
viz.class_columns(
    {
        title: drawn[key].unflatten(0, (len(names), -1))[:, :3].flatten(0, 1)
        for title, key in shown.items()
    },
    [f"{n:,}" for n in counts],
    splits,
)
# %% [markdown]
# Nobody would hang these on a wall: it is a seventy-fifth of the paper's training. But one thing needs no more of it.
# *Capacity was allocated*: without its expert the network draws the common classes as before, and noise for the rare
# ones. The scores (FIDs at this stage, with this extractor, mean something beside one another and nothing else):


# %%
def row(r):
    return {
        f"FID, {s.capitalize()}": r["metrics"][s]["fid"]
        for s in ("many", "medium", "few", "overall")
    }


def title(method, weights):
    of = {"theta": ", θ", "theta_g": ", θᵍ"}[weights] if "call" in method else ""
    return TITLES[method] + of


pd.DataFrame(
    {
        (title(method, weights), f"{steps:,}"): row(r)
        for (method, weights, steps), r in sorted(
            now.items(), key=lambda item: methods.index(item[0][0])
        )
    }
).T.rename_axis(["", "steps"]).map("{:,.0f}".format)

# %% [markdown]
# OC is level with DDPM at first and overall two to three percent behind later, where on digits, without guidance, it is
# nearly ten times worse: on digits enlarged to this size it exchanges fewer than half of Few's targets below $t = 700$,
# and on 8 × 8 from much earlier on ({doc}`09_rivals`). As ratios, after 4,000 steps:


# %%
def over(ours, base):
    return {k: f"{v / row(base)[k]:.3f}" for k, v in row(ours).items()}


ddpm, oc, call = (now[method, "theta", 4_000] for method in methods)
pd.DataFrame({"OC + CALL over OC": over(call, oc), "OC over DDPM": over(oc, ddpm)}).T

# %% [markdown]
# With CALL the overall FID is some five percent lower, that of Medium and Few by two, and that of Many hardly higher.
# That is one seed, without an interval, 600 steps after the parting. So we asked again, with five.
#
# (sec-cifar-five)=
# ## Five seeds
#
# The third runs: DDPM and OC, and CALL on the loss of either. The learning rate is higher and the predictions part
# sooner, at steps that differ from seed to seed by more than a factor of two. In each, all five rare classes part
# within two hundred steps (in eight of the ten within one), and then $D$ comes to 0.84 to 0.93 of where the counts want
# it, but for the rarest class in seed 1 (0.79 and 0.81). When $D$ on Few passed 0.01, and where $D$ was over the last
# five hundred steps:


# %%
def parted(log):
    few = np.array(log["distance"])[:, splits["few"]].mean(1)
    return records.parted_at({"step": log["step"], "distance_few": few})


rare = rest > 0
rows = {}
for method, networks in inside.items():
    for network in networks:
        run = network["runs"][method]
        ends = np.mean(run["log"]["distance"][-10:], axis=0)
        share = ends[rare] / rest[rare]
        rows[TITLES[method], f"seed {run['config']['seed']}"] = {
            "parted at step": f"{parted(run['log']):,}",
            "D over rest point, the five rarest": f"{share.min():.2f} to {share.max():.2f}",
            "largest D of the others": f"{ends[~rare].max():.0e}",
        }
pd.DataFrame(rows).T

# %% [markdown]
# Capacity is allocated, then, ten times out of ten. *When* is a matter of the seed: whether early or late, each parts
# on both losses within a hundred steps. (One seed means the same initial weights, images, timesteps and noise; which of
# these it is we did not try. And on images of this size OC's loss is nearly DDPM's, so this says little of other
# losses.)
#
# Does allocation help? FID as a ratio over that of the network without CALL of the same seed, and the 95 %
# {term}`paired interval`: half-way (measured on DDPM's loss alone), at the end, and at the end without the expert
# ($\theta^g$); last, OC itself beside DDPM:

# %%
marks = records.benchmark("cifar10/five-seeds/marks")["fid"]


def half_way(split):
    """As a record's ratio, from the scores that were taken on the way."""
    ours, base = ([of[split] for of in marks[m]] for m in ("call", "ddpm"))
    ratios = np.divide(ours, base)
    interval = np.exp(mean_interval(np.log(ratios)))
    return interval_words(*interval)


def at_end(method, base, weights="theta"):
    return tables.ratio_row(third[method, weights], third[base, "theta"])


rows = {
    "CALL / DDPM, half-way": {
        "seeds": len(marks["call"]),
        **{s.capitalize(): half_way(s) for s in (*splits, "overall")},
    }
}
rows |= {f"{TITLES[m]} / {TITLES[b]}": at_end(m, b) for m, b in base_of.items()}
rows |= {
    f"θᵍ of {TITLES[m]} / {TITLES[b]}": at_end(m, b, "theta_g")
    for m, b in base_of.items()
}
rows["OC / DDPM"] = at_end("oc", "ddpm")
pd.DataFrame(rows).T


# %%
def percent(logs):
    """Mean and interval of logarithms of ratios, as what is beyond 1."""
    return "{:+.2%} [{:+.2%}, {:+.2%}]".format(*np.expm1(mean_interval(logs)))


behind = {}  # on Many, logs, by seed
for method, base in base_of.items():
    pair = third[method, "theta"], third[base, "theta"]
    behind[method] = np.log(paired(*pair, "many", ratio=True).values)
    curves = [[r["training"]["curve"]["base_loss"] for r in of] for of in pair]
    lag = percent(np.log(np.divide(*curves)[:, -6:].mean(1)))
    print(
        f"base loss, last thousand steps, {TITLES[method]} over {TITLES[base]}: {lag}"
    )
differ = mean_interval(behind["call"] - behind["oc-call"])
print(
    f"the ratio on Many, on DDPM's loss over that on OC's: {interval_words(*np.exp(differ))}"
)
fid_then = np.mean([of["many"] for of in marks["ddpm"]])
fid_now = records.mean_std(third["ddpm", "theta"], "metrics", "many", "fid")[0]
print(
    f"DDPM's FID on Many, mean over the seeds: {fid_then:.0f} after 2,000 steps, {fid_now:.0f} after 4,000"
)

# %% [markdown]
# **No gain is to be seen on Few**, which is what we had asked, on either loss.
#
# *On DDPM's loss* the two are within two percent of each other half-way. (That CALL is ahead by one on Few there, by an
# interval that excludes 1, comes too soon to be a gain: in three of the five seeds the predictions had not parted yet.)
# At the end CALL is behind: on Many by five percent, in each seed (p = 0.012), and by three to five elsewhere, where
# the intervals hold 1. The expert is not to blame by itself, for $\theta^g$ is as far behind on Many. FID at this stage
# measures how far a training has come: on Many DDPM's own falls by a quarter from 2,000 to 4,000 steps, so five percent
# are some four hundred of them, or more, as the fall slows down. That fits the base loss, which with CALL is higher in
# most seeds, by 0.4 percent in the mean.
#
# *On OC's loss*, the paper's choice, which itself is level with DDPM here, CALL is level too: ahead in the mean by one
# or two percent, by intervals that hold 1 but for Medium (p = 0.008). The second run's five percent overall were luck,
# or come of what else differs, its wider network, its lower learning rate and its bfloat16. Whether CALL slows training
# down on DDPM's loss and not on OC's, as the third line of the printout has it, or luck made it look so, five seeds
# hardly tell; if it does, we do not know why.
#
# At the end two of the eight intervals of $\theta$ exclude 1, one on either side, both on sets that we had not asked
# for. By Holm's rule ({doc}`12_does_the_gain_last`) neither would stay. KID decides that on Many and leaves that on
# Medium open.
#
# A beginning is not the end, and this network is a sixteenth of the paper's. On 8 × 8 images, digits at ratio 50 and
# Fashion-MNIST, CALL was ahead on OC's loss by a tenth on Few without guidance, where OC is far behind DDPM; here OC is
# not behind, and of a gain four percent are left possible. What a whole training would show is open, and
# {ref}`sec-sweeps` has the grid for it.
#
# ## The first run: something goes wrong before they part
#
# In the first run the picture of $D$ was much the same, two hundred steps later. The scores were not:

# %%
pd.DataFrame(
    {
        (title(method, weights), run): row(found[method, weights, 4_000])
        for method, weights in (
            ("ddpm", "theta"),
            ("oc", "theta"),
            ("oc-call", "theta"),
            ("oc-call", "theta_g"),
        )
        for run, found in (("first", then), ("second", now))
    }
).T.rename_axis(["", "run"]).map("{:,.0f}".format)

# %% [markdown]
# DDPM and OC have nearly the same scores in both runs; CALL was far behind in the first, common classes included. If
# parting were the reason, the trouble would have begun with it. Here is the base loss of OC with CALL over that of OC,
# on the same batches, in both runs; and as a control the same ratio on Fashion-MNIST at 8 × 8 in float32
# ({doc}`12_does_the_gain_last`):

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Base loss with CALL over that without, during training; a line per seed. The dashed lines are where D on Few passes 0.01, in the first line of each panel.", "name": "fig-cifar-behind"}, "image": {"alt": "Three panels over training steps. First run: one line that leaves 1 at about step 2,000, climbs to 1.05 before the dashed line at 3,600 and comes back to 1.03. Second run: a line that stays within a percent of 1. Fashion-MNIST: five lines within two thirds of a percent of 1.", "classes": "dark-light"}}
fashion = {
    m: {
        r["run"]["seed"]: r["training"]["curve"]
        for r in records.load_records(
            dataset="fashion-mnist",
            method=m,
            weights="theta",
            guidance_scale=1,
            overrides={"steps": 10_000, "image_size": 8},
        )
    }
    for m in ("oc", "oc-call")
}
pairs = {
    f"CIFAR-10, {name} run": [
        tuple(found[m, "theta", 4_000]["training"]["curve"] for m in ("oc-call", "oc"))
    ]
    for name, found in (("first", then), ("second", now))
}
pairs["Fashion-MNIST"] = [
    (curve, fashion["oc"][seed]) for seed, curve in fashion["oc-call"].items()
]
viz.base_loss_ratios(pairs)
# %% [markdown]
# On Fashion-MNIST CALL costs the base loss two thirds of a percent at the most, and in the second run no more, both
# when the predictions part. In the first run it fell behind by five percent before they did. That is no allocation, and
# no lag of an average either: the losses of the log are of the weights in training. What do the weights say? Here are,
# for each block of attention in the up path, the largest singular value of the matrices that make queries and keys,
# which starts near 2 in a network of any width, and the sizes of their biases; and the same of the two digits networks
# of {doc}`04_general_and_expert`:


# %%
blocks = {
    f"first run, {name}": probe["attention"][key]
    for name, key in (
        ("DDPM", "DDPM"),
        ("OC + CALL, θ", "theta"),
        ("OC + CALL, θᵍ", "theta_g"),
    )
}
for method in ("ddpm", "call"):
    released = notebook.released("digits", 50, method, "cpu", 0)
    blocks[f"digits, {TITLES[method]}"] = probes.attention_sizes(
        load_model(released)[0]
    )
pd.DataFrame(
    {
        (network, block.removesuffix(".attention")): of
        for network, found in blocks.items()
        for block, of in found.items()
    }
).T.map("{:.3f}".format)

# %% [markdown]
# With CALL two of the three blocks had gone astray: scores of attention are products $q^\top k$, and both
# factors are an order of magnitude larger than DDPM's in at least one direction. Most of that is in the expert: without
# it, in $\theta^g$, they are three to six times as large as DDPM's, with it eight to twenty-six times.
#
# ## A canary: the bias of the keys
#
# Miners took a canary below ground because it fainted first. One column of the table is odd in *every* row of the
# first run, DDPM's too. A query $q_i$ meets the keys $k_j = W_k h_j + b_k$, and the softmax over $j$ of
#
# ```{math}
# :label: eq-key-bias
# q_i^\top k_j = q_i^\top W_k h_j + q_i^\top b_k
# ```
#
# does not see $q_i^\top b_k$, which is the same for all $j$. So $b_k$ has no effect on anything, and **its gradient is
# exactly zero**. It starts at zero and ought to stay there. On digits, trained in float32, it does, to two decimals. In
# the first run it did not. What moves a parameter whose gradient is zero is rounding. Adam divides a gradient by its
# own size and so makes full steps of it, unless it is far below Adam's $\epsilon = 10^{-8}$. In the digits network the
# rounding error of float32 is that small, and that of bfloat16 is not:


# %%
def attend(block, x):
    """callkit's attention without its precaution."""
    h = block.norm(x)
    q, k, v = (
        f(h).flatten(2).transpose(1, 2).unsqueeze(1)
        for f in (block.q, block.k, block.v)
    )
    h = F.scaled_dot_product_attention(q, k, v)[:, 0].transpose(1, 2).reshape(x.shape)
    return x + block.proj(h)


def key_gradients(half):
    """Mean absolute gradient of each key bias of the digits network, from the base loss of 64 images."""
    torch.manual_seed(0)
    net, digits = load_model(released)[0].requires_grad_(), data.load("digits")
    x0, y = data.to_float(digits.images[:64]), digits.labels[:64]
    eps, t = torch.randn_like(x0), torch.randint(1000, y.shape)
    x_t = NoiseSchedule().q_sample(x0, t, eps)
    with (
        mock.patch.object(Attention, "forward", attend),
        torch.autocast("cpu", torch.bfloat16, enabled=half),
    ):
        predicted = net(x_t, t, y)
    F.mse_loss(predicted.float(), eps).backward()
    blocks = (m for m in net.modules() if isinstance(m, Attention))
    return [block.k.bias.grad.abs().mean().item() for block in blocks]


for name, half in (("float32", False), ("bfloat16", True)):
    print(f"{name:8}", ", ".join(f"{g:.0e}" for g in key_gradients(half)))

# %% [markdown]
# Here is the error by itself: one attention block, forward and backward, in float32 and with its products in bfloat16.


# %%
def key_over_query(function, half):
    """Size of the gradient of the keys' bias over that of the queries'."""
    torch.manual_seed(0)
    block, shape = Attention(128), (8, 128, 16, 16)
    x = torch.randn(shape) + 2 * torch.randn(*shape[:2], 1, 1)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        out = function(block, x)
    (out.float() * torch.randn(shape)).sum().backward()
    return (block.k.bias.grad.norm() / block.q.bias.grad.norm()).item()


for name, function, half in (
    ("float32", attend, False),
    ("bfloat16", attend, True),
    ("bfloat16, as callkit does it now", Attention.__call__, True),
):
    print(f"{name:34} {key_over_query(function, half):.0e}")

# %% [markdown]
# A gradient that is wrong by a thousandth of the queries' gradient sounds harmless, and would be, if the errors
# averaged out. How far would the bias go then? Here is Adam with nothing but noise for a gradient, with the settings of
# two runs: the first run on CIFAR-10, and one of CALL on digits in bfloat16, 2,000 steps on a CPU:


# %%
def walk(config, channels):
    """Size of an averaged bias whose every gradient was noise."""
    generator = torch.Generator().manual_seed(0)
    bias, average = torch.zeros(channels), torch.zeros(channels)
    adam = torch.optim.Adam([bias])
    for step in range(config.steps):
        bias.grad = torch.randn(channels, generator=generator)
        adam.param_groups[0]["lr"] = training.learning_rate(config, step)
        adam.step()
        average.lerp_(bias, 1 - training.ema_decay(config, step))
    return average.norm().item()


digits = records.benchmark("keys")["runs"]
drifts = {
    "digits, CALL": (digits["bfloat16"]["config"], digits["bfloat16"]["sizes"]),
    "first run, DDPM": (probe["runs"]["ddpm"]["config"], probe["attention"]["DDPM"]),
    "first run, OC + CALL": (
        probe["runs"]["call"]["config"],
        probe["attention"]["theta"],
    ),
}
pd.DataFrame(
    {
        name: {
            "of noise alone": f"{walk(c, c.channels * c.channel_mult[1]):.2f}",
            "in the run": ", ".join(f"{of['k bias']:.2f}" for of in sizes.values()),
        }
        for name, (settings, sizes) in drifts.items()
        for c in [TrainConfig.from_dict(settings)]
    }
).T

# %% [markdown]
# **On digits the errors average out. On CIFAR-10 they have a direction**: the bias went many times as far as chance
# takes it. {cite:t}`qiu2026lowprecision` trace failures of low-precision training to just this place, the backward pass
# of attention, where errors of one direction add up to weights of growing norm. CALL gives such errors twice as many
# places to act: $W^g$ and $BA$, both for queries and for keys; and a product grows the faster the larger it is, the
# gradient of $B$ being proportional to $A$.
#
# callkit takes a precaution since: with `precision=bf16` attention is computed in float32, as the output convolution
# was before. It is a small part of the network's work.
#
# ## The second run: the same, with attention in float32
#
# The canary first. One attention block on the GPU of that run, as above: PyTorch there rounds the inputs of float32
# convolutions to TF32, with eleven bits, unless told not to, which might have spoiled it.

# %%
values = runs["key_over_query"]["values"]
pd.DataFrame(
    {
        tf32: {
            shown: f"{values[f'{key}, tf32 {on}']:.0e}"
            for key, shown in (
                ("float32", "float32"),
                ("bfloat16", "bfloat16"),
                ("precaution", "bfloat16, as callkit does it now"),
            )
        }
        for tf32, on in (("with TF32", True), ("without", False))
    }
)

# %% [markdown]
# TF32 does not matter: the gradient is a thousandth of what it is in bfloat16. And during training, the size of the
# largest key bias in each network (of the raw weights, where the table above has the averaged ones):

# %%
pd.DataFrame(
    {
        title(method, "theta"): {
            f"{int(step):,}": f"{max(of.values()):.4f}"
            for step, of in runs["runs"][method]["key_bias"].items()
        }
        for method in methods
    }
).rename_axis("steps").fillna("")

# %% [markdown]
# Where these biases had drifted to between 0.9 and 4.5, they stay near two thousandths, with CALL as without. And
# everything came right that had gone wrong with CALL: the base loss, the images, the scores.
#
# On digits in bfloat16, 2,000 steps on a CPU, the precaution does the same to the biases,

# %%
pd.DataFrame(
    {
        (f"attention in {precision}", block.removesuffix(".attention")): of
        for precision, run in digits.items()
        for block, of in run["sizes"].items()
    }
).T.map("{:.4f}".format)

# %% [markdown]
# but there queries and keys were of normal size before, too, and a whole run of CALL with attention in bfloat16 had the
# base loss of one in float32:

# %%
half, full = (
    records.load_records(
        **{"dataset": "digits", "imbalance_ratio": 50, "method": "call", "seed": 0},
        weights="theta",
        guidance_scale=1,
        overrides=overrides,
    )[0]["training"]["curve"]["base_loss"]
    for overrides in ({"precision": "bf16"}, {})
)
ratio = np.divide(half, full)
print(f"base loss, bfloat16 over float32: {ratio.min():.3f} to {ratio.max():.3f}")

# %% [markdown]
# ```{admonition} What we know
# :class: note
# The two runs have the same seed, images, timesteps and noise, and differ in what attention is computed in. (The code
# changed between them, too, but of what a step computes only attention, with its norm and projections: the diff of the
# two commits says so, and DDPM and OC come out alike.) With attention in bfloat16 CALL lagged by five percent of base
# loss and had nearly twice OC's FID on Few; in float32 it has neither. So **rounding in attention did it, to CALL
# alone**, in the one pair of runs that we have. Why to CALL alone, when DDPM's biases drifted as well, and why not on
# digits, we do not know. CALL has twice the handles: $W^g$ and $BA$, for queries and for keys.
# ```
#
# Which code *trained* a run is in its record under `training`; the commit at the end is that of the evaluation.
#
# ## Inside the networks of the third run
#
# Of the second run there are images and logs, and no weights, and the weights of the first had gone astray. What
# follows is of the twenty networks of the third, in float32. The weights of seed 0 are in
# `benchmarks/cifar10/five-seeds`.
#
# ### A switch, here too
#
# {doc}`08_inside_the_expert` found that on digits most of what the expert does is done by *one direction* in each
# projection of the class embedding, which can hold no image. The same control on CIFAR-10, by the loss on training
# images, and another one, where every decomposed matrix keeps one direction, or rank 1. Here is the share of the gap
# between $\theta^g$ and $\theta$ that they close, the smallest and the largest of the five classes that parted:


# %%
def losses(method, name, classes=rare):
    """Of a network, by seed and class."""
    return np.array([network["loss"][name] for network in inside[method]])[:, classes]


kept = {
    "rank 1, embedding projections": "theta_g + rank-one embedding projections",
    "rank 1, every matrix": "theta_g + rank-one expert",
}


def by_network(of):
    """Of each pair's networks the smallest and the largest of a row; `of` makes the columns of a method."""
    return pd.DataFrame(
        {
            (TITLES[m], f"seed {network['runs'][m]['config']['seed']}"): {
                what: form.format(values[i].min(), values[i].max())
                for what, (values, form) in of(m).items()
            }
            for m, networks in inside.items()
            for i, network in enumerate(networks)
        }
    ).T


def closed(method):
    general, whole = (losses(method, w) for w in ("theta_g", "theta"))
    return {
        what: ((general - losses(method, name)) / (general - whole), "{:.3f} to {:.3f}")
        for what, name in kept.items()
    }


by_network(closed)

# %% [markdown]
# In seven of the ten pairs it is as on digits: the projections close 86 percent at the least on every class, and mostly
# nearly all. In three they do not, and for some classes the switch is elsewhere. But in all ten **one direction in each
# matrix is enough**, of the tenth of the full rank that was reserved. The gap is large because the loss rewards
# $\theta^g$ for being wrong there, so a percent of it is not little. What is left open as a share of the loss of
# $\theta$, beside what separates $\theta$ from DDPM:


# %%
def left_open(method):
    base, whole = losses(method, TITLES[base_of[method]]), losses(method, "theta")
    form = "{:+.1%} to {:+.1%}"
    of = {what: (losses(method, name) / whole - 1, form) for what, name in kept.items()}
    return of | {"θ, over the one without CALL": (whole / base - 1, form)}


by_network(left_open)

# %%
for method, base in base_of.items():
    ours, without = (losses(method, n, slice(None)) for n in ("theta", TITLES[base]))
    higher = np.log(ours / without)  # (networks, classes)
    five = {"commonest": higher[:, ~rare].mean(1), "rarest": higher[:, rare].mean(1)}
    five["rarest, beyond commonest"] = five["rarest"] - five["commonest"]
    for what, of_network in five.items():
        print(
            f"loss of {TITLES[method]}, θ, over {TITLES[base]}, five {what}: {percent(of_network)}"
        )

# %% [markdown]
# A direction a matrix leaves open less than three thousandths. What separates $\theta$ from the network without CALL is
# no less, in the mean over the five classes, and it is a *higher* loss with CALL: on the five rarest, those that the
# expert is for, with either base loss, and by more than on the five commonest. Whether one direction repairs *images*,
# as on digits, was not tried. (Losses over 30 training images of a class, with six timesteps and noises each.)
#
# ### Figure 1(a), on CIFAR-10
#
# DDPM pruned in the three ways of {doc}`06_who_gets_the_capacity`: the smallest weights of the whole network (global),
# of each layer, and the smallest filters; its five networks of the third run.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Change of DDPM's loss by class when a tenth of the network is pruned (times 1000): mean over five networks and its 95 % interval. CIFAR-10 at IR 100, 4,000 steps; 30 images a class, six timesteps and noises each. The classes are in the order of their training images; columns share an axis.", "name": "fig-cifar-pruning"}, "image": {"alt": "Six bar charts: three ways of pruning, each on training images and on the balanced set, one bar a class.", "classes": "dark-light"}}
pruned = {base: [n["pruning"] for n in inside[m]] for m, base in base_of.items()}
HOW, SETS = pruning.HOW, list(pruned["ddpm"][0])


def pooled(images, how):
    """Mean over the networks of the change by class, and half of its interval."""
    change = 1e3 * np.array([of[images][how]["change"] for of in pruned["ddpm"]])
    means = [mean_interval(c) for c in change.T]
    return np.array([m.mean for m in means]), np.array([m.mean - m.low for m in means])


viz.class_changes(
    {images: {how: pooled(images, how) for how in HOW} for images in SETS},
    "Δ loss × 1000",
    splits,
)


# %%
def correlations(base, images, how):
    of_network = [of[images][how]["correlation"] for of in pruned[base]]
    return "{:+.2f} [{:+.2f}, {:+.2f}]".format(*mean_interval(of_network))


pd.DataFrame(
    {
        (TITLES[base], images): {how: correlations(base, images, how) for how in HOW}
        for base in pruned
        for images in SETS
    }
).T

# %% [markdown]
# The numbers are rank correlations of a class's rarity with the rise of its loss, in which the paper's figure has a
# clear trend: means over five networks of DDPM and five of OC, with their intervals. **No trend is to be seen**, by any
# way of pruning and on either set of images. Ten of the twelve intervals hold zero, and two, on training images,
# exclude it on the side that the paper does not have; three of the four of layers are wide enough for a correlation of
# a half. The bars, of DDPM, say the same: those of the rare classes are as high as the others. But the paper's figure
# is of CIFAR-100 after a whole training, and these are 4,000 steps on CIFAR-10.
#
# ## What a step takes
#
# Measured on such machines, with batches of 64 images of 32 × 32, in two sessions. In the first, while attention was in
# bfloat16, other work was going on beside it, so those times are upper limits, and one row was measured twice; in the
# second, with attention in float32, one program ran at a time.

# %% tags=["hide-input"]
measured = {
    p: records.benchmark(f"cifar10/attention-{p}/steps")
    for p in ("bfloat16", "float32")
}
pd.DataFrame(
    {
        "network": row["network"],
        "session": {"bfloat16": "first", "float32": "second"}[attention],
        "method": TITLES[row["method"]],
        "precision": row["precision"],
        "attention in": attention if row["precision"] == "bf16" else "float32",
        "compiled": "yes" if row["compiled"] else "no",
        "ms": f"{row['milliseconds']:.0f}",
        "peak memory, GB": f"{row['peak_memory_bytes'] / 1e9:.1f}",
    }
    for attention, of in measured.items()
    for row in of["rows"]
).sort_values(
    ["network", "compiled", "method", "precision", "session"],
    ascending=[False, True, True, True, True],
).set_index("network")

# %% [markdown]
# Without `--compile` the network at half its width takes about as long as the whole one, though it multiplies a quarter
# as much, and bfloat16 is no faster than float32: presumably the GPU was waiting for its kernels to be launched.
# Compiled and in bfloat16, a step of the paper's network with OC + CALL takes about a third of the time: three hours
# for its 300,000 steps in place of eight to eleven. What attention in float32 costs, these times cannot tell. Compiling
# took one and a half to two and a half minutes.
#
# ```{admonition} Pitfalls
# :class: warning
# * A run in lower precision that does not diverge may still be wrong. Watch something whose value you know: a gradient
#   that must be zero, a loss that two methods must share.
# * Compare the base losses of two methods *before* the difference sets in that you want to measure.
# * A few thousand steps: what is true of the beginning of a training need not be true of its end.
# ```
#
# ## Exercises
#
# ```{exercise}
# :label: ex-which-part
# At imbalance ratio 2, which classes of CIFAR-10 would part, and how far? And with a hundred classes at ratio 100?
# ```
#
# ```{solution-start} ex-which-part
# :class: dropdown
# ```

# %%
for ir, classes, largest in ((2, 10, 5_000), (100, 100, 500)):
    would = data.long_tailed_counts(largest, classes, ir)
    at = AllocationLoss(would, bound=config.bound).rest_points()
    print(
        f"IR {ir}, {classes} classes: {int((at > 0).sum())} part, the rarest rests at {at[-1]:.3f}"
    )

# %% [markdown]
# Half of the classes both times, but at IR 2 hardly apart. $\omega_\text{Div} / \omega_\text{Con}$ goes with
# $1 / N_c^2$, and for geometric counts it is $N_0 N_{C-1} / N_c^2$: but for rounding, the rarest class rests at
# $b \ln \text{IR}$, whatever the number of classes.
#
# ```{solution-end}
# ```
#
# ```{exercise}
# :label: ex-value-bias
# Which other bias of the four projections could be left out without changing what the network can compute? Is its
# gradient zero?
# ```
#
# ```{solution-start} ex-value-bias
# :class: dropdown
# ```
#
# That of the values: the weights of attention sum to 1, so $b_v$ adds $W_\text{proj} b_v$ to every pixel, a constant
# that the projection's own bias can supply. But it *does* something, so its gradient is not zero, and it is no canary.
# (The bias of the norm could go, too: behind $W_q$, $W_k$ and $W_v$ it is one more bias of queries, keys or values.)
#
# ```{solution-end}
# ```
#
# **Take-away.** On CIFAR-10, too, the loss moves the rare classes to nearly the distance that their counts prescribe,
# and no others. At the beginning of a training no gain on Few is to be seen, in five pairs on DDPM's loss, which are
# behind on Many, and in five on OC's, which are level. And a method that fails in low precision may itself be sound:
# with attention in float32 it was. **Next.** {doc}`../book/sweeps`: the paper's grids.
