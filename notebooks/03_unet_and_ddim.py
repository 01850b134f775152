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
# (ch-unet)=
# # 03 · The U-Net, the noise-prediction loss, DDIM
#
# **Objective.** Derive what `callkit.diffusion`, `callkit.unet` and `callkit.sampling` compute, on the pixels of
# digits: the loss, the network and where the class enters it, the samplers. **Prerequisites.**
# {doc}`01_two_dimensions`; convolutions. **Time.** 30 minutes to read, a minute to run. **The one figure.**
# {numref}`fig-unet`.
#
# {doc}`01_two_dimensions` built a diffusion model of points: noise in one formula, the exact answer, a small network,
# DDIM. All of that stays true of images. This chapter adds what was left out there because the plane did not need
# it: why the loss is what it is, the network that images need, and four choices in sampling that move every score
# of this book.

# %% tags=["parameters"]
dataset = "digits"
imbalance_ratio = 50
profile = "cpu"
seed = 0  # of the released DDPM
per_class = 16  # generated images a class, wherever this page computes a score

# %% tags=["remove-output"]
import copy

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from matplotlib.patches import Rectangle

from callkit import (
    data,
    metrics,
    notebook,
    objectives,
    sampling,
    sliders,
    training,
    viz,
)
from callkit.capacity import expert_weights, reserve
from callkit.checkpoints import load_model
from callkit.diffusion import NoiseSchedule
from callkit.unet import Attention, Downsample, ResBlock, UNet, Upsample

words = dict(dataset=dataset, imbalance_ratio=imbalance_ratio, profile=profile)
notebook.check(**words, seed=seed, per_class=per_class)
viz.style()
model, config = load_model(notebook.released(**words, method="ddpm", seed=seed))
model.requires_grad_(False)
real = data.load_long_tailed(dataset, imbalance_ratio)
C, size, splits = (
    model.num_classes,
    real.full.images.shape[-1],
    data.splits(real.train.counts),
)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def first_of_each_class(n):
    """The first n images of each class of the balanced set, in [-1, 1], and their labels."""
    index = torch.cat([(real.full.labels == c).nonzero()[:n, 0] for c in range(C)])
    return data.to_float(real.full.images[index]), real.full.labels[index]


# %% [markdown]
# ## Noise on pixels
#
# Step $t$ of the forward process keeps $\sqrt{1 - \beta_t}$ of each pixel and adds Gaussian noise of variance
# $\beta_t$, and all steps together are again one Gaussian, {eq}`eq-plane-noise`. The {term}`noise schedule` is that
# of {cite:t}`ho2020ddpm`, $\beta$ rising linearly from $10^{-4}$ to $0.02$. In code:

# %%
betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
alpha_bar = torch.cumprod(1 - betas, 0)


def q_sample(x0, t, eps):
    signal = alpha_bar[t].sqrt().float()[:, None, None, None]
    noise = (1 - alpha_bar[t]).sqrt().float()[:, None, None, None]
    return signal * x0 + noise * eps


schedule = NoiseSchedule()
digits, labels = first_of_each_class(20)
generator = rng()
t = torch.randint(1000, labels.shape, generator=generator)
eps = torch.randn(digits.shape, generator=generator)
assert torch.equal(q_sample(digits, t, eps), schedule.q_sample(digits, t, eps))

# the same, step by step: 300 steps of one pixel of value 0.7, many times over
x = torch.full((20_000,), 0.7, dtype=torch.float64)
for beta in betas[:300].tolist():
    noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    x = (1 - beta) ** 0.5 * x + beta**0.5 * noise
print(f"step by step: mean {x.mean():.3f}, variance {x.var():.3f}")
print(
    f"in one go:    mean {0.7 * alpha_bar[299].sqrt():.3f}, variance {1 - alpha_bar[299]:.3f}"
)

# %% [markdown]
# Images are scaled to $[-1, 1]$: pixels of the full signal reach 1, and the full noise has a standard deviation of 1.
# Move the slider: a person reads most digits until $t \approx 100$; at 200 half of them are guesses. From about
# $t = 600$ on there is nothing left to see.

# %% tags=["hide-input"]
one_each, _ = first_of_each_class(1)
fixed = torch.randn(one_each.shape, generator=rng(1))
frames, names, alts = [], [], []
for level in (0, 25, 50, 100, 200, 300, 400, 500, 700, 999):
    noised = q_sample(one_each, torch.full((C,), level), fixed)
    framed = F.pad(noised[:, 0], (1, 1, 1, 1), value=float("nan"))
    tiles = framed.view(2, C // 2, size + 2, size + 2).permute(0, 2, 1, 3)
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(6.4, 2.2), width_ratios=(1, 1.5)
    )
    plt.close(figure)
    left.plot(alpha_bar.sqrt(), color=viz.BLUE)
    left.plot((1 - alpha_bar).sqrt(), color=viz.VERMILION)
    left.plot(level, alpha_bar[level].sqrt(), "o", color=viz.BLUE)
    left.plot(level, (1 - alpha_bar[level]).sqrt(), "o", color=viz.VERMILION)
    left.text(80, 1.04, "signal", color=viz.BLUE)
    left.text(640, 1.04, "noise", color=viz.VERMILION)
    left.set(xlabel="timestep t", ylim=(0, 1.15))
    grey = dict(cmap="gray", vmin=-1, vmax=1, interpolation="none")
    right.imshow(tiles.reshape(2 * (size + 2), -1), **grey)
    right.set_axis_off()
    frames.append(viz.png(figure, dpi=90))
    snr = alpha_bar[level] / (1 - alpha_bar[level])
    names.append(f"t = {level}, signal-to-noise ratio {snr:.2g}")
    alts.append(
        f"Ten digits at timestep {level}, and the curves of signal and noise over t."
    )
sliders.frame_slider(frames, names, alts, "timestep t", start=4)

# %% [markdown]
# At $t = 999$ the signal is not zero. Sampling starts from pure noise all the same; {ref}`ex-unet-start` asks what that
# costs.
#
# ## The loss
#
# ```{margin} In the paper
# Eq. (1), and Eq. (2) with the class; $w_t = 1$ from there on. The paper counts $t = 1 \dots T$, the code
# $0 \dots T - 1$.
# ```
#
# A generative model should make the data likely. Ours runs the chain backwards: it starts from $p(\mathbf{x}_T) =
# \mathcal{N}(0, I)$, and each of its steps is a Gaussian, $p_\theta(\mathbf{x}_{t-1} \mid \mathbf{x}_t, y) =
# \mathcal{N}(\mu_\theta(\mathbf{x}_t, t, y),\, \sigma_t^2 I)$, while $q$ stands for the process that adds noise. (In
# this section $\sigma_t$ is the standard deviation of such a *reverse step*, which we may choose, and not $\sqrt{1 -
# \bar\alpha_t}$ as in {doc}`01_two_dimensions`.) For a chain of small steps the likelihood has a lower bound that
# splits into one term per step (Jensen's inequality, and Bayes' rule in each step):
#
# ```{math}
# \begin{aligned}
# \log p_\theta(\mathbf{x}_0 \mid y) \ge \mathbb{E}_q \Bigl[ & \log p_\theta(\mathbf{x}_0 \mid \mathbf{x}_1, y) \\
# & - \sum_{t > 1} \operatorname{KL}\bigl( q(\mathbf{x}_{t-1} \mid \mathbf{x}_t, \mathbf{x}_0) \,\Vert\, p_\theta(\mathbf{x}_{t-1} \mid \mathbf{x}_t, y) \bigr) \\
# & - \operatorname{KL}\bigl( q(\mathbf{x}_T \mid \mathbf{x}_0) \,\Vert\, p(\mathbf{x}_T) \bigr) \Bigr] .
# \end{aligned}
# ```
#
# The last term has no parameters. The terms of the sum ask: how far is the model's step from the step that we would
# take if we *knew* the image? That step is Gaussian, by Bayes' rule for two Gaussians:
#
# ```{math}
# :label: eq-unet-posterior
# \begin{aligned}
# q(\mathbf{x}_{t-1} \mid \mathbf{x}_t, \mathbf{x}_0) &= \mathcal{N}\bigl(\tilde\mu_t,\, \tilde\beta_t I\bigr), \qquad
# \tilde\beta_t = \frac{1 - \bar\alpha_{t-1}}{1 - \bar\alpha_t}\,\beta_t , \\
# \tilde\mu_t &= \frac{\sqrt{\bar\alpha_{t-1}}\,\beta_t}{1 - \bar\alpha_t}\, \mathbf{x}_0
# + \frac{\sqrt{\alpha_t}\,(1 - \bar\alpha_{t-1})}{1 - \bar\alpha_t}\, \mathbf{x}_t ,
# \end{aligned}
# ```
#
# with $\alpha_t = 1 - \beta_t$. The model does not know $\mathbf{x}_0$. But it sees $\mathbf{x}_t$, and
# $\mathbf{x}_0 = (\mathbf{x}_t - \sqrt{1 - \bar\alpha_t}\,\epsilon) / \sqrt{\bar\alpha_t}$: to guess the image and to
# guess the noise are the same thing. With this expression for $\mathbf{x}_0$, $\tilde\mu_t$ becomes
#
# ```{math}
# :label: eq-unet-mean
# \begin{aligned}
# \tilde\mu_t &= \frac{1}{\sqrt{\alpha_t}} \Bigl( \mathbf{x}_t - \frac{\beta_t}{\sqrt{1 - \bar\alpha_t}}\, \epsilon \Bigr), \\
# \mu_\theta &= \frac{1}{\sqrt{\alpha_t}} \Bigl( \mathbf{x}_t - \frac{\beta_t}{\sqrt{1 - \bar\alpha_t}}\, \epsilon_\theta(\mathbf{x}_t, t, y) \Bigr) .
# \end{aligned}
# ```
#
# The divergence of the two Gaussians, the model's with variance $\sigma_t^2$ in each direction, depends on $\theta$
# only through the means, as $\lVert \tilde\mu_t - \mu_\theta \rVert^2 / 2 \sigma_t^2$, hence
#
# ```{math}
# :label: eq-unet-weight
# \begin{aligned}
# \log p_\theta(\mathbf{x}_0 \mid y) &\ge - \sum_t \mathbb{E}\, w_t\, \lVert \epsilon_\theta(\mathbf{x}_t, t, y) - \epsilon \rVert_2^2 + \text{const}, \\
# w_t &= \frac{\beta_t^2}{2 \sigma_t^2\, \alpha_t\, (1 - \bar\alpha_t)} .
# \end{aligned}
# ```
#
# The bound's last step, from $\mathbf{x}_1$ to the image, has this form too: at $t = 1$ the mean of {eq}`eq-unet-mean`
# is $\mathbf{x}_0$ itself. The whole model is a regression of noise, with a weight for each timestep. A check of the
# algebra, term against term:

# %%
alpha, before = 1 - betas, torch.cat([torch.ones(1), alpha_bar[:-1]])
variance = betas  # sigma_t^2; the other usual choice is the posterior's
w = betas**2 / (2 * variance * alpha * (1 - alpha_bar))

level = 300
x0, eps, guess = torch.randn(3, 64, generator=generator, dtype=torch.float64)
x_t = alpha_bar[level].sqrt() * x0 + (1 - alpha_bar[level]).sqrt() * eps


def mean_from_image(x0, x_t, t):
    by_image = before[t].sqrt() * betas[t] / (1 - alpha_bar[t])
    by_state = alpha[t].sqrt() * (1 - before[t]) / (1 - alpha_bar[t])
    return by_image * x0 + by_state * x_t


def mean_from_noise(eps, x_t, t):
    return (x_t - betas[t] / (1 - alpha_bar[t]).sqrt() * eps) / alpha[t].sqrt()


assert torch.allclose(mean_from_image(x0, x_t, level), mean_from_noise(eps, x_t, level))
gap = mean_from_noise(eps, x_t, level) - mean_from_noise(guess, x_t, level)
divergence = gap.pow(2).sum() / (2 * variance[level])
assert torch.allclose(divergence, w[level] * (eps - guess).pow(2).sum())

# %% [markdown]
# **Then the weight is thrown away.** {cite:t}`ho2020ddpm` set $w_t = 1$ because the samples look better, and
# most code has followed, the paper too. It is a choice about where the network's effort goes:

# %%
share_early = (w[:100] / w.sum()).sum()
print(f"share of the weight on the first tenth of the timesteps: {share_early:.0%}")
print("and with w = 1: 10%")

# %% [markdown]
# The bound has its largest weights where the noise is hardly visible: a likelihood counts every grey level. With
# $w_t = 1$ the middle and the large $t$ count for more, where it is decided *what* the image shows. (Focal loss, in
# {doc}`09_rivals`, undoes just that.)
#
# Why regress the noise and not the image? For one $t$ it makes no difference, as we saw; across $t$ it is a weight
# once more,
#
# ```{math}
# :label: eq-unet-snr
# \lVert \hat{\mathbf{x}}_0 - \mathbf{x}_0 \rVert^2 = \frac{1 - \bar\alpha_t}{\bar\alpha_t}\, \lVert \epsilon_\theta - \epsilon \rVert^2 ,
# ```
#
# so the two losses weight the same errors differently: an unweighted loss on the image would give an error of the noise
# the weight 25,000 at $t = 999$ and one ten-thousandth at $t = 0$; an unweighted loss on the noise counts all timesteps
# alike. The figure has the errors of the released DDPM in both units, and the cost of the best guess that does not look
# at $\mathbf{x}_t$, the mean training image of the class:

# %%
grid = torch.arange(0, 1000, 40)
by_t = []
for level in grid.tolist():
    t = torch.full_like(labels, level)
    eps = torch.randn(digits.shape, generator=generator)
    by_t.append(objectives.mse(model(q_sample(digits, t, eps), t, labels), eps).mean())
in_noise = torch.stack(by_t)
in_pixels = in_noise * ((1 - alpha_bar) / alpha_bar).float()[grid]
trained_on, of = data.to_float(real.train.images), real.train.labels
means = torch.stack([trained_on[of == c].mean(0) for c in range(C)])
blind = objectives.mse(means[labels], digits).mean()

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Left: the weight of each timestep in the bound (mean 1) and in the loss that is used. Right: mean squared error of the released DDPM on 20 images of each class, as noise and as image; dotted, that of the mean training image of the class. Log axes.", "name": "fig-unet-loss"}, "image": {"alt": "Left: the bound's weight falls from about 50 at t = 0 to a half and rises slowly to 1, where the used weight lies throughout. Right: the error in noise falls from nearly 1 at t = 0 by orders of magnitude; the error in the image rises from almost nothing and crosses the dotted line of the class means between t = 500 and 600.", "classes": "dark-light"}}
figure, (left, right) = plt.subplots(1, 2)
plt.close(figure)
left.plot(w / w.mean(), color=viz.VERMILION, label="bound")
left.axhline(1, color=viz.BLUE, label="used")
left.set(xlabel="timestep t", ylabel="weight", yscale="log")
right.plot(grid, in_noise, color=viz.BLUE, label="noise")
right.plot(grid, in_pixels, color=viz.GREEN, label="image")
right.axhline(blind, color=viz.INK, linestyle=":")
right.set(xlabel="timestep t", ylabel="mean squared error", yscale="log")
for axes in (left, right):
    axes.legend()
figure
# %% [markdown]
# At small $t$ the image is easy to predict and the noise hard; at large $t$ it is the other way round. At $t = 0$ the
# image is given; the noise is all but invisible, and the error is not far below 1, which is what predicting zero costs.
# At large $t$ the noise is given, and the best guess of the image is the mean image of its class (dotted). There
# the network's implied image is *worse* than that mean: an error of the noise so small that the loss does not notice is
# a large one in the image. Samplers clip for this reason, among others.
#
# `callkit.objectives.ddpm` is this loss, a mean over pixels, with one $t$ and one $\epsilon$ per image.
#
# ## The network
#
# The prediction must have the shape of the image, know fine detail (what is the noise at this pixel?) and coarse
# content (which digit is it?). A U-Net {cite:p}`ronneberger2015unet` has both: a *down* path that halves the image and
# widens the features, an {term}`up path` that reverses it, and {term}`skip connections <skip connection>` that hand
# each feature map of the one to the other. Its blocks are those of wide residual networks {cite:p}`zagoruyko2016wrn`.
# At some resolutions a block ends with {term}`attention`: each pixel asks all others a question, a *query*, compares it
# with the *key* that each of them offers, and takes in a mean of their *values*, in which those count most whose key
# fits. A convolution of 3 × 3 sees neighbours alone; attention lets distant parts of an image agree.
#
# Here is the network of {cite:t}`ho2020ddpm` for CIFAR, which we take to be the paper's, plotted from its modules:

# %%
cifar = UNet(in_channels=3, num_classes=10)  # 32 x 32, the paper's size

# %% tags=["hide-input"] mystnb={"figure": {"caption": "The U-Net for CIFAR, a box per layer in the order of computation; lower is coarser. A dot marks attention. Blue: the up path, whose matrices CALL decomposes. Grey lines: skip connections, one line for all of a level. Every residual block is told time and class.", "name": "fig-unet"}, "image": {"alt": "A U of boxes. From the left, boxes step down from 32 by 32 pixels and 128 channels to 4 by 4 and 256; at the right blue boxes step up again, three to a level. Horizontal lines join the two sides. A bar below, labelled time and class, feeds all residual blocks.", "classes": "dark-light"}}


def sketch(net, size):
    layers = [("head", net.head)]
    for part in ("down", "middle", "up"):
        layers += [(part, layer) for layer in getattr(net, part)]
    layers.append(("tail", net.tail))
    figure, axes = plt.subplots(figsize=(6.4, 3.0))
    plt.close(figure)
    depth = sum(isinstance(layer, Downsample) for _, layer in layers)
    level, widths, skip_from, places = 0, {}, {}, {}
    for x, (part, layer) in enumerate(layers):
        level += isinstance(layer, Downsample) - isinstance(layer, Upsample)
        resampling = isinstance(layer, Downsample | Upsample)
        color, alpha = (viz.BLUE, 1) if part == "up" else (viz.INK, 0.6)
        low, height = (-level - 0.15, 0.3) if resampling else (-level - 0.3, 0.6)
        axes.add_patch(Rectangle((x, low), 0.8, height, color=color, alpha=alpha, lw=0))
        places.setdefault(part, []).append(x + 0.4)
        if part == "down":
            skip_from[level] = x + 0.4
        if isinstance(layer, ResBlock):
            widths.setdefault(level, layer.conv2.out_channels)
            axes.plot(x + 0.4, -depth - 0.6, "^", color=viz.ORANGE, ms=3)
            if isinstance(layer.attention, Attention):
                axes.plot(x + 0.4, -level, "o", color="white", ms=3)
            if part == "up" and level in skip_from:
                ends = [skip_from.pop(level), x + 0.4]
                axes.plot(ends, [-level + 0.4] * 2, color=viz.INK, lw=0.8)
    end, bottom = len(layers) - 0.2, -depth - 1.3
    axes.add_patch(Rectangle((0, bottom), end, 0.55, color=viz.ORANGE, lw=0))
    in_box = dict(ha="center", va="center", color="black")
    axes.text(end / 2, bottom + 0.25, "time + class", **in_box)
    for level, width in widths.items():
        text = f"{size >> level} × {size >> level}, {width}"
        axes.text(-0.5, -level, text, ha="right", va="center")
    for part, word in {"down": "encode", "up": "decode: W = Wᵍ + BA"}.items():
        color = viz.BLUE if part == "up" else viz.INK
        axes.text(np.mean(places[part]), 0.65, word, ha="center", color=color)
    axes.set(xlim=(-9, len(layers)), ylim=(bottom - 0.1, 1))
    axes.set_axis_off()
    return figure


sketch(cifar, 32)

# %% [markdown]
# In numbers, for this network and for the one that draws the digits of this book (two levels, one residual block in
# each):

# %%
parts = {
    "time": "time",
    "label": "class",
    "head": "first convolution",
    "down": "down path",
    "middle": "middle",
    "up": "up path",
    "tail": "last convolution",
}


def sizes(net):
    count = dict.fromkeys(parts.values(), 0)
    for name, p in net.named_parameters():
        count[parts[name.split(".")[0]]] += p.numel()
    return count | {"all": sum(count.values())}


table = pd.DataFrame({"CIFAR": sizes(cifar), dataset: sizes(model)})
for name in list(table):
    table[f"{name}, share"] = (table[name] / table.loc["all", name]).map(
        "{:.1%}".format
    )
table.map(lambda v: f"{v:,}" if isinstance(v, int | np.integer) else v)

# %% [markdown]
# **Most of the network is its up path**, since each of its blocks takes in a skip as well, and each level has one block
# more than in the down path. This is the part that CALL decomposes. What is in it, and what the {term}`expert` of rank
# $\frac{1}{10}\min(d, k)$ adds:

# %%
kinds = {
    "conv1": "3 × 3 convolutions",
    "conv2": "3 × 3 convolutions",
    "conv": "upsampling convolutions",
    "shortcut": "1 × 1 shortcuts",
    "attention": "attention",
    "emb": "projections of time + class",
    "norm1": "norms",
    "norm2": "norms",
}
reserved = reserve(UNet(in_channels=3, num_classes=10))
inside = {k: {"matrices": 0, "parameters": 0, "expert": 0} for k in kinds.values()}
for name, p in cifar.up.named_parameters():
    inside[kinds[name.split(".")[1]]]["parameters"] += p.numel()
for name, e in expert_weights(reserved).items():
    row = inside[kinds[name.split(".")[2]]]
    row["matrices"] += 1
    row["expert"] += e.size
table = pd.DataFrame(inside).T
share = (table["parameters"] / table["parameters"].sum()).map("{:.1%}".format)
table.map("{:,}".format).assign(**{"of the up path": share})

# %% [markdown]
# ### A residual block, and where the class enters
#
# All the work is done by one kind of block. Time and class are *one* vector, `emb`, which each block projects to its
# own width and adds to its features. The timestep enters `emb` as waves: sines and cosines of $t$ at frequencies from
# fast to slow, so that near timesteps look alike and distant ones do not. Two linear layers make a vector of them. The
# class adds another vector, which is learnt:


# %%
def residual(block, x, emb):
    h = block.conv1(F.silu(block.norm1(x)))
    h = h + block.emb(F.silu(emb))[:, :, None, None]  # all that a block sees of t, y
    h = block.conv2(F.silu(block.norm2(h)))  # in training: dropout before it
    return block.attention(h + block.shortcut(x))


def embedding(net, t, y):
    channels = net.time[0].in_features
    angles = t[:, None] * 10_000 ** (-torch.arange(0, channels, 2) / channels)
    waves = torch.stack([angles.sin(), angles.cos()], -1).flatten(1)
    classes = F.pad(net.label.weight, (0, 0, 0, 1))  # one row more, of zeros: Null
    return net.time(waves) + classes[y]


def unet(net, x, t, y):
    emb = embedding(net, t, y)
    h = net.head(x)
    skips = [h]
    for layer in net.down:
        h = residual(layer, h, emb) if isinstance(layer, ResBlock) else layer(h)
        skips.append(h)
    for layer in net.middle:
        h = residual(layer, h, emb)
    # here encode() ends and decode() begins
    for layer in net.up:
        if isinstance(layer, ResBlock):
            h = residual(layer, torch.cat([h, skips.pop()], 1), emb)
        else:
            h = layer(h)
    return net.tail(h)


t = torch.randint(1000, labels.shape, generator=generator)
y = torch.where(torch.rand(len(labels), generator=generator) < 0.2, C, labels)
x_t = q_sample(digits, t, torch.randn(digits.shape, generator=generator))
assert torch.allclose(unet(model, x_t, t, y), model(x_t, t, y), atol=1e-5)

# %% [markdown]
# `callkit.unet.UNet` is this with checks, dropout masks and the cut in the middle: `encode` returns what the two
# halves share (the deepest features, the skips and `emb`), and `decode` goes on from there. CALL predicts twice and
# needs the first half only once.
#
# Two facts about the class matter later. {term}`Null`, "no class", adds exactly nothing. And no convolution is told the
# class: it comes in only through the blocks' projections `emb`. They are a small share of the parameters, and an
# expert there can answer to one class without touching the others ({doc}`07_a_floor_for_the_loss` measures what happens
# when only 3 × 3 convolutions have an expert). How much of the effect of the class arises in the up path alone? Encode
# *without* a class, decode with it, and compare with telling both halves:


# %%
def share_by(told, level):
    """Share of eps(y) - eps(Null) that telling the class to one half alone makes."""
    t = torch.full_like(labels, level)
    x_t = q_sample(digits, t, torch.randn(digits.shape, generator=rng(level)))
    with_class = model.encode(x_t, t, labels)
    without = model.encode(x_t, t, torch.full_like(labels, C))
    if told == "decode":
        mixed = without._replace(emb=with_class.emb)
    else:
        mixed = with_class._replace(emb=without.emb)
    null = model.decode(without)
    whole, part = model.decode(with_class) - null, model.decode(mixed) - null
    return ((whole * part).sum() / whole.pow(2).sum()).item()


pd.DataFrame(
    {
        f"t = {level}": {
            f"told to {half} alone": f"{share_by(half, level):.0%}"
            for half in ("encode", "decode")
        }
        for level in (100, 300, 500, 700, 900)
    }
)

# %% [markdown]
# (The shares need not sum to one, as the network is not linear.) The up path by itself makes about a quarter of the
# effect, and half of it at the largest $t$. Most of the class's effect comes from the down path and the middle,
# which `encode` runs through. $\theta^g$ and $\theta$ share these, so $\theta^g$ knows well which class was asked for,
# whatever the expert holds.
#
# ## DDIM
#
# ```{margin} In the paper
# "50-step DDIM solver", Section 5.1.
# ```
#
# The noise is predicted; how does one draw an image? {cite:t}`song2021ddim` note that the loss only knows
# $q(\mathbf{x}_t \mid \mathbf{x}_0)$, never the joint distribution of $\mathbf{x}_t$ and $\mathbf{x}_{t-1}$. Any
# process with the right marginals will do, and the simplest one keeps the *same* noise along the whole way. From
# $\mathbf{x}_t$ and the prediction follows an image, and from the image and the prediction follows the state at any
# smaller $u < t$:
#
# ```{math}
# :label: eq-unet-ddim
# \hat{\mathbf{x}}_0 = \frac{\mathbf{x}_t - \sqrt{1 - \bar\alpha_t}\,\hat\epsilon}{\sqrt{\bar\alpha_t}}, \qquad
# \mathbf{x}_u = \sqrt{\bar\alpha_u}\,\hat{\mathbf{x}}_0 + \sqrt{1 - \bar\alpha_u}\,\hat\epsilon .
# ```
#
# Nothing random, and nothing that asks for small steps. With the two additions of an image sampler, clipping and
# {term}`guidance <guidance scale>`, both of which we come to, DDIM is


# %%
def ddim_by_hand(x, y, grid, scale=1.0, clip=True):
    for t, u in zip(grid, [*grid[1:], None], strict=True):
        at = torch.full_like(y, t)
        eps = model(x, at, y)
        if scale != 1:
            null = model(x, at, torch.full_like(y, C))
            eps = null + scale * (eps - null)
        signal, noise = alpha_bar[t].sqrt().float(), (1 - alpha_bar[t]).sqrt().float()
        x0 = (x - noise * eps) / signal
        if clip:
            x0 = x0.clamp(-1, 1)
            eps = (x - signal * x0) / noise
        x = x0 if u is None else q_sample(x0, torch.full_like(y, u), eps)
    return x


y = sampling.balanced_labels(C, 2)
start = torch.randn(len(y), 1, size, size, generator=rng())
grid = sampling.ddim_timesteps(1000, 50)  # 980, 960, ..., 0
paths = {}
for scale in (1.0, 2.5):
    paths[scale] = list(sampling.ddim(model, schedule, start, y, 50, scale))
    theirs, ours = paths[scale][-1].x, ddim_by_hand(start, y, grid, scale)
    assert torch.allclose(theirs, ours, atol=1e-3)
    print(f"scale {scale}: largest difference {(theirs - ours).abs().max():.1e}")

# %% tags=["hide-input"] mystnb={"figure": {"caption": "DDIM on its way from noise to a 0 and a 9: the state, and the image that the network implies at that timestep.", "name": "fig-unet-path"}, "image": {"alt": "Four rows of small digits over falling timesteps. The states go from noise to digits. The implied images are black and white speckles at first, then blurred, and sharpen into the same digits well before the state shows them.", "classes": "dark-light"}}
shown = [s for s in paths[1.0] if s.t % 100 == 80 or s.t == 0]
rows, names = [], []
for i in (0, len(y) - 1):
    for what, word in (("x", "state"), ("x0", "implied image")):
        rows.append(data.to_uint8(torch.stack([getattr(s, what)[i] for s in shown])))
        names.append(f"{y[i]}, {word}")
figure = viz.image_rows(rows, names)
for axes, s in zip(figure.axes, shown, strict=False):
    axes.set_title(f"{s.t}", fontsize=8, pad=2)
figure

# %% [markdown]
# The first $\hat{\mathbf{x}}_0$ is no image at all (the clip is what keeps it in range), the next ones are blurred
# means, the best guess from what is little more than noise. This is why one step is not enough: each step replaces
# the guess by a better-informed one.
#
# ### The ancestral sampler
#
# The chain of the derivation can be sampled as it is, a thousand steps with fresh noise in each:
# {term}`ancestral sampling`, the paper's Algorithm 1, $\mathbf{x}_{t-1} = \mu_\theta + \sigma_t \mathbf{z}$ with
# $\mu_\theta$ from {eq}`eq-unet-mean`. `callkit` forms the same mean from the implied image by
# {eq}`eq-unet-posterior`, so that the image can be clipped first. Without clipping the two agree:


# %%
def ancestral_by_hand(x, y, generator, last):
    for t in range(999, last - 1, -1):
        eps = model(x, torch.full_like(y, t), y).double()
        z = torch.randn(x.shape, generator=generator)
        x = (mean_from_noise(eps, x, t) + betas[t].sqrt() * z).float()
    return x


theirs = sampling.ddpm(model, schedule, start, y, rng(5), clip_x0=False)
for step in theirs:
    if step.t == 950:
        break
ours = ancestral_by_hand(start, y, rng(5), last=950)
assert torch.allclose(step.x, ours, atol=1e-4)

# %% [markdown]
# ### How many steps?
#
# An ancestral chain of fewer steps is a chain on a coarser schedule, whose $\bar\alpha$ are a subset of the thousand.
# The network is told the original $t$. The noise that the chain adds in each step may have either of two variances,
# "large" ($\beta_t$, the usual choice) and "small" ($\tilde\beta_t$). DDIM and the two chains, scored by {term}`FID`
# against all real digits (lower is better; {ref}`sec-scores`):


# %%
described = metrics.describe(real.full.images)
balanced = sampling.balanced_labels(C, per_class)
noise = torch.randn(len(balanced), 1, size, size, generator=rng(2))


def score(x):
    """Scores of final states, and what the classifier of digits makes of each."""
    mine = metrics.describe(data.to_uint8(x))
    return metrics.compare(mine.features, described.features), mine


def last(steps):
    *_, step = steps
    return step.x


def coarse_chain(n, variance):
    grid = torch.tensor(sampling.ddim_timesteps(1000, n)).flip(0)
    kept = alpha_bar[grid]
    short = NoiseSchedule(betas=1 - kept / torch.cat([torch.ones(1), kept[:-1]]))

    def told(x, t, y):
        return model(x, grid[t], y)

    return last(sampling.ddpm(told, short, noise, balanced, rng(3), variance))


scores = {"DDIM": {}, "ancestral, large": {}, "ancestral, small": {}}
for n in (2, 5, 10, 20, 50):
    by_ddim = last(sampling.ddim(model, schedule, noise, balanced, n))
    scores["DDIM"][n], _ = score(by_ddim)
    for variance in ("large", "small"):
        chain = coarse_chain(n, variance)
        scores[f"ancestral, {variance}"][n], _ = score(chain)

# %% tags=["hide-input"] mystnb={"figure": {"caption": "FID against the number of steps, that is, of network evaluations, on logarithmic axes. Computed on this page: released DDPM, 16 images of each class, extractor digits. So few images raise every FID; compare along the lines alone.", "name": "fig-unet-steps"}, "image": {"alt": "Three falling lines. DDIM and the ancestral sampler with small variance drop steeply up to 5 steps and are nearly flat from there on. With large variance the ancestral sampler lies far above them at few steps and comes down with more.", "classes": "dark-light"}}
figure, axes = plt.subplots()
plt.close(figure)
for name, color in zip(scores, (viz.BLUE, viz.VERMILION, viz.ORANGE), strict=True):
    fid = [v["fid"] for v in scores[name].values()]
    axes.plot(list(scores[name]), fid, "o-", color=color, label=name)
axes.set(xscale="log", yscale="log", xlabel="steps", ylabel="FID (lower is better)")
axes.set_xticks(list(scores["DDIM"]), list(scores["DDIM"]))
axes.set_yticks([20, 50, 100, 200, 500], [20, 50, 100, 200, 500])
axes.minorticks_off()
axes.legend()
figure

# %%
table = {
    (name, word): {n: f"{v[key]:.{digits_shown}f}" for n, v in by_steps.items()}
    for word, key, digits_shown in (("FID", "fid", 1), ("recall", "recall", 2))
    for name, by_steps in scores.items()
}
pd.DataFrame(table).T.rename_axis("steps", axis=1)

# %% [markdown]
# With the large variance a coarse chain adds more noise in its last steps than it can remove, and needs many steps.
# With the small one it is on these digits no worse than DDIM *by FID*. DDIM is ahead in {term}`recall`, the share of
# real images that the samples cover; and it has no noise of its own, so that two networks can be compared from the
# same start. **The sampler and its steps belong to a score.** Our records use DDIM with 50, as the paper does.
#
# ## Guidance
#
# A tenth of the training labels was replaced by Null. So the network also predicts without a class, and one can go
# *beyond* the class, away from that prediction {cite:p}`ho2022cfg`:
#
# ```{math}
# :label: eq-unet-guidance
# \hat\epsilon = \epsilon_\theta(\mathbf{x}_t, t, \text{Null})
# + s\, \bigl( \epsilon_\theta(\mathbf{x}_t, t, y) - \epsilon_\theta(\mathbf{x}_t, t, \text{Null}) \bigr) .
# ```
#
# In this book $s = 1$ is none, 0 is unconditional, and a {term}`guidance scale` above 1 sharpens the class. CBDM, OC
# and the code of the paper's later version, {cite:t}`hong2026cm`, write $1 + w$ for $s$: their $w = 1.5$ is our 2.5.
# What it does to the samples, from the same noise in each column:

# %%
pictures = {}
scales = (1.0, 1.5, 2.5, 4.0)
y2 = sampling.balanced_labels(C, 2)
for scale in scales:
    steps = sampling.ddim(model, schedule, noise[: len(y2)], y2, 20, scale)
    pictures[f"s = {scale:g}"] = data.to_uint8(last(steps))

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Guidance: two samples of each class, 0 to 9, from the same noise at four scales. Released DDPM.", "name": "fig-unet-guidance"}, "image": {"alt": "Four rows of twenty small digits. From row to row the strokes get fuller and higher in contrast, and the two samples of a class more alike.", "classes": "dark-light"}}
viz.image_rows(list(pictures.values()), list(pictures), size=0.3)

# %% [markdown]
# And class by class: the share of samples that the classifier of digits takes for what was asked, and how different the
# samples of a class are (mean distance between two of them in the classifier's features). To save time, DDIM takes 20
# steps:


# %%
def guided(scale, clip=True):
    return list(sampling.ddim(model, schedule, noise, balanced, 20, scale, clip))


recognised, spread, by_clip = {}, {}, {}
for scale in scales:
    values, mine = score(guided(scale)[-1].x)
    by_clip[f"s = {scale:g}"] = {"clipped": values["fid"]}
    right = (mine.logits.argmax(1) == balanced).float().view(C, -1).mean(1)
    recognised[f"s = {scale:g}"] = [f"{v:.0%}" for v in right]
    features = mine.features.view(C, per_class, -1)
    spread[f"s = {scale:g}"] = [f"{torch.pdist(f).mean():.1f}" for f in features]
print("recognised as the class that was asked for")
pd.DataFrame(recognised).rename_axis("class").T

# %%
print("mean distance between two samples of a class")
real_spread = [
    torch.pdist(described.features[real.full.labels == c]).mean() for c in range(C)
]
pd.DataFrame(spread | {"real": [f"{v:.1f}" for v in real_spread]}).rename_axis(
    "class"
).T

# %% [markdown]
# Guidance pays for recognisable samples with diversity. Where nearly all samples are recognised without it there is
# nothing to buy, and only the price is paid; where they are not (look for the smallest numbers in the first row), it
# helps. A spread above that of the real images is not diversity but wrong digits, and to lose it costs nothing. So its
# best scale differs from class to class, and from method to method: {doc}`09_rivals` has the records.
#
# ## Clipping that acts
#
# Pixels lie in $[-1, 1]$; the implied image need not. `callkit` clips $\hat{\mathbf{x}}_0$ *before* the step and
# computes the noise anew. In the DDPM code that much of this field has grown from, the clipped image is used for
# nothing: the step's mean is formed from the unclipped one, and only the final image is clipped. Here this corresponds
# to `clip_x0=False`, since the conversion to grey levels clips the final image in any case. How far outside is the
# implied image?

# %% tags=["hide-input"] mystnb={"figure": {"caption": "How far the implied image leaves [-1, 1] when nothing is clipped: mean over pixels, by timestep, for three guidance scales.", "name": "fig-unet-clip"}, "image": {"alt": "Three lines over the timestep, log axis. All fall towards t = 0. With guidance the overshoot is several times as large, and larger for the larger scale.", "classes": "dark-light"}}
figure, axes = plt.subplots()
plt.close(figure)
colors = {1.0: viz.BLUE, 2.5: viz.ORANGE, 4.0: viz.VERMILION}
for scale, color in colors.items():
    name, path = f"s = {scale:g}", guided(scale, clip=False)
    by_clip[name]["not clipped"] = score(path[-1].x)[0]["fid"]
    beyond = [(s.x0.abs() - 1).clamp(min=0).mean() for s in path]
    axes.plot([s.t for s in path], beyond, "o-", color=color, label=name)
axes.set(xlabel="timestep t", ylabel="overshoot", yscale="log")
axes.invert_xaxis()
axes.legend()
figure

# %%
print("FID, 20 steps")
pd.DataFrame(by_clip).dropna(axis=1).map("{:.1f}".format)

# %% [markdown]
# Without guidance it hardly matters. With guidance it does, and the more the larger the scale: the extrapolation
# leaves the range of images, and the next step starts from what no training image ever led to. Whoever compares
# guided scores of two programs should know which of them clips.
#
# ## The weights that are sampled: EMA
#
# Training ends on whichever weights the last noisy batch left. Every score of this book uses a moving average of the
# weights instead, an {term}`EMA`:
#
# ```{math}
# :label: eq-unet-ema
# \bar\theta \leftarrow d_k\, \bar\theta + (1 - d_k)\, \theta, \qquad d_k = \min\Bigl( d,\ \frac{1 + k}{10 + k} \Bigr) .
# ```
#
# The ramp $d_k$ forgets the initial weights. Without it a short run samples, in good part, from its own initialisation:

# %%
kept = {"with the ramp": 1.0, "without": 1.0}
for k in range(2000):
    kept["with the ramp"] *= min(0.999, (1 + k) / (10 + k))
    kept["without"] *= 0.999
print("weight of the initialisation in the average after 2,000 steps, d = 0.999")
print("\n".join(f"{name}: {v:.1e}" for name, v in kept.items()))

# %% [markdown]
# What the average is worth: go on training the released network for 80 steps, at the learning rate of its run, with an
# average of $d = 0.98$ (about the last 50 steps). The loss of both, on fixed noise:

# %%
going, averaged = copy.deepcopy(model).requires_grad_().train(), copy.deepcopy(model)
optimiser = torch.optim.Adam(going.parameters(), lr=config.lr)
images = data.to_float(real.train.images)
frequency = torch.from_numpy(real.train.counts / len(real.train)).float()
generator = rng(0)
torch.manual_seed(0)  # dropout draws from the global generator

test_t = torch.randint(1000, labels.shape, generator=rng(7))
test_eps = torch.randn(digits.shape, generator=rng(8))
test_x = q_sample(digits, test_t, test_eps)


@torch.no_grad()
def test_loss(net):
    return objectives.mse(net.eval()(test_x, test_t, labels), test_eps).mean().item()


curve = {"step": [], "last weights": [], "average": []}
for k in range(80):
    index = training.batch_index(len(images), 64, seed=0, step=k)
    y = real.train.labels[index]
    told = torch.where(torch.rand(64, generator=generator) < config.label_drop, C, y)
    batch = objectives.Batch(images[index], y, told, frequency)
    loss = objectives.ddpm(going.train(), batch, schedule, generator).loss.mean()
    optimiser.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(going.parameters(), config.grad_clip)
    optimiser.step()
    with torch.no_grad():
        for mean, p in zip(averaged.parameters(), going.parameters(), strict=True):
            mean.lerp_(p, 1 - 0.98)
    if k % 5 == 4:
        curve["step"].append(k + 1)
        curve["last weights"].append(test_loss(going))
        curve["average"].append(test_loss(averaged))

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Noise-prediction loss on 20 images of each class while training goes on: of the latest weights and of their average. The dotted line is the released network.", "name": "fig-unet-ema"}, "image": {"alt": "The loss of the latest weights is high at once and scatters from step to step; that of the average is a smoother line well below it, which leaves the dotted line slowly.", "classes": "dark-light"}}
figure, axes = plt.subplots()
plt.close(figure)
axes.plot(
    curve["step"], curve["last weights"], color=viz.VERMILION, label="last weights"
)
axes.plot(curve["step"], curve["average"], color=viz.BLUE, label="average")
axes.axhline(test_loss(model), color=viz.INK, linestyle=":")
axes.set(xlabel="steps of further training", ylabel="loss")
axes.legend()
figure

# %%
for name, net in {
    "released": model,
    "last weights": going.eval(),
    "average": averaged,
}.items():
    drawn = last(sampling.ddim(net, schedule, noise, balanced, 10))
    print(f"{name:>12}: FID {score(drawn)[0]['fid']:.1f}")

# %% [markdown]
# A difference of the loss in its third decimal, which one would overlook in a training curve, is a large one in FID.
# (These 80 steps began with a fresh optimiser, whose moments were zero. They show what averaging does, not whether the
# network had anything left to learn.)
#
# ```{admonition} Pitfalls
# :class: warning
# * **`model.eval()`.** Sampling with dropout on draws other images from the same noise, without raising an error.
#   `sample` and
#   `load_model` see to it; `ddim` does not.
# * **Off by one.** $\bar\alpha$ has no entry for "no noise". The last step must go to $\bar\alpha = 1$; a sampler
#   that looks up $\max(t - \Delta, 0)$ stays at $\bar\alpha_0$ and leaves a last trace of noise.
# * **$\bar\alpha$ in float32.** It is a product of a thousand numbers near 1. `callkit` keeps it in float64.
# * **Guidance conventions.** $s$ and $1 + w$: one name, two scales.
# * **A flat loss curve.** Most of what is left is the floor of {eq}`eq-plane-risk`, and what the network still gains
#   hardly shows in it.
# ```
#
# ## Exercises
#
# ```{exercise}
# :label: ex-unet-start
# With 50 steps DDIM starts at $t = 980$, with 5 at $t = 800$, from pure noise both times. How much signal should there
# have been? Let the grid of 5 steps start at 999 instead, and compare FIDs.
# ```
#
# ```{solution-start} ex-unet-start
# :class: dropdown
# ```
#
# The state at $t$ should be $\sqrt{\bar\alpha_t}$ of an image and the rest noise:

# %%
for t in (999, 980, 800):
    print(f"t = {t}: signal {alpha_bar[t].sqrt():.3f}")
grids = {
    "800, 600, ..., 0": range(800, -1, -200),
    "999, 799, ..., 199": range(999, 0, -200),
}
for name, grid in grids.items():
    drawn = ddim_by_hand(noise, balanced, list(grid))
    print(f"{name}: FID {score(drawn)[0]['fid']:.1f}")

# %% [markdown]
# Even at 800 it is a few hundredths, and on this page's scale the two grids score alike. In principle they fail in
# different ways: one tells the network that there is signal in what is pure noise, the other takes its last look
# while much noise is left.
#
# ```{solution-end}
# ```
#
# ```{exercise}
# :label: ex-unet-null
# Sample with Null for every image. Which digits come out, and in which shares? What does that mean for guidance
# on an imbalanced set?
# ```
#
# ```{solution-start} ex-unet-null
# :class: dropdown
# ```
#
# Null was trained on a tenth of *all* images, so it should draw digits in the shares of the training set:

# %%
null = torch.full_like(balanced, C)
_, mine = score(last(sampling.ddim(model, schedule, noise, null, 20)))
found = mine.logits.argmax(1).bincount(minlength=C) / len(null)
many, drawn_many = (v[splits["many"]].sum() for v in (frequency, found))
error = (many * (1 - many) / len(null)).sqrt()
print(
    f"Many: {many:.0%} of the training set, {drawn_many:.0%} drawn, standard error {error:.1%}"
)
pd.DataFrame(
    {
        "training set": [f"{v:.0%}" for v in frequency],
        "drawn with Null": [f"{v:.0%}" for v in found],
    }
).rename_axis("class").T

# %% [markdown]
# It is dominated by the head, as the training set is: the three classes of Many together have their share, within its
# error. From digit to digit the shares stray by more than chance: more zeros, fewer ones, no fives, and eights, of
# which there were five images, several times as often as their share; if the classifier reads these images rightly.
# Guidance pushes away from *this*: a sample of a rare class is pushed away from the majorities, one of the largest
# class from what is mostly its own kind.
#
# ```{solution-end}
# ```
#
# **Take-away.** One regression of noise; a network whose larger half is the up path, and which meets the class in its
# projections alone; and a score that depends on steps, guidance, clipping and averaging as well as on training.
# **Next.** {doc}`04_general_and_expert` splits the up path in two.
