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
# (ch-general-expert)=
# # 04 · θᵍ versus θ = θᵍ ⊕ θᵉ
#
# **Objective.** Build the two halves of CALL, reserving capacity and allocating it, and measure what the expert holds.
# **Prerequisites.** {doc}`03_unet_and_ddim`; a linear layer and a squared error. **Time.** 25 minutes to read,
# seconds to run. **The one figure.** {numref}`fig-split-fid`.

# %% tags=["parameters"]
dataset = "digits"
imbalance_ratio = 50
profile = "cpu"

# %%
import pandas as pd
import torch
from torch import nn

from callkit import data, notebook, records, sliders, viz
from callkit.allocation import AllocationLoss, class_weights, saturate
from callkit.capacity import expert_scale, expert_weights, merge, reserve
from callkit.statistics import paired
from callkit.unet import UNet

words = dict(dataset=dataset, imbalance_ratio=imbalance_ratio, profile=profile)
notebook.check(**words)
study, _ = notebook.study(**words)
viz.style()
counts = data.load_long_tailed(dataset, imbalance_ratio).train.counts
splits = data.splits(counts)

# %% [markdown]
# ## Reserving capacity
#
# CALL writes each chosen weight matrix $W \in \mathbb{R}^{d \times k}$ as
#
# ```{math}
# :label: eq-reserve
# W = W^g + BA, \qquad B \in \mathbb{R}^{d \times r},\; A \in \mathbb{R}^{r \times k},\; r < \min(d, k),
# ```
#
# before training starts. The full-rank part $W^g$ is meant for majorities and general knowledge; the product
# $W^e = BA$ of rank $r$ is the {term}`expert`.
#
# ```{margin} In the paper
# Eq. (3). The form is LoRA's {cite:p}`hu2022lora`; the use is not: nothing is frozen, and both parts are trained from
# the start.
# ```
#
# For one linear layer that is:

# %%
layer = nn.Linear(20, 30)
d, k = layer.weight.shape
r = int(0.1 * min(d, k))
A = torch.randn(r, k) / k**0.5
B = torch.zeros(d, r)  # zero: at the start, theta equals theta^g
W = layer.weight + B @ A
print(f"W has {W.numel()} numbers, the expert of rank {r} has {A.numel() + B.numel()}")

# %% [markdown]
# `callkit.capacity.reserve` does this to every matrix of the U-Net's up path, with $r = \tfrac{1}{10}\min(d, k)$, the
# paper's choice, rounded down but at least 1. A convolution's weight counts as the matrix of shape $\text{out} \times
# (\text{in} \cdot k_h k_w)$. At the paper's size:

# %%
network = reserve(UNet(in_channels=3, num_classes=10))
expert = sum(e.size for e in expert_weights(network).values())
plain = sum(p.numel() for p in network.parameters()) - expert
print(
    f"{plain:,} parameters, and {expert:,} in the experts of {len(expert_weights(network))} matrices"
)

# %% [markdown]
# Two operations follow. `expert_scale(model, s)` computes with $W^g + s\,BA$ inside a `with` block: 0 is $\theta^g$, 1
# is $\theta$. `merge(model)` returns a plain network with $W^g + BA$ stored in place of $W$. It has the size and the
# speed of a network that was never decomposed, and it computes the same thing:

# %%
toy = reserve(
    UNet(
        in_channels=1, num_classes=10, channels=8, channel_mult=(1, 2), num_res_blocks=1
    )
).eval()
nn.init.xavier_uniform_(toy.tail[-1].weight)  # it starts near zero, and so does eps
for e in expert_weights(toy).values():
    nn.init.normal_(e.B, std=0.1)  # as if trained
x, t, y = (
    torch.randn(4, 1, 8, 8),
    torch.tensor([0, 250, 500, 999]),
    torch.tensor([0, 3, 9, 10]),
)
with torch.no_grad():
    full = toy(x, t, y)
    print("merged equals theta:", torch.allclose(merge(toy)(x, t, y), full, atol=1e-5))
    with expert_scale(toy, 0):
        print("scale 0 equals theta:", torch.allclose(toy(x, t, y), full, atol=1e-5))

# %% [markdown]
# Merged, the network computes the same; without its expert it does not.
#
# ## Allocating it
#
# Structure alone allocates nothing: trained with the usual loss, $W^g$ and $BA$ just share the work. CALL adds a loss
# on the distance between the two predictions,
#
# ```{math}
# :label: eq-distance
# D(\mathbf{x}_t, t, y) = \lVert \epsilon_{\theta}(\mathbf{x}_t, t, y) - \epsilon_{\theta^g}(\mathbf{x}_t, t, y) \rVert_2^2 ,
# ```
#
# in `callkit` a mean over pixels. The **consistency** term pulls $D$ down for majorities, so that $\theta^g$ alone
# can draw them. The **diversity** term pushes it up for minorities, which is *meant* to leave what $\theta$ knows about
# them to $\theta^e$ ({doc}`08_inside_the_expert` tests it):
#
# ```{math}
# :label: eq-call
# \begin{gathered}
# \mathcal{L}_\text{CALL} = \omega_\text{Con}^y D - \omega_\text{Div}^y D, \\
# \omega_\text{Con}^y = \frac{C N_y}{\sum_c N_c}, \quad
# \omega_\text{Div}^y = \frac{C}{N_y \sum_c 1/N_c} .
# \end{gathered}
# ```
#
# ```{margin} In the paper
# Eq. (4) and (5); Eq. (6) adds $\lambda \mathcal{L}_\text{CALL}$ to a base loss, with $\lambda = 1$.
# ```
#
# Both weights are 1 on a balanced set, where the loss vanishes. On ours they cross. Digits 0 to 4 are pulled and 5 to 9
# pushed: to the loss 5 is a minority, though by the split it belongs to Medium.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "The two class weights of CALL on the long-tailed training set. Where consistency lies above diversity a class pulls the two predictions together, elsewhere it pushes them apart.", "name": "fig-class-weights"}, "image": {"alt": "Two lines over the classes: the consistency weight falls from 3.6 to below 0.1, the diversity weight rises from below 0.1 to about 3.8; they cross between classes 4 and 5.", "classes": "dark-light"}}
omega_con, omega_div = class_weights(counts)
viz.class_weights(omega_con, omega_div)
# %% [markdown]
# The {term}`imbalance ratio` decides how far apart they get, but not where they cross: with counts that fall by a
# constant factor, the two are mirror images of each other, but for the rounding of small counts, and meet in the
# middle.


# %% tags=["hide-input"]
def weights_at(ratio):
    n = data.long_tailed_counts(int(counts[0]), len(counts), ratio)
    con, div = class_weights(n)
    figure = viz.class_weights(con, div)
    figure.axes[0].set_ylim(0, 5.5)
    label = f"IR {ratio}: rarest class {con[-1]:.2f} and {div[-1]:.2f}"
    alt = (
        f"Consistency falls from {con[0]:.2f} to {con[-1]:.2f}, diversity rises from {div[0]:.2f} to {div[-1]:.2f}. "
        f"Consistency is larger on {(con > div).sum()} of {len(n)} classes."
    )
    return figure, label, alt


sliders.explore(
    weights_at, "imbalance ratio", (1, 2, 5, 10, 20, 50, 100), 50, live=range(1, 151)
)
# %% [markdown]
# ### The loss as printed has no floor
#
# Look at one class with $\omega_\text{Con} < \omega_\text{Div}$. Its term is $-(\omega_\text{Div} - \omega_\text{Con})
# D$ with a fixed positive bracket, and nothing bounds $D$ from above: pushing the predictions twice as far apart gains
# four times as much. The base loss only holds $\theta$ in place; $\theta^g$ can run away, and takes the shared weights
# along. {doc}`07_a_floor_for_the_loss` shows that nothing else holds it.
#
# Near $D = 0$ the printed term does what it should. So we keep its slope there, and bound it:
#
# ```{math}
# :label: eq-bounded
# \begin{aligned}
# \mathcal{L}_\text{CALL} &= \omega_\text{Con}^y D - \omega_\text{Div}^y\, \varphi_b(D), \\
# \varphi_b(D) &= b\,\bigl(1 - e^{-D/b}\bigr).
# \end{aligned}
# ```
#
# For small $D$, $\varphi_b(D) \approx D$ and {eq}`eq-bounded` is {eq}`eq-call`. For large $D$ the gain ends, and a
# minority class comes to rest at $D^* = b \ln(\omega_\text{Div}/\omega_\text{Con})$. Noise has variance 1 per pixel, so
# predicting nothing costs 1; with $b = 0.1$ the rarest class rests at a distance that makes $\theta^g$ a poor model of
# it, yet keeps its outputs in the range of noise.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "The allocation loss of the rarest class against the distance D: as printed it falls forever, bounded it has a minimum (dot).", "name": "fig-bounded"}, "image": {"alt": "Two curves against distance. The printed loss is a straight line downwards. The bounded loss leaves zero with the same slope, bends, and has a minimum near 0.4.", "classes": "dark-light"}}
con, div = omega_con[-1].item(), omega_div[-1].item()
D = torch.linspace(0, 0.8, 200)
rest = 0.1 * torch.tensor(div / con).log()
viz.allocation_curves(
    D,
    {
        "as printed": con * D - div * D,
        "bounded, b = 0.1": con * D - div * saturate(D, 0.1),
    },
    rest=(rest.item(), (con * rest - div * saturate(rest, 0.1)).item()),
)
# %% [markdown]
# In `callkit` the whole of it is `AllocationLoss`, with presets `paper` (no bound), `released` (the authors' later
# setting: diversity × 0.2, no bound) and `bounded`, our default.

# %%
loss = AllocationLoss(counts)  # bounded
eps, eps_general = torch.randn(2, 1, 8, 8), torch.randn(2, 1, 8, 8)
head_and_tail = torch.tensor([0, len(counts) - 1])
loss(eps, eps_general, head_and_tail)

# %% [markdown]
# Two pairs of random predictions, of the most common class and of the rarest. The first pays 3.6 times its distance.
# The second is far beyond its rest point: its diversity term has reached the bound, $-0.1\,\omega_\text{Div} = -0.38$,
# of which the consistency term, $\omega_\text{Con} D = 0.06 \cdot 1.7$, takes some back. From here on only that small
# pull depends on $D$. An image whose label was dropped, for guidance, keeps the weights of its true class, though both
# predictions are then Null's; the paper does not say.
#
# A training step does not cost twice as much: the expert sits in the up path, so `UNet.forward_both` encodes once and
# decodes twice, with the same dropout masks. With `branch_share=0.5` only half of the images, drawn with chances in
# proportion to $\sqrt{\omega_\text{Div}}$, are decoded twice, and the allocation loss becomes an unbiased estimate. And
# sampling costs nothing extra once the expert is merged. Measured by `benchmarks/speed.py`, on a CPU, all variants in
# turn; the second network is the one that we take to be the paper's for CIFAR:

# %%
speed = {
    f"{which} network": records.benchmark(name)
    for which, name in (("digits", "speed"), ("CIFAR", "speed-paper"))
}
measured = {
    "training step: CALL / DDPM": "step, CALL",
    "two passes / DDPM": "step, CALL, two passes",
    "CALL with branch_share=0.5 / DDPM": "step, CALL, half",
    "CALL with precision=bf16 / DDPM": "step, CALL, bf16",
    "sampling: merged / plain": "sample, merged",
    "not merged / plain": "sample, unmerged",
}
table = {}
for which, timed in speed.items():
    table[which] = {w: timed["ratios"][name] for w, name in measured.items()}
    memory = timed["peak_memory_bytes"]
    table[which]["peak memory of a step: CALL / DDPM"] = (
        memory["step, CALL"] / memory["step, DDPM"]
    )
pd.DataFrame(table).round(2)

# %% [markdown]
# A step of CALL takes 1.7 times as long as one of DDPM, where two whole passes would take twice as long, and half of
# the images decoded twice a little over 1.4 times. (bf16 is arithmetic in bfloat16, {doc}`../book/gpu`: on a CPU it
# pays for the larger network.) Once merged, sampling costs what it always did. The memory of a step grows by a tenth on
# digits, and by a half at the paper's size.
#
# ## What the expert holds
#
# Now the question that the paper's Table 4 asks: draw images with $\theta^g$ alone and with $\theta$, and compare each
# split with real images. Below are our records: each is one training run, evaluated with the features of a small digits
# classifier ({term}`extractor` `digits`). These FIDs cannot be compared with FIDs of another extractor
# ({ref}`sec-scores`). In this book *CALL* alone is CALL on DDPM's loss; *OC + CALL* is what the paper calls CALL. A
# *study* holds all records that may be compared with one another, and `study.select` has those of one method by seed:

# %%
rows = {
    "DDPM": ("ddpm", "theta"),
    "CALL, θᵍ": ("call", "theta_g"),
    "CALL, θ": ("call", "theta"),
}
found = {
    name: study.select(method, weights=weights)
    for name, (method, weights) in rows.items()
}
columns = ["many", "medium", "few", "overall"]
fid = {
    name: {s: records.mean_std(runs, "metrics", s, "fid") for s in columns}
    for name, runs in found.items()
}


def show(scores):
    text = {
        name: {s.capitalize(): "{:.2f} ± {:.2f}".format(*v) for s, v in row.items()}
        for name, row in scores.items()
    }
    return pd.DataFrame(text).T


seeds = sorted({r["run"]["seed"] for r in found["CALL, θ"]})
one = found["CALL, θ"][0]
print(
    f"FID, lower is better; mean ± standard deviation over {len(seeds)} seeds {seeds};\n"
    f"{one['run']['steps']:,} steps, {one['evaluation']['generated_images']:,} generated images, "
    f"extractor {one['evaluation']['extractor']}"
)
show(fid)

# %% tags=["hide-input"] mystnb={"figure": {"caption": "FID by split, mean and standard deviation over seeds, on a logarithmic axis. From the records in results/, profile cpu, sampled without guidance.", "name": "fig-split-fid"}, "image": {"alt": "Grouped bars of FID for Many, Medium, Few and overall. CALL without its expert is close to the others on Many and many times worse on Few.", "classes": "dark-light"}}
viz.split_bars(fid)
# %% [markdown]
# On Many the two networks of CALL agree within a standard deviation. On Few, $\theta^g$ is an order of magnitude worse:
# it takes the expert to draw minorities. How much worse differs from seed to seed (look at the standard deviation);
# that it is worse does not. On Medium, where one of the three classes is pushed, $\theta^g$ depends on the seed: it is
# anything from level with DDPM to three times worse. (The paper's $\theta^g$ is somewhat ahead of DDPM there.) Whether
# the expert therefore *holds* what is known about minorities, as the paper reads its Table 4, is another question,
# which {doc}`08_inside_the_expert` puts to the test.
#
# Is $\theta$ better than DDPM? The same seed means the same images, timesteps and noise in training and the same noise
# in sampling, so we may compare seed by seed:

# %%
difference = {
    s.capitalize(): paired(found["CALL, θ"], found["DDPM"], s) for s in columns
}
print("FID of CALL, θ minus FID of DDPM (negative: CALL is better)")
pd.DataFrame(
    {s: [f"{v:+.2f}" for v in d.values] for s, d in difference.items()},
    index=[f"seed {n}" for n in difference["Few"].seeds],
)

# %%
interval = {
    s.capitalize(): paired(found["CALL, θ"], found["DDPM"], s, ratio=True).words()
    for s in columns
}
print("FID of CALL, θ over that of DDPM: mean over seeds and 95 % interval")
pd.DataFrame([interval], index=["CALL, θ / DDPM"])

# %% [markdown]
# On Few and overall CALL is better in each of the pairs, and the intervals lie below 1; on Many and Medium the signs
# are mixed, and the intervals contain 1: there no difference can be seen. {doc}`11_ablations` derives
# the interval, and {doc}`15_report` asks it of every claim. It covers the luck of training, on *one* training set and
# without guidance. {doc}`12_does_the_gain_last` asks what becomes of it with guidance, in longer training and on other
# data; most of it goes. And re-sampling, a simpler method, gains more ({doc}`09_rivals`).
#
# The paper's own numbers, on CIFAR-100 at IR 100 with Inception features, base loss OC (from the paper's Table 4, not
# our measurement):

# %%
label = {
    ("ddpm", "theta"): "DDPM",
    ("oc-call", "theta_g"): "CALL, θᵍ",
    ("oc-call", "theta"): "CALL, θ",
}
paper_fid = {name: {} for name in label.values()}
for row in records.paper_table(4):
    name = label[row["method"], row["weights"]]
    paper_fid[name][row["split"]] = (row["mean"], row["std"])
show(paper_fid)

# %% [markdown]
# Mind the first row. The paper's DDPM has neither OC nor CALL, so the step from DDPM to $\theta$ contains both. Its
# Table 5 has OC alone, at 8.31 overall: of the fall from 10.16 to 7.52, 1.85 come with OC and 0.79 with CALL.
#
# ### Few images, or copies?
#
# The classes at the tail have 3 to 12 training images. The balanced reference contains them, so a model could score by
# copying. Two checks. First, FID against images that were **never** trained on:

# %%
show(
    {
        name: {
            s: records.mean_std(runs, "metrics", f"unseen-{s}", "fid")
            for s in ("medium", "few")
        }
        for name, runs in found.items()
    }
)

# %% [markdown]
# The order stays. The FID on Few rises by about one, that on Medium by more, since more of its real images were trained
# on. But this is a weak check: the copy machine below beats DDPM here, too ({doc}`10_metrics`). The check only rules
# out that the score comes from having the very same images in the reference.
#
# Second, the share of generated images whose nearest real image is one that was trained on, beside the share that a
# model which does not copy would have (the trained part of all real images):

# %%
copies = {
    name: {
        s: f"{records.mean_std(runs, 'copies', s, 'nearest_is_train')[0]:.0%}"
        for s in splits
    }
    for name, runs in found.items()
}
copies["if not copying"] = {
    s: f"{one['copies'][s]['if_not_copying']:.0%}" for s in splits
}
pd.DataFrame(copies).T.rename(columns=str.capitalize)

# %%
ours, theirs = (
    {r["run"]["seed"]: r["copies"]["few"]["nearest_is_train"] for r in found[name]}
    for name in ("CALL, θ", "DDPM")
)
print("share on Few, CALL, θ minus DDPM, in percentage points")
for n in sorted(ours.keys() & theirs.keys()):
    print(f"seed {n}: {100 * (ours[n] - theirs[n]):+.1f}")

# %% [markdown]
# With all three models the nearest real image is a training image more often than with a model that does not copy, on
# Few eight to eleven times as often: with 3 images of a class that is no surprise, and CALL does not cure it. In each
# of the seeds this happens on Few a little more often with $\theta$ than with DDPM, and FID rewards that. So part of
# the gain above may be copying; {doc}`12_does_the_gain_last` separates the two.
#
# It also puts the scores into perspective. A "model" that hands out the training images of each class in turn has
# learnt nothing, and scores (`benchmarks/evidence.json`):

# %%
evidence = records.benchmark("evidence")
machine = {s: f"{evidence['copies'][s]['fid']:.2f}" for s in columns}
pd.DataFrame({"copy machine": machine}).T.rename(columns=str.capitalize)

# %% [markdown]
# In every split and overall that is better than DDPM and CALL. FID alone does not tell learning from copying: read it
# beside the checks above and beside recall ({doc}`10_metrics`).
#
# ### When the two part
#
# The distance {eq}`eq-distance` during training, by split:

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Distance between the predictions of θ and θᵍ during training, by split, one line per seed. The dotted line is the bound b.", "name": "fig-distance"}, "image": {"alt": "Distance on a logarithmic axis against training steps: after an initial phase in which all splits lie together, the lines of Few rise steeply and level off above the bound, those of Medium follow and end lower, and Many stays orders of magnitude below.", "classes": "dark-light"}}
viz.distance_curves(
    [r["training"]["curve"] for r in found["CALL, θ"]], bound=one["config"]["bound"]
)
# %% [markdown]
# For 1,500 to 2,750 steps the predictions hardly part. Then, within 500 to 750 steps, $D$ on Few rises by more than
# three orders of magnitude to its rest point (0.22 in the mean of the four classes, which have 0.13 to 0.41, weighted
# by how often each is drawn), and on Medium, because of its one pushed class, to a twentieth of that; on Many it stays
# as small as it was. *When* it happens depends on the seed; where it ends does not.
#
# ```{admonition} Pitfalls
# :class: warning
# * At $B = 0$ the two predictions are equal, and $\nabla D = 0$: the allocation loss starts on a saddle. It takes a
#   while to leave it, and until then the run looks like plain DDPM.
# * Two decodings with *different* dropout masks differ even for $B = 0$. That difference is noise to the
#   allocation loss, far larger than the signal it starts from.
# ```
#
# ## Exercises
#
# ```{exercise}
# :label: ex-balanced
# Show that both class weights are 1 on a balanced set, and check it in code. What does that mean for the *bounded* loss?
# ```
#
# ```{solution-start} ex-balanced
# :class: dropdown
# ```
#
# With $N_c = N/C$: $\omega_\text{Con} = C\,(N/C)/N = 1$ and $\omega_\text{Div} = C / \bigl((N/C)\, C\, (C/N)\bigr) =
# 1$. The printed loss vanishes for every $D$. The bounded one is $D - \varphi_b(D) \approx D^2/2b \ge 0$: it vanishes
# at $D = 0$ and to first order, and pulls the two predictions together once they differ by about $b$.

# %%
class_weights([50] * 10)

# %% [markdown]
# ```{solution-end}
# ```
#
# ```{exercise}
# :label: ex-rank-cost
# How many parameters has the expert, in our form of $BA$, if only the 3 × 3 convolutions of the up path are decomposed, as
# in the authors' later code? Which matrices are left out, and why could they matter?
# ```
#
# ```{solution-start} ex-rank-cost
# :class: dropdown
# ```

# %%
theirs = reserve(UNet(in_channels=3, num_classes=10), where="up-conv3x3")
experts = expert_weights(theirs)
print(f"{sum(e.size for e in experts.values()):,} in {len(experts)} matrices")
print(
    "left out, for example:",
    [n for n in expert_weights(network) if n not in experts][:4],
)

# %% [markdown]
# Left out are the 1 × 1 shortcuts, the attention and the projections of the time-and-class embedding. The last are
# the only place of the up path that sees the class directly: there, an expert can answer to one class without touching
# another.
#
# ```{solution-end}
# ```
#
# **Take-away.** Low rank reserves, the signed class weight allocates, and the bound is what makes it stable: majorities
# are drawn without $\theta^e$, minorities only with it. **Next.** {doc}`05_training`: train it yourself.
