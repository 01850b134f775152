import numpy as np
import pytest
import scipy.linalg
import torch
from torch.utils.data import TensorDataset

from callkit import data, metrics
from callkit.digits_extractor import WEIGHTS
from callkit.sampling import balanced_labels


def gaussian(n, mean, covariance, seed):
    """n points whose sample mean and covariance are exactly those given."""
    x = np.random.default_rng(seed).standard_normal((n, len(mean)))
    x -= x.mean(0)
    x = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T))).T
    return torch.from_numpy(x @ np.linalg.cholesky(covariance).T + mean)


def test_fid_of_gaussians_is_the_closed_form():
    rng = np.random.default_rng(0)
    m1, m2 = rng.standard_normal((2, 6))
    s1, s2 = (a @ a.T + np.eye(6) for a in rng.standard_normal((2, 6, 6)))
    expected = ((m1 - m2) ** 2).sum() + np.trace(s1 + s2 - 2 * scipy.linalg.sqrtm(s1 @ s2).real)
    scores = metrics.compare(gaussian(200, m1, s1, 1), gaussian(300, m2, s2, 2))
    assert scores["fid"] == pytest.approx(expected, rel=1e-6)


def test_a_set_compared_with_itself():
    x = torch.randn(300, 5, generator=torch.Generator().manual_seed(0))
    scores = metrics.compare(x, x)
    assert scores["fid"] == pytest.approx(0, abs=1e-6)
    assert scores["recall"] == scores["precision"] == 1


def test_kid_recall_and_precision_equal_brute_force():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((80, 4)), rng.standard_normal((80, 4)) + 0.7
    scores = metrics.compare(torch.from_numpy(x), torch.from_numpy(y))

    kernel = lambda a, b: (a @ b.T / 4 + 1) ** 3  # noqa: E731
    off_diagonal = lambda k: (k.sum() - np.trace(k)) / (80 * 79)  # noqa: E731
    kid = off_diagonal(kernel(x, x)) + off_diagonal(kernel(y, y)) - 2 * kernel(x, y).mean()
    assert scores["kid"] == pytest.approx(kid, rel=1e-6)  # a subset of everything is everything

    def inside(points, centres):
        """Share of points within some centre's distance to its third neighbour."""
        radius = [sorted(np.linalg.norm(c - centres, axis=1))[3] for c in centres]
        return np.mean([any(np.linalg.norm(p - c) <= r for c, r in zip(centres, radius, strict=True)) for p in points])

    assert scores["recall"] == pytest.approx(inside(y, x), abs=1e-6)
    assert scores["precision"] == pytest.approx(inside(x, y), abs=1e-6)


def test_too_few_images_give_nan_not_an_error():
    scores = metrics.compare(torch.randn(3, 4), torch.randn(50, 4))
    assert np.isfinite(scores["fid"]) and np.isnan(scores["recall"]) and np.isnan(scores["kid"])
    assert np.isnan(metrics.compare(torch.randn(1, 4), torch.randn(50, 4))["fid"])


class Images(TensorDataset):
    def __getitem__(self, i):
        return self.tensors[0][i]


def test_our_scores_are_what_torch_fidelity_computes_end_to_end():
    from torch_fidelity import calculate_metrics

    digits = data.load("digits")
    generated, real = digits.images[:300], digits.images[300:800]
    theirs = calculate_metrics(
        input1=Images(generated), input2=Images(real), feature_extractor="digits", cuda=False, verbose=False,
        fid=True, kid=True, isc=True, prc=True, kid_subset_size=300, save_cpu_ram=True, cache=False,
    )  # fmt: skip
    ours = metrics.describe(generated)
    ours = metrics.compare(ours.features, metrics.describe(real).features, ours.logits)
    names = {"fid": "frechet_inception_distance", "kid": "kernel_inception_distance_mean", "recall": "recall",
             "precision": "precision", "is": "inception_score_mean"}  # fmt: skip
    for name, key in names.items():
        assert ours[name] == pytest.approx(theirs[key], rel=1e-3), name


def test_extractor_is_the_classifier_that_its_record_describes():
    import json

    from sklearn.model_selection import train_test_split

    record = json.loads(WEIGHTS.with_suffix(".json").read_text())
    digits = data.load("digits")
    _, test = train_test_split(
        range(len(digits)), test_size=0.2, stratify=digits.labels.numpy(), random_state=record["seed"]
    )
    right = metrics.describe(digits.images[test]).logits.argmax(1) == digits.labels[test]
    assert right.float().mean().item() == pytest.approx(record["test_accuracy"], abs=0.003)
    assert record["test_accuracy"] > 0.98


@pytest.fixture(scope="module")
def real():
    return data.load_long_tailed("digits", 50)


def test_fid_orders_corruptions(real):
    digits = real.full
    half = torch.randperm(len(digits), generator=torch.Generator().manual_seed(0))[:900]
    images, labels = digits.images[half], digits.labels[half]
    noisy = lambda s: data.to_uint8(data.to_float(images) + s * torch.randn(images.shape))  # noqa: E731
    torch.manual_seed(0)
    fid = [metrics.evaluate(x, labels, real)["metrics"]["overall"]["fid"] for x in (images, noisy(0.1), noisy(0.4))]
    assert fid[0] < fid[1] < fid[2]


def test_evaluate_reports_every_split_class_and_copy_check(real):
    index = torch.cat([torch.where(real.unseen.labels == c)[0][:4] for c in range(10)])
    out = metrics.evaluate(real.unseen.images[index], real.unseen.labels[index], real)
    expected = {"overall", "many", "medium", "few", "unseen-medium", "unseen-few", *(f"class-{c}" for c in range(10))}
    assert set(out["metrics"]) == expected
    assert out["copies"]["few"]["nearest_is_train"] == 0  # these images were never trained on
    assert out["copies"]["few"]["if_not_copying"] == pytest.approx(0.0385, abs=1e-3)
    trained = metrics.evaluate(real.train.images, real.train.labels, real)
    assert trained["copies"]["many"]["nearest_is_train"] == 1


def test_evaluate_refuses(real):
    labels = balanced_labels(10, 1)
    with pytest.raises(ValueError, match=r"images must be uint8 \(N, 1, 8, 8\), got torch.float32"):
        metrics.evaluate(torch.zeros(10, 1, 8, 8), labels, real)
    with pytest.raises(ValueError, match=r"images must be uint8 \(N, 1, 8, 8\), got torch.uint8 \(10, 3, 8, 8\)"):
        metrics.evaluate(torch.zeros(10, 3, 8, 8, dtype=torch.uint8), labels, real)
    with pytest.raises(ValueError, match="no generated image of class 9"):
        metrics.evaluate(torch.zeros(9, 1, 8, 8, dtype=torch.uint8), labels[:9], real)
    with pytest.raises(ValueError, match="unknown extractor 'vgg'; known: digits, lite0, inception"):
        metrics.check_extractor("vgg")
