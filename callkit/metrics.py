"""FID, KID, Recall and Inception Score, overall, per split and per class, all computed by torch-fidelity.

Features are extracted once; every split then takes its rows. A number never travels without the extractor's
name and hash: scores of different extractors are on different scales.
"""

import hashlib
from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from callkit import data
from callkit.digits_extractor import WEIGHTS, DigitsClassifier

try:
    from torch_fidelity import register_feature_extractor
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric
except ImportError as error:
    raise ImportError("metrics need torch-fidelity: pip install 'callkit[metrics]'") from error

NEIGHBORHOOD = 3  # k of Recall's nearest-neighbour balls (Kynkäänniemi et al., 2019)
KID_SUBSET_SIZE = 1000  # or the smaller set's size


class DigitsExtractor(FeatureExtractorBase):
    """torch-fidelity's view of `digits_extractor`: uint8 (B, 1, 8, 8) to "64" features and "logits"."""

    def __init__(self, name, features_list, **kwargs):
        super().__init__(name, features_list)
        self.classifier = DigitsClassifier()
        self.classifier.load_state_dict(load_file(WEIGHTS))
        self.eval().requires_grad_(False)

    @staticmethod
    def get_provided_features_list():
        return ("64", "logits")

    @staticmethod
    def get_default_feature_layer_for_metric(metric):
        return {"isc": "logits", "fid": "64", "kid": "64", "prc": "64"}[metric]

    @staticmethod
    def can_be_compiled():
        return True

    @staticmethod
    def get_dummy_input_for_compile():
        return torch.zeros(1, 1, 8, 8, dtype=torch.uint8)

    def forward(self, images):
        features = dict(zip(("64", "logits"), self.classifier(data.to_float(images)), strict=True))
        return tuple(features[name] for name in self.features_list)


EXTRACTORS = {"digits": (DigitsExtractor, WEIGHTS)}
DEFAULT_EXTRACTOR = {"digits": "digits"}  # by data set

for _name, (_class, _) in EXTRACTORS.items():
    register_feature_extractor(_name, _class)


def extractor_for(dataset: str) -> str:
    if dataset not in DEFAULT_EXTRACTOR:
        raise ValueError(
            f"no feature extractor for dataset {dataset!r}; there is one for: {', '.join(DEFAULT_EXTRACTOR)}"
        )
    return DEFAULT_EXTRACTOR[dataset]


@cache
def _extractor(name: str) -> FeatureExtractorBase:
    if name not in EXTRACTORS:
        raise ValueError(f"unknown extractor {name!r}; known: {', '.join(EXTRACTORS)}")
    kind, _ = EXTRACTORS[name]
    fid, isc = (kind.get_default_feature_layer_for_metric(m) for m in ("fid", "isc"))
    return kind(name, [fid, isc])


@cache
def extractor_hash(name: str) -> str:
    """sha256 of the extractor's weights file."""
    return hashlib.sha256(Path(EXTRACTORS[name][1]).read_bytes()).hexdigest()


@torch.no_grad()
def extract(images: Tensor, extractor: str = "digits", batch_size: int = 1000) -> tuple[Tensor, Tensor]:
    """(features (N, D), logits (N, K)) of uint8 images (N, C, H, W)."""
    network = _extractor(extractor)
    parts = [network(part) for part in images.split(batch_size)]
    return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])


def compare(generated: Tensor, real: Tensor, logits: Tensor | None = None) -> dict[str, float]:
    """fid, kid (mean over 100 subsets), recall, precision; with logits of the generated images also is.

    generated (N, D), real (M, D) features. NaN for FID where a side has fewer than 2 images, and for Recall and
    KID where it has no more than the neighbourhood.
    """
    n = min(len(generated), len(real))
    scores = dict.fromkeys(("fid", "kid", "recall", "precision"), float("nan"))
    if n >= 2:
        statistics = [fid_features_to_statistics(f.double()) for f in (generated, real)]
        scores["fid"] = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    if n > NEIGHBORHOOD:
        kid = kid_features_to_metric(
            generated, real, kid_subset_size=min(KID_SUBSET_SIZE, n), rng_seed=2020, verbose=False
        )
        scores["kid"] = kid["kernel_inception_distance_mean"]
        prc = prc_features_to_metric(generated, real, prc_neighborhood=NEIGHBORHOOD, save_cpu_ram=True, verbose=False)
        scores |= {"recall": prc["recall"], "precision": prc["precision"]}
    if logits is not None:
        scores["is"] = isc_features_to_metric(logits)["inception_score_mean"]
    return scores


def nearest_is_train(generated: Tensor, train: Tensor, unseen: Tensor) -> float:
    """Share of generated images whose nearest real image, in pixels, is one that was trained on.

    A model that generalises within a class reaches len(train) / (len(train) + len(unseen)); one that copies, 1.
    """
    flat = [x.flatten(1).float() for x in (generated, train, unseen)]
    to_train, to_unseen = (torch.cdist(flat[0], f).min(1).values for f in flat[1:])
    return float((to_train < to_unseen).float().mean())


MIN_UNSEEN = 50  # images of a class, for a comparison with unseen images alone


def evaluate(images: Tensor, labels: Tensor, real: data.LongTailed, extractor: str = "digits") -> dict:
    """Every score of generated images, keyed "overall", "many", "medium", "few" and "class-<c>".

    images uint8 (N, C, H, W) generated for labels (N,), of every class. The reference is the whole balanced set,
    training images included (the field's protocol). Under "unseen-medium" and "unseen-few" it is only the images
    that were never trained on, where every class of the split has at least 50. "copies" compares, per split, the
    share of images nearest to a training image with the share expected of a model that does not copy.
    """
    if images.shape[1:] != real.full.images.shape[1:] or images.dtype != torch.uint8:
        raise ValueError(
            f"images must be uint8 (N, {', '.join(map(str, real.full.images.shape[1:]))}), "
            f"got {images.dtype} {tuple(images.shape)}"
        )
    missing = set(range(real.full.num_classes)) - set(labels.tolist())
    if missing:
        raise ValueError(f"no generated image of class {sorted(missing)[0]}: every class is needed")
    generated, logits = extract(images, extractor)
    full = extract(real.full.images, extractor)[0]
    unseen = extract(real.unseen.images, extractor)[0]

    def rows(y: Tensor, classes) -> Tensor:
        return torch.isin(y, torch.tensor(classes))

    groups = data.splits(real.train.counts)
    scores = {"overall": compare(generated, full, logits)}
    for name, classes in groups.items():
        mine = rows(labels, classes)
        scores[name] = compare(generated[mine], full[rows(real.full.labels, classes)], logits[mine])
        if real.unseen.counts[classes].min() >= MIN_UNSEEN:
            scores[f"unseen-{name}"] = compare(generated[mine], unseen[rows(real.unseen.labels, classes)])
    for c in range(real.full.num_classes):
        scores[f"class-{c}"] = compare(generated[labels == c], full[real.full.labels == c])

    copies = {}
    for name, classes in groups.items():
        share = [
            nearest_is_train(
                images[labels == c],
                real.train.images[real.train.labels == c],
                real.unseen.images[real.unseen.labels == c],
            )
            for c in classes
        ]
        expected = real.train.counts[classes] / real.full.counts[classes]
        copies[name] = {"nearest_is_train": float(np.mean(share)), "if_not_copying": float(expected.mean())}
    return {"metrics": scores, "copies": copies}
