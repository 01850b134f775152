import numpy as np
import pytest
import scipy.linalg
import torch
from torch.utils.data import TensorDataset
from torch_fidelity import calculate_metrics, register_feature_extractor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase

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


class Fidelitys(FeatureExtractorBase):
    """What torch-fidelity asks of an extractor, of ours for digits."""

    def __init__(self, name, features_list, **_):
        super().__init__(name, features_list)
        self.ours = metrics.DigitsExtractor()

    @staticmethod
    def get_provided_features_list():
        return ("64", "logits")

    @staticmethod
    def get_default_feature_layer_for_metric(metric):
        return "logits" if metric == "isc" else "64"

    @staticmethod
    def can_be_compiled():
        return False

    def forward(self, images):
        found = dict(zip(self.get_provided_features_list(), self.ours(images), strict=True))
        return tuple(found[name] for name in self.features_list)


def test_our_scores_are_what_torch_fidelity_computes_end_to_end():
    register_feature_extractor("digits", Fidelitys)
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


def test_every_set_is_compared_with_its_own_images_and_unseen_ones_were_not_trained_on(real, monkeypatch):
    """Features that say which image, or of generated ones which class, they are of."""
    n, labels, seen = len(real.full), balanced_labels(10, 3), []
    described = metrics.Description(torch.arange(n)[:, None], torch.zeros(n, 1), real.full.images)
    generated = metrics.Description(labels[:, None], torch.zeros(30, 1), torch.zeros(30, 1, 8, 8, dtype=torch.uint8))
    monkeypatch.setattr(metrics, "compare", lambda ours, theirs, logits=None: seen.append((ours, theirs)) or {})
    names = list(metrics.score(generated, labels, real, described)["metrics"])
    classes = {"overall": range(10), "many": range(3), "medium": range(3, 6), "few": range(6, 10)}
    classes |= {f"class-{c}": [c] for c in range(10)}
    trained = set(real.kept.tolist())
    for name, (ours, theirs) in zip(names, seen, strict=True):
        of = classes[name.removeprefix("unseen-")]
        images = {i for i, c in enumerate(real.full.labels.tolist()) if c in of}
        images -= trained if name.startswith("unseen-") else set()
        assert sorted(theirs.flatten().tolist()) == sorted(images), name
        assert sorted(ours.flatten().tolist()) == sorted([*of] * 3), name


def test_a_test_set_is_the_reference_and_copies_are_still_told_from_the_training_set(real):
    half, test = real.full.subset(range(900)), real.full.subset(range(900, 1797))
    kept = np.concatenate([np.flatnonzero(half.labels == c)[: 30 - 3 * c] for c in range(10)])
    apart = data.LongTailed(half, kept, test)
    found = metrics.evaluate(apart.train.images, apart.train.labels, apart)
    assert set(found["metrics"]) == {"overall", "many", "medium", "few", *(f"class-{c}" for c in range(10))}
    every = metrics.describe(apart.test.images).features
    ours = metrics.describe(apart.train.images).features
    assert found["metrics"]["overall"]["fid"] == pytest.approx(metrics.compare(ours, every)["fid"], rel=1e-6)
    assert all(share["nearest_is_train"] == 1 for share in found["copies"].values())
    others = metrics.evaluate(apart.unseen.images, apart.unseen.labels, apart)
    assert all(share["nearest_is_train"] == 0 for share in others["copies"].values())


def test_the_copy_machine_shows_each_training_image_in_turn():
    train = data.load_long_tailed("digits", 50).train
    index = metrics.copy_machine(train, per_class=20)
    assert train.labels[index].bincount().tolist() == [20] * 10
    shown = index[train.labels[index] == 9]  # three images
    assert torch.equal(shown, (train.labels == 9).nonzero()[:, 0].repeat(7)[:20])
    largest = index[train.labels[index] == 0]
    assert len(largest.unique()) == 20


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


def test_recall_in_blocks_is_recall():
    """More images than a block, so that several meet."""
    from torch_fidelity.metric_prc import prc_features_to_metric

    g = torch.Generator().manual_seed(0)
    x, y = (
        torch.randn(metrics.RECALL_BLOCK + 300, 3, generator=g),
        torch.randn(metrics.RECALL_BLOCK + 100, 3, generator=g),
    )
    whole = prc_features_to_metric(x, y, prc_neighborhood=3, prc_batch_size=10**6, save_cpu_ram=False, verbose=False)
    found = metrics.compare(x, y)
    assert 0.5 < found["recall"] < 1 and found["recall"] == pytest.approx(whole["recall"], abs=2e-3)
    assert found["precision"] == pytest.approx(whole["precision"], abs=2e-3)


def corrupted(images: torch.Tensor, how: str) -> torch.Tensor:
    """Graded damage to a set of images, class-sorted."""
    n = len(images)
    if how == "noise":
        noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
        return data.to_uint8(data.to_float(images) + 0.1 * noise)
    if how == "fewer classes":
        return images[torch.arange(n) % (n * 3 // 10)]
    if how == "few images":
        return images[torch.arange(n) % 8]
    return images


def test_lite0_orders_corruptions(real):
    half = torch.randperm(len(real.full), generator=torch.Generator().manual_seed(0))
    one, other = (real.full.subset(i.sort().values).images for i in (half[:400], half[400:800]))
    order = real.full.labels[half[:400].sort().values].argsort(stable=True)
    reference = metrics.describe(other, "lite0").features
    fid = [
        metrics.compare(metrics.describe(corrupted(one[order], how), "lite0").features, reference)["fid"]
        for how in ("real", "noise", "fewer classes", "few images")
    ]
    assert fid == sorted(fid) and fid[-1] > 5 * fid[0]


def test_lite0_sees_grey_as_three_equal_channels():
    grey = torch.randint(256, (4, 1, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    a, b = (metrics.describe(x, "lite0") for x in (grey, grey.expand(-1, 3, -1, -1)))
    assert a.features.shape == (4, 1280) and a.logits.shape == (4, 1000)
    torch.testing.assert_close(a.features, b.features)
    assert a.thumbnails.shape == (4, 1, 32, 32)


def test_inception_loads_nothing_but_the_published_file(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "load", lambda *a, **k: pytest.fail("a strange file was loaded"))
    stranger = tmp_path / metrics.INCEPTION
    monkeypatch.setenv("CALLKIT_INCEPTION", str(stranger))
    with pytest.raises(FileNotFoundError, match=r"CALLKIT_INCEPTION is .*no such file"):
        metrics.check_extractor("inception")
    stranger.write_bytes(b"weights")
    with pytest.raises(ValueError, match=r"its sha256 starts with 9a129038, not 6726825d"):
        metrics.check_extractor("inception")
    monkeypatch.delenv("CALLKIT_INCEPTION")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))

    def refuse(url, *args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    with pytest.raises(OSError, match=r"could not be downloaded \(no network\).*CALLKIT_INCEPTION"):
        metrics.check_extractor("inception")


class Runs:
    """What is called when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_nothing_in_inceptions_file_is_run_though_its_hash_fits(tmp_path, monkeypatch):
    stranger, ran = tmp_path / metrics.INCEPTION, tmp_path / "ran"
    torch.save({"w": torch.zeros(1), "more": Runs(str(ran))}, stranger)
    monkeypatch.setenv("CALLKIT_INCEPTION", str(stranger))
    monkeypatch.setattr(metrics, "INCEPTION_SHA256", metrics.file_hash(stranger)[:8])
    for load in (metrics.inception_weights, metrics.InceptionExtractor):
        with pytest.raises(ValueError, match=r"it cannot be read as tensors alone .Weights only load failed"):
            load()
    assert not ran.exists()


def test_inception_takes_grey_images(tmp_path, monkeypatch):
    """The architecture with random weights, behind a file whose hash is made to fit."""
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"weights")
    monkeypatch.setenv("CALLKIT_INCEPTION", str(weights))
    monkeypatch.setattr(metrics, "INCEPTION_SHA256", "9a129038")
    monkeypatch.setattr(torch, "load", lambda *a, **k: {})
    monkeypatch.setattr(metrics.InceptionExtractor, "load_state_dict", lambda self, state: None)
    torch.manual_seed(0)
    network = metrics.InceptionExtractor()
    grey = torch.randint(256, (2, 1, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        features, logits = network(grey)
        colour, _ = network(grey.expand(-1, 3, -1, -1).contiguous())
    assert features.shape == (2, 2048) and logits.shape == (2, 1008)
    torch.testing.assert_close(features, colour)


def test_generated_counts_serve_overall_and_splits():
    ten, hundred = data.splits(range(10, 0, -1)), data.splits(range(100, 0, -1))
    assert metrics.generated_counts(ten, 10, 50_000, None).tolist() == [5000] * 10
    counts = metrics.generated_counts(ten, 10, 50_000, 20_000)
    assert counts.tolist() == [6667, 6667, 6666, 6667, 6667, 6666, 5000, 5000, 5000, 5000]
    counts = metrics.generated_counts(hundred, 100, 50_000, 20_000)
    assert counts[hundred["many"]].sum() == counts[hundred["few"]].sum() == 20_000 and counts.min() == 588


def test_score_takes_exactly_what_counts(real, monkeypatch):
    labels = balanced_labels(10, 30)
    g = torch.Generator().manual_seed(0)
    generated = metrics.Description(
        torch.randn(300, 4, generator=g), torch.randn(300, 10, generator=g),
        torch.zeros(300, 1, 8, 8, dtype=torch.uint8),
    )  # fmt: skip
    described = metrics.Description(
        torch.randn(len(real.full), 4, generator=g), torch.randn(len(real.full), 10, generator=g), real.full.images
    )
    sizes = {}

    def spy(mine, theirs, logits=None):
        sizes[len(sizes)] = (len(mine), len(theirs))
        return {}

    monkeypatch.setattr(metrics, "compare", spy)
    metrics.score(generated, labels, real, described, images=200, per_split=70)
    full = real.full.counts
    assert next(iter(sizes.values())) == (200, 1797)
    assert list(sizes.values())[1] == (70, full[:3].sum())
    assert list(sizes.values())[-1] == (30, full[9])
    sizes.clear()
    metrics.score(generated, labels.clamp(max=8).where(torch.arange(300) != 299, torch.tensor(9)), real, described)
    assert [n for n, _ in sizes.values()][-10:] == [1] * 10, (
        "classes are compared at one size: FID's bias depends on it"
    )


def test_real_features_are_extracted_once_and_kept_by_content(real, tmp_path, monkeypatch):
    monkeypatch.setattr(metrics, "CACHED_FROM", 10)
    few = real.full.subset(range(20))
    (tmp_path / "a file").touch()
    with pytest.warns(UserWarning, match="real images are not kept: cannot write to"):
        unkept = metrics.describe_real(few, "digits", tmp_path / "a file")
    first = metrics.describe_real(few, "digits", tmp_path)
    assert torch.equal(unkept.features, first.features)
    monkeypatch.setattr(metrics, "describe", lambda *a, **k: pytest.fail("extracted again"))
    again = metrics.describe_real(few, "digits", tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    (cached,) = tmp_path.glob("*.safetensors")
    assert metrics.extractor_hash("digits")[:8] in cached.name and cached.name.endswith("-20.safetensors")
    changed = data.ImageSet(few.images + 1, few.labels, few.class_names)
    with pytest.raises(pytest.fail.Exception, match="extracted again"):
        metrics.describe_real(changed, "digits", tmp_path)


# PyTorch has both names; "none" is what an older one that was set to False reads as
@pytest.mark.parametrize(
    ("name", "rounded", "exact"), [("allow_tf32", True, {False}), ("fp32_precision", "tf32", {"ieee", "none"})]
)
def test_features_are_not_rounded_to_tf32_and_the_setting_is_left_as_it_was(
    real, matmul, name, rounded, exact, monkeypatch
):
    if not hasattr(matmul, name):
        pytest.skip(f"this PyTorch has no {name}")
    seen, extractor = [], metrics._extractor("digits")
    convolutions = torch.backends.cudnn if name == "allow_tf32" else torch.backends.cudnn.conv

    class Spy(torch.nn.Module):
        def forward(self, x):
            seen.append((getattr(convolutions, name), getattr(matmul, name)))
            return extractor(x)

    monkeypatch.setattr(metrics, "_extractor", lambda _: Spy())
    setattr(matmul, name, rounded)
    before = getattr(convolutions, name)
    metrics.describe(real.full.images[:20])
    assert len(seen) == 1 and exact.issuperset(seen[0])
    assert getattr(convolutions, name) == before and getattr(matmul, name) == rounded


def test_thumbnails_average_to_32_pixels():
    big = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    big[:, :, ::2] = 100
    assert metrics.thumbnails(big).shape == (1, 3, 32, 32) and (metrics.thumbnails(big) == 50).all()
    small = torch.randint(256, (1, 3, 8, 8), dtype=torch.uint8)
    assert torch.equal(metrics.thumbnails(small), small)


def test_lite0_sees_images_resized_scaled_and_averages_its_last_features():
    extractor = metrics._extractor("lite0")
    images = torch.randint(256, (2, 3, 128, 128), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    x = torch.nn.functional.interpolate(images.float(), (96, 96), mode="bilinear", antialias=True)
    features = extractor.network.extract_features((x - 127) / 128).mean((2, 3))
    torch.testing.assert_close(extractor(images)[0], features, rtol=1e-3, atol=1e-4)


def test_what_is_kept_of_large_images_are_thumbnails(monkeypatch):
    class Two(torch.nn.Module):
        def forward(self, x):
            return x.float().mean((2, 3)), x.float().mean((2, 3))

    monkeypatch.setattr(metrics, "_extractor", lambda _: Two())
    assert metrics.describe(torch.zeros(3, 1, 64, 64, dtype=torch.uint8)).thumbnails.shape == (3, 1, 32, 32)


def test_the_smaller_side_decides_which_scores_there_are():
    two, three, many = torch.randn(2, 4), torch.randn(3, 4), torch.randn(50, 4)
    for generated, reference in ((two, many), (many, two), (many, three), (three, many)):
        scores = metrics.compare(generated, reference)
        assert np.isfinite(scores["fid"]) and np.isnan([scores[k] for k in ("kid", "recall", "precision")]).all()
    assert np.isnan(metrics.compare(many, torch.randn(1, 4))["fid"])


def test_a_tie_is_no_copy():
    x = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    assert metrics.nearest_is_train(x, x, x) == 0


def test_the_first_images_of_each_class_count_and_unseen_ones_as_many(real, monkeypatch):
    labels, seen = balanced_labels(10, 30), []
    generated = metrics.Description(torch.arange(300)[:, None], torch.zeros(300, 1), torch.zeros(300, 1, 8, 8).byte())
    described = metrics.Description(torch.zeros(1797, 1), torch.zeros(1797, 1), real.full.images)
    monkeypatch.setattr(
        metrics, "compare", lambda ours, theirs, logits=None: seen.append(ours.flatten().tolist()) or {}
    )
    names = list(metrics.score(generated, labels, real, described, images=50, per_split=12)["metrics"])
    found = dict(zip(names, seen, strict=True))
    assert found["overall"] == [30 * c + i for c in range(10) for i in range(5)]
    for name in ("few", "unseen-few"):
        assert found[name] == [30 * c + i for c in range(6, 10) for i in range(3)], name


def test_copies_are_looked_for_in_the_own_class_and_averaged_over_classes(real):
    """Class 9 shows its training images, class 8 those of class 0, the rest unseen ones."""

    def first(images, c):
        return images.images[images.labels == c][:3]

    images = [first(real.unseen, c) for c in range(8)] + [first(real.train, 0), first(real.train, 9)]
    found = metrics.evaluate(torch.cat(images), balanced_labels(10, 3), real)["copies"]["few"]
    assert found["nearest_is_train"] == pytest.approx(1 / 4)


def test_copies_of_large_images_are_looked_for_in_thumbnails():
    g = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (40, 1, 64, 64), generator=g, dtype=torch.uint8)
    full = data.ImageSet(pixels[:20], torch.arange(2).repeat(10), ("a", "b"))
    test = data.ImageSet(pixels[20:], torch.arange(2).repeat(10), ("a", "b"))
    apart = data.LongTailed(full, np.arange(12), test)

    def describe(x):
        features = x.flatten(1)[:, :4].float()
        return metrics.Description(features, features, metrics.thumbnails(x))

    train = full.subset(apart.kept)
    copies = metrics.score(describe(train.images), train.labels, apart, describe(test.images))["copies"]
    assert copies and all(found["nearest_is_train"] == 1 for found in copies.values())
