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
# (ch-plane)=
# # 01 · Diffusion from scratch in two dimensions
#
# **Objective.** Build a diffusion model of points in the plane from nothing, on long-tailed classes whose true density
# is known: watch the tail fail, and see what CALL does to it. **Prerequisites.** PyTorch; {doc}`00_quickstart`.
# **Time.** 30 minutes to read, a minute or two to run. **The one figure.** {numref}`fig-plane-samples`.
#
# With images we never know what the right answer would have been: a metric compares samples with samples. In the plane
# we can write the right answer down. So everything on this page is measured against the truth itself, and every piece
# of a diffusion model fits in a few lines.

# %% tags=["parameters"]
imbalance_ratio = 100
seeds = 3  # each draws its own training set and trains three networks on it
steps = 2000

# %% tags=["remove-output"]
import math

import matplotlib.pyplot as plt
import pandas as pd
import torch
from scipy.optimize import linear_sum_assignment
from torch import nn

from callkit import data, notebook, objectives, sampling, sliders, viz
from callkit.allocation import AllocationLoss
from callkit.capacity import expert_scale, reserve
from callkit.diffusion import NoiseSchedule

notebook.check(imbalance_ratio=imbalance_ratio, seeds=seeds, steps=steps)
viz.style()

# %% [markdown]
# ## A long tail in the plane
#
# Seven classes lie on a ring. Each is a horseshoe: a mixture of $K = 7$ round Gaussians with standard deviation
# $\rho = 0.1$ along an arc,
#
# ```{math}
# :label: eq-plane-mixture
# p(\mathbf{x}_0 \mid y) = \sum_k \pi_{k \mid y}\; \mathcal{N}(\mathbf{x}_0;\, \mu_k,\, \rho^2 I) .
# ```
#
# The sum is over the Gaussians of all classes. $\mu_k$ is the centre of Gaussian $k$, and $\pi_{k \mid y}$ its share in
# class $y$: $1/K$ for the $K$ Gaussians of that class, 0 for the others.
#
# Every class is the same horseshoe, rotated. No class is harder than another, and they differ in how many points there
# are of them *and in nothing else*. No image data set offers that.

# %%
C, K, rho = 7, 7, 0.1  # classes, Gaussians in each, their standard deviation


def rotation(angle):
    cos, sin = math.cos(angle), math.sin(angle)
    return torch.tensor([[cos, -sin], [sin, cos]])


bend = torch.linspace(-0.6, 0.6, K) * math.pi
arc = torch.stack([1.6 + 0.55 * bend.cos(), 0.55 * bend.sin()], 1)
centres = torch.cat(
    [arc @ rotation(2 * math.pi * c / C).T for c in range(C)]
)  # (C K, 2)


def draw(y, generator):
    """One point of each class in y, (B, 2)."""
    k = y * K + torch.randint(K, y.shape, generator=generator)
    return centres[k] + rho * torch.randn(len(y), 2, generator=generator)


counts = data.long_tailed_counts(1000, C, imbalance_ratio)
splits = data.splits(counts)
training_labels = torch.arange(C).repeat_interleave(torch.from_numpy(counts))


def training_set(seed):
    return draw(training_labels, torch.Generator().manual_seed(seed))


per_class = 200
labels = sampling.balanced_labels(C, per_class)
truth = draw(labels, torch.Generator().manual_seed(1000))
print("training points per class:", counts.tolist())

# %% [markdown]
# The counts fall by the exponential rule of {doc}`02_long_tailed_data`, from 1000 points to 10. Classes 0 and 1 are the
# Many {term}`split`, 2 and 3 Medium, 4 to 6 Few.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "The truth, 200 points of each class, and the training set of seed 0.", "name": "fig-plane-data"}, "image": {"alt": "Two scatter plots of seven horseshoes on a ring, open towards its centre. In the truth all are equally dense. In the training set class 0 is dense, and along the ring the classes thin out to ten points of class 6.", "classes": "dark-light"}}
COLORS = [
    viz.BLUE,
    viz.SKY,
    viz.GREEN,
    viz.PURPLE,
    viz.INK,
    viz.ORANGE,
    viz.VERMILION,
]
middles = centres.view(C, K, 2).mean(1)


def row(n, height=2.7, reach=2.8, middle=(0, 0)):
    """n square panels of the plane, from middle - reach to middle + reach."""
    figure, panels = plt.subplots(
        1, n, figsize=(height * n, height), sharex=True, sharey=True, squeeze=False
    )
    plt.close(figure)
    for axes in panels[0]:
        axes.set(
            xlim=(middle[0] - reach, middle[0] + reach),
            ylim=(middle[1] - reach, middle[1] + reach),
            aspect="equal",
            xticks=[],
            yticks=[],
        )
        axes.spines[:].set_visible(False)
    return figure, panels[0]


def scatter(axes, points, y, title):
    axes.scatter(*points.T, s=2, c=[COLORS[c] for c in y])
    axes.set_title(title)


def name_classes(axes):
    for c, (u, v) in enumerate(0.45 * middles):
        axes.text(u, v, str(c), color=COLORS[c], ha="center", va="center")


figure, panels = row(2, 3.2)
scatter(panels[0], truth, labels, "truth")
scatter(panels[1], training_set(0), training_labels, "training set")
name_classes(panels[0])
name_classes(panels[1])
figure
# %% [markdown]
# ## Adding noise
#
# A diffusion model learns to undo noise that is added in $T = 1000$ small steps. Step $t$ keeps $\sqrt{1 - \beta_t}$ of
# the point and adds noise of variance $\beta_t$, which rises linearly from $10^{-4}$ to $0.02$. All steps together are
# one Gaussian {cite:p}`ho2020ddpm`:
#
# ```{math}
# :label: eq-plane-noise
# \begin{gathered}
# \mathbf{x}_t = a_t\, \mathbf{x}_0 + \sigma_t\, \epsilon, \qquad \epsilon \sim \mathcal{N}(0, I), \\
# a_t = \sqrt{\bar\alpha_t},\; \sigma_t = \sqrt{1 - \bar\alpha_t},\; \bar\alpha_t = \prod_{i \le t} (1 - \beta_i) .
# \end{gathered}
# ```

# %%
alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)


def signal_and_noise(t):
    """a_t and sigma_t, (B, 1)."""
    return alpha_bar[t].sqrt().float()[:, None], (1 - alpha_bar[t]).sqrt().float()[
        :, None
    ]


def add_noise(x0, t, eps):
    a, sigma = signal_and_noise(t)
    return a * x0 + sigma * eps


# %% [markdown]
# `callkit.diffusion.NoiseSchedule` is the same for images, tensors of shape $(B, \text{channels}, h, w)$. A point of
# the plane is an image of one pixel with two channels:

# %%
schedule = NoiseSchedule()
generator = torch.Generator().manual_seed(0)
t = torch.randint(1000, labels.shape, generator=generator)
eps = torch.randn(len(labels), 2, generator=generator)


def image(points):
    return points[:, :, None, None]


x_t = add_noise(truth, t, eps)
assert torch.allclose(schedule.q_sample(image(truth), t, image(eps)), image(x_t))

# %% [markdown]
# ## The exact answer
#
# The network sees $\mathbf{x}_t$, $t$ and the class, and predicts $\epsilon$ by least squares. The best possible
# prediction is therefore the conditional mean, $\epsilon^*(\mathbf{x}_t, t, y) = \mathbb{E}[\epsilon \mid \mathbf{x}_t,
# y]$. For a mixture of Gaussians it has a closed form. If we knew that $\mathbf{x}_0$ came from component $k$, then
# $\mathbf{x}_t$ would be Gaussian with mean $a_t \mu_k$ and variance
#
# $$
# v_t = a_t^2 \rho^2 + \sigma_t^2 ,
# $$
#
# and of the deviation $\mathbf{x}_t - a_t \mu_k$ the share $\sigma_t^2 / v_t$ would be due to the noise, so
# $\mathbb{E}[\sigma_t \epsilon \mid \mathbf{x}_t, k] = \frac{\sigma_t^2}{v_t} (\mathbf{x}_t - a_t \mu_k)$. We do not
# know $k$, but Bayes' rule gives its probabilities $w_k$. Averaging over them,
#
# ```{math}
# :label: eq-plane-exact
# \begin{gathered}
# \epsilon^*(\mathbf{x}_t, t, y) = \frac{\sigma_t}{v_t} \Bigl( \mathbf{x}_t - a_t \sum_k w_k \mu_k \Bigr), \\
# w_k \propto \pi_{k \mid y} \exp \Bigl( -\frac{\lVert \mathbf{x}_t - a_t \mu_k \rVert^2}{2 v_t} \Bigr) .
# \end{gathered}
# ```
#
# In code, all components of all classes are in one list, and class $y$ selects among them by its log weights. One more
# row of weights is for Null, "no class": there the components of class $c$ have weight $N_c / N$ together, the share of
# the class in the training set.


# %%
class Mixture:
    """The exact noise predictor of a mixture, called like a network: model(x_t, t, y) -> eps, (B, 2, 1, 1).

    means (M, 2), one standard deviation; log_weights (classes + 1, M), the last row for Null.
    """

    def __init__(self, means, std, log_weights):
        self.means, self.std, self.log_weights = means, std, log_weights

    def __call__(self, x_t, t, y):
        x_t = x_t.flatten(1)
        a, sigma = signal_and_noise(t)
        v = a**2 * self.std**2 + sigma**2
        squared = (x_t[:, None] - a[:, None] * self.means).pow(2).sum(2)  # (B, M)
        w = (self.log_weights[y] - squared / (2 * v)).softmax(1)
        return image(sigma / v * (x_t - a * w @ self.means))


def log_weights(component_class):
    """Equal weights within a class, none outside it; over all classes N_c / N for Null."""
    own = component_class == torch.arange(C)[:, None]  # (C, M)
    within = own / own.sum(1, keepdim=True)
    null = torch.tensor(counts / counts.sum(), dtype=torch.float32) @ within
    return torch.cat([within, null[None]]).log()


exact = Mixture(centres, rho, log_weights(torch.arange(C).repeat_interleave(K)))

# %% [markdown]
# Is it right? If $\epsilon^*$ is the conditional mean, what is left of $\epsilon$ is uncorrelated with *every* function
# of $\mathbf{x}_t$. Three of them:

# %%
many = sampling.balanced_labels(C, 20_000)
t_many = torch.randint(1000, many.shape, generator=generator)
noise = torch.randn(len(many), 2, generator=generator)
x_many = add_noise(draw(many, generator), t_many, noise)
left = noise - exact(image(x_many), t_many, many).flatten(1)
for name, f in {
    "x": x_many,
    "sin 5x": (5 * x_many).sin(),
    "|x|²": x_many.pow(2).sum(1, keepdim=True),
}.items():
    product = left * (f - f.mean(0))
    z = product.mean(0) / product.std(0) * len(many) ** 0.5
    print(f"{name:>7}: covariance is {z.abs().max():.1f} standard errors from 0")

# %% [markdown]
# Each line has the larger of two coordinates, so six numbers were looked at: two or three standard errors for the
# largest are chance, and a wrong factor in $\epsilon^*$ would show as tens of them.
#
# Move the slider from clean points to noise. On the right is the direction $-\epsilon^*$ in which the rarest class is
# denoised. In heavy noise all arrows point to the origin, to which $a_t$ has shrunk every class; as noise falls they
# find first the class, then its shape.

# %% tags=["hide-input"]
axis = torch.linspace(-2.6, 2.6, 14)
grid = torch.cartesian_prod(axis, axis)


def field(axes, model, t, c):
    """Arrows of -eps for class c at timestep t."""
    y = torch.full((len(grid),), c)
    with torch.no_grad():
        arrows = -model(image(grid), torch.full_like(y, t), y).flatten(1)
    # lengths grow with the logarithm: at small t they differ a thousandfold
    size = arrows.norm(dim=1, keepdim=True)
    arrows = arrows / size * (1 + size).log()
    axes.quiver(*grid.T, *arrows.T, color=viz.INK, width=0.005, scale=25)


fixed = torch.randn(len(labels), 2, generator=generator)


def at_timestep(level):
    noised = add_noise(truth, torch.full_like(labels, level), fixed)
    figure, panels = row(2)
    scatter(panels[0], noised, labels, "all classes")
    rarest = labels == C - 1
    scatter(panels[1], noised[rarest], labels[rarest], f"class {C - 1} and −ε*")
    field(panels[1], exact, level, C - 1)
    label = f"t = {level}, signal left: {alpha_bar[level].sqrt():.3f}"
    alt = f"Points of all classes, and arrows from all over the plane towards class {C - 1}, scaled by the signal."
    return figure, label, alt


levels = (0, 25, 50, 100, 150, 200, 300, 400, 600, 999)
sliders.explore(at_timestep, "timestep t", levels, live=range(1000), dpi=80)

# %% [markdown]
# ## Sampling
#
# A sampler starts from noise and removes it in steps. DDIM {cite:p}`song2021ddim` is the shortest: the predicted noise
# implies a clean point, $\hat{\mathbf{x}}_0 = (\mathbf{x}_t - \sigma_t \hat\epsilon) / a_t$, and the next state is that
# point with *less* of the *same* noise:


# %%
def ddim(model, x, y, n_steps=50):
    grid = range(1000 - 1000 // n_steps, -1, -1000 // n_steps)  # 980, 960, ..., 0
    for step in grid:
        t = torch.full_like(y, step)
        a, sigma = signal_and_noise(t)
        eps = model(image(x), t, y).flatten(1)
        x0 = (x - sigma * eps) / a
        x = add_noise(x0, t - 1000 // n_steps, eps) if step > 0 else x0
    return x


# %% [markdown]
# `callkit.sampling.ddim` yields each step, and clips $\hat{\mathbf{x}}_0$ to $[-1, 1]$ as images need; our points are
# wider and must not be clipped. From here on we use it:

# %%
start = torch.randn(len(labels), 2, generator=torch.Generator().manual_seed(1))


def sample(model, y=labels, x=start):
    *_, last = sampling.ddim(model, schedule, image(x), y, clip_x0=False)
    return last.x.flatten(1)


from_truth = sample(exact)
assert torch.allclose(from_truth, ddim(exact, start, labels), atol=1e-4)

# %% [markdown]
# How good are samples? Between two sets of equal size there is an exact distance: match them one to one so that the
# mean squared distance of the pairs is smallest. Its root is the 2-Wasserstein distance of the two sets, in the units
# of the plane. Two fresh sets of the truth are not at distance 0 from one another, so they set the scale:


# %%
def wasserstein(points):
    """2-Wasserstein distance to the truth, class by class, (C,)."""
    cost = torch.cdist(points.view(C, -1, 2), truth.view(C, -1, 2)).pow(2)
    best = [linear_sum_assignment(c) for c in cost]
    return torch.stack(
        [c[match].mean().sqrt() for c, match in zip(cost, best, strict=True)]
    )


def by_class(rows, digits=3):
    frame = pd.DataFrame({name: values.tolist() for name, values in rows.items()}).T
    return frame.rename_axis("class", axis=1).map(f"{{:.{digits}f}}".format)


fresh = draw(labels, torch.Generator().manual_seed(1001))
more = torch.stack(
    [
        wasserstein(draw(labels, torch.Generator().manual_seed(seed)))
        for seed in range(1001, 1011)
    ]
)
by_class(
    {
        "fresh points, mean of ten sets": more.mean(0),
        "the best of them": more.amin(0),
        "the worst": more.amax(0),
        "DDIM with ε*": wasserstein(from_truth),
    }
)

# %% [markdown]
# The classes are one shape, so what differs here is luck, and there is much of it: about a factor of two between the
# best set of fresh points and the worst. With the exact predictor, 50 steps of DDIM draw samples about as good as fresh
# points. Whatever goes wrong below is due to what a network learns.
#
# ## A network
#
# A small MLP. The class enters as a learnt vector, and Null adds exactly nothing. We split it in two halves, `encode`
# and `decode`, for later.


# %%
class Net(nn.Module):
    def __init__(self, width=64):
        super().__init__()
        self.time = nn.Linear(16, width)
        self.label = nn.Embedding(C + 1, width, padding_idx=C)  # Null: the zero vector
        self.point = nn.Linear(2, width)
        self.hidden = nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.decoder = nn.Sequential(
            nn.Linear(width, width), nn.SiLU(),
            nn.Linear(width, width), nn.SiLU(),
            nn.Linear(width, 2),
        )  # fmt: skip

    def encode(self, x_t, t, y):
        phase = t[:, None] / 1000 * math.pi * torch.arange(1, 9)
        waves = torch.cat([phase.sin(), phase.cos()], 1)
        return self.hidden(
            self.point(x_t.flatten(1)) + self.time(waves) + self.label(y)
        )

    def decode(self, state):
        return image(self.decoder(state))

    def forward(self, x_t, t, y):
        return self.decode(self.encode(x_t, t, y))

    def forward_both(self, x_t, t, y):
        """Predictions of theta and of theta^g: encode once, decode twice."""
        state = self.encode(x_t, t, y)
        full = self.decode(state)
        with expert_scale(self, 0):
            return full, self.decode(state)


print(f"{sum(p.numel() for p in Net().parameters()):,} parameters")

# %% [markdown]
# ## The loss, and its floor
#
# The loss draws a timestep and a noise for each point and compares the prediction with the noise, {eq}`eq-ddpm`. By
# hand:


# %%
def ddpm_loss(model, x0, y, generator):
    t = torch.randint(1000, y.shape, generator=generator)
    eps = torch.randn(x0.shape, generator=generator)
    predicted = model(image(add_noise(x0, t, eps)), t, y).flatten(1)
    return (predicted - eps).pow(2).mean(1)


# %% [markdown]
# `objectives.ddpm` is the same with a `Batch`, which also tells the loss the class frequencies and which labels were
# dropped:

# %%
frequency = torch.tensor(counts / counts.sum(), dtype=torch.float32)
net = Net()
batch = objectives.Batch(image(truth), labels, labels, frequency)
ours = ddpm_loss(net, truth, labels, torch.Generator().manual_seed(2))
theirs = objectives.ddpm(net, batch, schedule, torch.Generator().manual_seed(2)).loss
assert torch.allclose(ours, theirs, atol=1e-6)

# %% [markdown]
# No network can bring this loss to zero, for $\mathbf{x}_t$ does not determine $\epsilon$. Write
# $\epsilon_\theta - \epsilon = (\epsilon_\theta - \epsilon^*) + (\epsilon^* - \epsilon)$ and square. The cross term
# vanishes, since $\epsilon^* - \epsilon$ is uncorrelated with every function of $\mathbf{x}_t$:
#
# ```{math}
# :label: eq-plane-risk
# \mathbb{E} \lVert \epsilon_\theta - \epsilon \rVert^2 =
# \underbrace{\mathbb{E} \lVert \epsilon^* - \epsilon \rVert^2}_{\text{floor}} +
# \underbrace{\mathbb{E} \lVert \epsilon_\theta - \epsilon^* \rVert^2}_{\text{excess risk}} .
# ```
#
# (What we print is per coordinate, half of this.) The floor is a property of the data. The **excess risk** is a
# property of the network, is zero only for the exact predictor, and can be measured because we know $\epsilon^*$.

# %%
test_labels = sampling.balanced_labels(C, 2000)
test_generator = torch.Generator().manual_seed(1002)
test_t = torch.randint(1000, test_labels.shape, generator=test_generator)
test_eps = torch.randn(len(test_labels), 2, generator=test_generator)
test_x0 = draw(test_labels, test_generator)
test_x = image(add_noise(test_x0, test_t, test_eps))
test_exact = exact(test_x, test_t, test_labels)
floor = objectives.mse(test_exact, image(test_eps)).view(C, -1).mean(1)


@torch.no_grad()
def excess_risk(model):
    """By class, on fresh points: mean over timesteps and both coordinates, (C,)."""
    predicted = model(test_x, test_t, test_labels)
    return objectives.mse(predicted, test_exact).view(C, -1).mean(1)


# %% [markdown]
# ## Training
#
# One function trains all networks of this page. A tenth of the labels is dropped, that is, replaced by Null, so that
# the network also learns to predict without a class. {term}`Guidance <guidance scale>` {cite:p}`ho2022cfg` needs that
# ({doc}`03_unet_and_ddim`): it moves a prediction further away from Null's. CALL adds three things, to which we come
# below: the lines under `if rank`, those under `if lam`, and `both=lam > 0`, which asks the network for the prediction
# of $\theta^g$ as well. `endless` and `balanced` are for two separate experiments. On a first reading skip all
# arguments but `seed`.


# %%
few = torch.tensor(splits["few"])


def in_decoder(name, module):
    """What CALL decomposes."""
    return name.startswith("decoder") and isinstance(module, nn.Linear)


def train(seed, rank=None, lam=0.0, bound=0.1, endless=False, balanced=False):
    """(network, curve); the same seed means the same points, batches, timesteps, noise and initial weights.

    rank, lam, bound  of CALL; rank None reserves nothing, lam 0 does without the allocation loss
    endless   fresh points of the truth in every batch, with the class frequencies of the training set
    balanced  all classes equally often in a batch
    """
    points = training_set(seed)
    torch.manual_seed(seed)
    model = Net()
    if rank:
        reserve(model, rank, where=in_decoder)
    if lam:
        allocate = AllocationLoss(counts, lam, bound=bound)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.007)
    decay = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda i: 1 - i / steps)
    generator = torch.Generator().manual_seed(seed)
    chance = 1 / frequency[training_labels] if balanced else torch.ones(len(points))
    curve = {"step": [], "loss": [], "distance_few": []}
    for step in range(1, steps + 1):
        index = torch.multinomial(chance, 256, replacement=True, generator=generator)
        y = training_labels[index]
        x0 = draw(y, generator) if endless else points[index]
        told = torch.where(torch.rand(y.shape, generator=generator) < 0.1, C, y)
        batch = objectives.Batch(image(x0), y, told, frequency)
        out = objectives.ddpm(model, batch, schedule, generator, both=lam > 0)
        loss = out.loss.mean()
        if lam:
            extra = allocate(out.eps, out.eps_general, y)
            loss = loss + extra.loss.mean()
        if step % 50 == 0 or loss.abs() > 10:
            curve["step"].append(step)
            curve["loss"].append(loss.item())
            if lam:
                of_few = torch.isin(y, few)
                curve["distance_few"].append(extra.distance[of_few].mean().item())
        if loss.abs() > 10:
            break  # exploded
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        decay.step()
    return model, curve


ddpm = [train(seed)[0] for seed in range(seeds)]

# %%
risk = {"DDPM": torch.stack([excess_risk(model) for model in ddpm])}
samples = {"DDPM": [sample(model) for model in ddpm]}
drawn = {"DDPM": samples["DDPM"][0]}
by_class(
    {
        "floor": floor,
        "excess risk": risk["DDPM"].mean(0),
    },
    digits=4,
)

# %% [markdown]
# The floors are the same for all classes up to sampling, as they should be: rotations of one shape. The excess risk is
# not. It grows from class to class along the tail:

# %%
head, tail = risk["DDPM"].mean(0)[[0, -1]]
print(f"class {C - 1} has {tail / head:.0f} times the excess risk of class 0")

# %% [markdown]
# ## How does the tail fail?
#
# A network that sees ten points can fail in several ways. It can **memorise** them and draw copies. It can **collapse**
# onto the head and draw the wrong class. Or it can know roughly where the points are and **blur** the shape.
#
# Memorising would be no accident. The training loss is an average over the *training points*, and its minimiser is
# again an exact predictor: that of a mixture of one spike per training point, {eq}`eq-plane-exact` with $\rho = 0$. A
# large enough network that is trained for long enough can get there. So we have *two* known answers to compare with:

# %%
memoriser = Mixture(training_set(0), 0.0, log_weights(training_labels))
drawn |= {"memoriser": sample(memoriser), "truth": truth}

# %% tags=["hide-input"] mystnb={"figure": {"caption": "The rarest class: the truth, samples of the memoriser and of DDPM, over its ten training points (rings). Seed 0.", "name": "fig-plane-fail"}, "image": {"alt": "Three panels around the horseshoe of class 6. The truth fills the horseshoe. The memoriser's samples lie inside the ten rings, nearly all of them. DDPM's samples form a blurred cloud around the place of the class that covers the rings and the gaps.", "classes": "dark-light"}}
rarest = labels == C - 1
figure, panels = row(3, reach=1.2, middle=middles[C - 1].tolist())
for axes, name in zip(panels, ("truth", "memoriser", "DDPM"), strict=True):
    axes.scatter(*drawn[name][rarest].T, s=3, color=viz.VERMILION)
    ten = training_set(0)[training_labels == C - 1]
    axes.scatter(*ten.T, s=40, facecolor="none", edgecolor=viz.INK)
    axes.set_title(name)
figure

# %% [markdown]
# In numbers: the distance from a sample to the nearest training point of its class. A copy is at distance 0; fresh
# points of the truth show the distance of a model that does not copy. And, to detect a collapse, the share of samples
# that are nearer to another class's Gaussians than to those of their own:


# %%
def nearest_training_point(points):
    """Median over the samples of a class, seed 0."""
    known = [training_set(0)[training_labels == c] for c in range(C)]
    return torch.stack(
        [
            torch.cdist(p, k).min(1).values.median()
            for p, k in zip(points.view(C, -1, 2), known, strict=True)
        ]
    )


def in_another_class(points):
    nearest = torch.cdist(points, centres).argmin(1) // K
    return (nearest != labels).view(C, -1).float().mean(1)


measured = {
    "fresh points": fresh,
    "memoriser": drawn["memoriser"],
    "DDPM": drawn["DDPM"],
}
copies = {n: nearest_training_point(p) for n, p in measured.items()}
by_class({f"{n}, distance to training": v for n, v in copies.items()})

# %%
lost = {n: in_another_class(p) for n, p in measured.items()}
by_class({f"{n}, share in another class": v for n, v in lost.items()}, digits=2)

# %%
ratio = (copies["DDPM"] / copies["fresh points"])[few]
print(
    f"Few: DDPM's samples are {ratio.min():.1f} to {ratio.max():.1f} times as far from the training points\n"
    f"as fresh points are; up to {lost['DDPM'][few].max():.0%} lie in another class"
)

# %% [markdown]
# A ratio near 0 would mean copies; at 1 and more most samples are not copies. Nor does the class collapse onto another
# one: most samples stay in their own class. (The memoriser repeats the ten points of class 6, of which one lies nearer
# to another class.) What is lost is the shape. This network blurs what it has seen too little of.
#
# A network with more room, trained for longer, may do otherwise: the digits drawn by the networks of
# {doc}`04_general_and_expert` lie close to the training images in the rarest classes. Memorising would not cure the
# tail. Here is the excess risk of the perfect memoriser, beside that of our network:

# %%
by_class({"memoriser": excess_risk(memoriser), "DDPM": risk["DDPM"][0]}, digits=4)

# %% [markdown]
# On class 0, with a thousand points, to remember them is about as good as to know the density. On class 6, with ten, it
# is several times worse than our blurred network.
#
# ### Few points, or few gradients?
#
# A rare class suffers twice: it brings few *different* points, and it has a small share of every batch. On images the
# two are hard to tell apart. Here it is easy. The truth supplies as many points as we like, so we can train with
# *fresh* points in every batch; and we can draw *balanced* batches, in which all classes are equally frequent. Seed 0:

# %%
comparison = {
    "training set": risk["DDPM"][0],
    "fresh points": excess_risk(train(0, endless=True)[0]),
    "training set, balanced batches": excess_risk(train(0, balanced=True)[0]),
    "fresh points, balanced batches": excess_risk(
        train(0, endless=True, balanced=True)[0]
    ),
}
by_class(comparison, digits=4)

# %%
on_few = {name: values[few].mean() for name, values in comparison.items()}
for name, value in on_few.items():
    print(
        f"{name:>30}: {value / on_few['training set']:4.0%} of the excess risk on Few"
    )

# %% [markdown]
# In this run, one seed, classes 4 and 5 gain little from unlimited points at their usual share of each batch, and more
# from a fair share with the few points that there are. For class 6, with ten points, the two help about equally. Only
# with both does the tail come near the head. So, within a training as short as this, how often the network is asked
# about a class can matter more than how few points there are. And nothing is free: with balanced batches the excess
# risk of class 0 doubles. {doc}`09_rivals` meets the same price in re-sampled images.
#
# ## CALL
#
# {doc}`../book/method` has the whole method, {doc}`04_general_and_expert` derives it. In short: `reserve` writes each
# weight matrix of the decoder as $W^g + BA$ with $BA$ of low rank; $\theta$ is all of it, $\theta^g$ the network
# without $BA$. For a point of class $y$ let $D$ be the mean over both coordinates of
# $(\epsilon_\theta - \epsilon_{\theta^g})^2$. CALL adds to its loss
#
# ```{math}
# \lambda \left( \omega_\text{Con}^y\, D - \omega_\text{Div}^y\; b \left(1 - e^{-D/b}\right) \right), \qquad
# \omega_\text{Con}^y \propto N_y, \quad \omega_\text{Div}^y \propto 1 / N_y ,
# ```
#
# both weights with mean 1 over the classes. For class 0 the first term wins and pulls the two predictions together. For
# class 6 the second wins and pushes them apart, until $D$ is a few times $b = 0.1$. (The paper has $D$ in place of
# $b(1 - e^{-D/b})$; below we see what comes of it, and {doc}`07_a_floor_for_the_loss` why.)
#
# Besides the bound and the base loss (DDPM's, where the paper has OC's), two settings differ from the paper's: a rank
# of one quarter instead of a tenth, and $\lambda = 5$ instead of 1. With the paper's, a training as short as this one
# may end before anything is allocated ({ref}`ex-plane-saddle`). The matrices that are decomposed are those of the
# decoder, as `in_decoder` above says.

# %%
CALL = dict(rank=0.25, lam=5.0)
trained = [train(seed, **CALL) for seed in range(seeds)]
theta = [model for model, _ in trained]


def at_scale(model, scale, function):
    """function(model) with the expert scaled."""
    with expert_scale(model, scale):
        return function(model)


for name, scale in (("CALL, θᵍ", 0.0), ("CALL, θ", 1.0)):
    risk[name] = torch.stack([at_scale(m, scale, excess_risk) for m in theta])
    samples[name] = [at_scale(m, scale, sample) for m in theta]
    drawn[name] = samples[name][0]

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Samples, 200 a class from the same noise. Seed 0.", "name": "fig-plane-samples"}, "image": {"alt": "Four scatter plots of seven classes on a ring: truth, DDPM, CALL without its expert and CALL. DDPM and CALL look alike: crisp horseshoes at the head, blurred ones in the tail. Without the expert classes 4, 5 and 6 have left their places.", "classes": "dark-light"}}
# θᵍ may move a class far out: a view that holds all but a few stray points
shown = torch.cat([truth, drawn["CALL, θᵍ"]])
low, high = shown.quantile(0.002, dim=0), shown.quantile(0.998, dim=0)
view = dict(
    reach=(high - low).max().item() / 2 + 0.3, middle=((low + high) / 2).tolist()
)
figure, panels = row(4, 2.3, **view)
for axes, name in zip(panels, ("truth", "DDPM", "CALL, θᵍ", "CALL, θ"), strict=True):
    scatter(axes, drawn[name], labels, name)
name_classes(panels[0])
figure
# %% [markdown]
# The three Few classes have moved in $\theta^g$: away from where they belong, more or less *as wholes*. Nothing has
# happened to the others. Turn the expert up, $W^g + s\,BA$, and watch them come back:


# %% tags=["hide-input"]
def dial(scale):
    points = at_scale(theta[0], scale, sample)
    figure, (axes,) = row(1, 3.6, **view)
    scatter(axes, points, labels, f"s = {scale:.2g}")
    name_classes(axes)
    off = [(points - truth)[labels == c].mean(0).norm().item() for c in few]
    label = f"s = {scale:.2g}: centres of Few off by {min(off):.2f} to {max(off):.2f}"
    return figure, label, "Samples of all classes, 200 each."


sliders.explore(
    dial,
    "expert scale s",
    [i / 10 for i in range(11)],
    live=[i / 20 for i in range(-20, 41)],
    dpi=80,
)

# %% [markdown]
# ### What moves?
#
# A class that moves as a whole suggests that the two predictions differ by a *constant*: one vector per class, whatever
# $\mathbf{x}_t$ and $t$. The share of $D$ that such a constant explains:

# %%
with torch.no_grad():
    both = theta[0].forward_both(test_x, test_t, test_labels)
difference = (both[0] - both[1]).view(C, -1, 2)
constant = difference.mean(1)  # (C, 2)
D = difference.pow(2).mean((1, 2))
share = constant.pow(2).mean(1) / D
by_class({"D": D, "explained by a constant": share})

# %%
print(f"Few: a constant explains {share[few].min():.0%} to {share[few].max():.0%} of D")

# %% [markdown]
# To *be wrong* about a class, $\theta^g$ need not forget its shape. A shift is enough, and it is cheap: to produce it
# $\theta^g$ needs to know the class and nothing else. What the expert then holds is the way back.
# {doc}`08_inside_the_expert` finds something like it in a network that draws digits, though there a constant in the
# prediction is not all of it.
#
# ## Better than DDPM?
#
# Every seed has its own training set, and within a seed all methods share everything that is drawn. One more network
# belongs in the comparison: **reserved only**, with the expert but without the allocation loss. An expert brings more
# parameters in training, and another path for the optimiser; what these do on their own must not be credited to the
# loss.

# %%
reserved = [train(seed, rank=CALL["rank"])[0] for seed in range(seeds)]
risk["reserved only"] = torch.stack([excess_risk(model) for model in reserved])
samples["reserved only"] = [sample(model) for model in reserved]


def by_split(values):
    return {n: values[:, classes].mean(1) for n, classes in splits.items()}


print(f"excess risk × 1000, mean ± standard deviation over {seeds} seeds")
pd.DataFrame(
    {
        name: {
            split.capitalize(): f"{1e3 * v.mean():.1f} ± {1e3 * v.std():.1f}"
            for split, v in by_split(values).items()
        }
        for name, values in risk.items()
    }
).T

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Excess risk by class, one line per seed. Log axis.", "name": "fig-plane-risk"}, "image": {"alt": "Excess risk over classes 0 to 6 on a log axis. DDPM, the reserved network and CALL rise together severalfold from head to tail. CALL without its expert leaves them at the last three classes and lies another factor of ten or so above.", "classes": "dark-light"}}
figure, axes = plt.subplots()
plt.close(figure)
for name, values in risk.items():
    for i, line in enumerate(values):
        color = viz.METHOD_COLORS.get(name, viz.GREEN)
        axes.plot(line, "o-", ms=3, color=color, label=None if i else name)
axes.set(xlabel="class, largest first", ylabel="excess risk", yscale="log")
axes.legend()
figure


# %%
def change(a, b):
    """Excess risk of b against a by seed and split, in percent."""
    a, b = by_split(risk[a]), by_split(risk[b])
    return {n: 100 * (b[n] / a[n] - 1) for n in splits}


changes = {
    f"{b} against {a}": change(a, b)
    for a, b in (
        ("DDPM", "CALL, θ"),
        ("DDPM", "reserved only"),
        ("reserved only", "CALL, θ"),
    )
}
print("change of the excess risk, one number per seed; negative is better")
pd.DataFrame(
    {
        name: {
            split.capitalize(): ", ".join(f"{x:+.0f} %" for x in values.tolist())
            for split, values in row.items()
        }
        for name, row in changes.items()
    }
).T

# %%
gain = changes["CALL, θ against DDPM"]["few"].mean()
balancing = on_few["training set, balanced batches"] / on_few["training set"] - 1
print(
    f"On Few, CALL changes DDPM's excess risk by {gain:+.0f} % on average;\n"
    f"balanced batches change it by {100 * balancing:+.0f} % (seed 0)"
)

# %% [markdown]
# And the distance of the samples to the truth:

# %%
distances = {
    name: torch.stack([wasserstein(points) for points in sets])
    for name, sets in samples.items()
}
distances["fresh points"] = wasserstein(fresh)[None]
pd.DataFrame(
    {
        name: {
            split.capitalize(): ", ".join(f"{x:.3f}" for x in v.tolist())
            for split, v in by_split(w).items()
        }
        for name, w in distances.items()
    }
).T

# %% [markdown]
# Read the changes with their signs and sizes:
#
# * **Excess risk on Few:** what $\theta$ gains over DDPM, and over the same network without the allocation loss, is
#   small compared with the gap between head and tail, with what balanced batches do, and with the differences between
#   seeds.
# * **Excess risk on Many:** the change is larger in proportion and has one sign, that of a gain, in all seeds; perhaps
#   because of the consistency term, whose weight is largest there.
# * **Distance of the samples to the truth on Few:** CALL is ahead of both others, in each seed, by anything from a
#   hundredth, which is far within the luck of drawing, to a fifth. The two measures need not agree: the risk weighs all
#   points and timesteps alike, a sampler adds up its errors along one path.
# * **Allocation:** large. $\theta^g$ is wrong, by a factor of ten or so, on just the classes that it was asked to be
#   wrong on.
#
# To tell a gain of this size from none takes more seeds than a page can run. To allocate is one thing, to improve
# another; the other chapters measure how this is on images.
#
# ## As printed
#
# The paper's loss has no bound. One run with it, seed 0, which `train` stops when the loss leaves $\pm 10$:

# %% tags=["hide-input"] mystnb={"figure": {"caption": "Distance between the predictions of θ and θᵍ on Few during training: three seeds bounded, one as printed, with a cross where it was stopped.", "name": "fig-plane-printed"}, "image": {"alt": "Distance over steps on a log axis. All lines start low and rise steeply within a few hundred steps. The bounded ones level off at a few tenths; the printed one rises above them and ends in a cross.", "classes": "dark-light"}}
_, printed = train(0, **CALL, bound=None)
exploded = abs(printed["loss"][-1]) > 10
print(
    f"{'stopped' if exploded else 'not yet exploded'} at step {printed['step'][-1]} of {steps}, "
    f"loss {printed['loss'][-1]:.0f}"
)
viz.divergence_curves(
    {"as printed": [printed], "bounded, b = 0.1": [curve for _, curve in trained]},
    diverged={"as printed"},
)
# %% [markdown]
# {doc}`07_a_floor_for_the_loss` says why, and which bounds work.
#
# ```{admonition} Pitfalls
# :class: warning
# * **Clipping.** A sampler for images clips $\hat{\mathbf{x}}_0$ to $[-1, 1]$. On these points that would cut the ring
#   to a square, without raising an error.
# * **The loss of two data sets cannot be compared.** Its floor belongs to the data. Scale the points by two and the loss
#   changes, for the exact predictor too.
# * **A lower training loss is not a better model.** The memoriser has the lowest of all, below the floor, and is
#   a far worse model of the tail than DDPM.
# * **One seed.** Ten points of a class make a different class with every draw of the training set. Compare methods
#   within a seed.
# ```
#
# ## Exercises
#
# ```{exercise}
# :label: ex-plane-gaussian
# Let $\mathbf{x}_0 \sim \mathcal{N}(\mu, \rho^2 I)$ be a single Gaussian. What is $\epsilon^*$? It is linear in $\mathbf{x}_t$:
# find its slope by linear regression of $\epsilon$ on $\mathbf{x}_t$ and compare.
# ```
#
# ```{solution-start} ex-plane-gaussian
# :class: dropdown
# ```
#
# {eq}`eq-plane-exact` with one component: $\epsilon^* = \frac{\sigma_t}{v_t} (\mathbf{x}_t - a_t \mu)$. The slope is
# $\operatorname{Cov}(\epsilon, \mathbf{x}_t) / \operatorname{Var}(\mathbf{x}_t) = \sigma_t / (a_t^2 \rho^2 +
# \sigma_t^2)$, which also is the slope of least squares.

# %%
n, std = 100_000, 0.5
x0 = 1.0 + std * torch.randn(n, 1, generator=generator)
for level in (50, 300, 600):
    eps = torch.randn(n, 1, generator=generator)
    x = add_noise(x0, torch.tensor([level]), eps)
    a, sigma = signal_and_noise(torch.tensor([level]))
    expected = (sigma / (a**2 * std**2 + sigma**2)).item()
    centred = x - x.mean()
    print(
        f"t = {level}: expected {expected:.3f}, "
        f"regression {(centred * eps).sum() / centred.pow(2).sum():.3f}"
    )

# %% [markdown]
# ```{solution-end}
# ```
#
# ```{exercise}
# :label: ex-plane-null
# A tenth of the labels was dropped in training. Which exact predictor should the network's answer to Null approach? Is
# it fair to all classes?
# ```
#
# ```{solution-start} ex-plane-null
# :class: dropdown
# ```
#
# Dropping labels leaves the training points as they are. Null's points are a mixture of the classes with weights
# $N_c / N$, so the answer approaches $\mathbb{E}[\epsilon \mid \mathbf{x}_t]$ under *that* mixture: the last row of our
# log weights. It is the head's predictor, nearly. Compare with the predictor of a balanced mixture:

# %%
balanced_weights = exact.log_weights.clone()
balanced_weights[-1] = -math.log(C * K)
null = torch.full_like(test_labels, C)
with torch.no_grad():
    for name, weights in {
        "weighted by N_c": exact.log_weights,
        "balanced": balanced_weights,
    }.items():
        target = Mixture(centres, rho, weights)(test_x, test_t, null)
        gap = torch.stack(
            [objectives.mse(m(test_x, test_t, null), target) for m in ddpm]
        )
        print(f"mean squared distance to the predictor {name}: {gap.mean():.3f}")

# %% [markdown]
# Guidance moves away from this answer, and so away from the head.
#
# ```{solution-end}
# ```
#
# ```{exercise}
# :label: ex-plane-constant
# Add the constant of each class to the prediction of $\theta^g$. How much of the excess risk on Few goes away?
# ```
#
# ```{solution-start} ex-plane-constant
# :class: dropdown
# ```

# %%
general, full = risk["CALL, θᵍ"][0], risk["CALL, θ"][0]
with expert_scale(theta[0], 0):
    repaired = excess_risk(lambda x, t, y: theta[0](x, t, y) + image(constant[y]))
by_class({"θᵍ": general, "θᵍ + constant": repaired, "θ": full}, digits=4)

# %%
undone = ((general - repaired) / (general - full))[few]
print(f"Few: {undone.min():.0%} to {undone.max():.0%} of the damage is undone")

# %% [markdown]
# ```{solution-end}
# ```
#
# ```{exercise}
# :label: ex-plane-saddle
# Train seed 0 with the paper's rank and $\lambda$. Does $\theta^g$ part from $\theta$ on Few? Why may it take so long?
# ```
#
# ```{solution-start} ex-plane-saddle
# :class: dropdown
# ```
#
# No. At the start $B = 0$, $D = 0$ and $\nabla D = 0$: the allocation loss begins on a saddle. There its gradient is
# zero, so only the base loss moves $B$ at first, and little; from that tiny start the distance grows exponentially, at
# a rate that grows with $\lambda$ ({doc}`07_a_floor_for_the_loss`). With a small rank there are few directions in which
# it can start.

# %%
_, paper = train(0, rank=0.1, lam=1.0)
for name, curve in {
    "rank 1/10, λ = 1": paper,
    "rank 1/4, λ = 5": trained[0][1],
}.items():
    print(f"{name}: D on Few is {curve['distance_few'][-1]:.2g} at the end")

# %% [markdown]
# ```{solution-end}
# ```
#
# **Take-away.** With few points of a class a network blurs it, or with enough capacity copies it. CALL makes $\theta^g$
# wrong about such classes, here mostly by a shift, and its expert shifts them back. **Next.** {doc}`../book/method`, on
# one page; then {doc}`02_long_tailed_data`, the same tail in images.
