import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from callkit import data

# The realised sizes of the field's published subsets (Cao et al., 2019; Qin et al., 2023).
PUBLISHED = {(5000, 10, 100): 12_406, (5000, 10, 50): 13_996, (500, 100, 100): 10_847, (500, 100, 50): 12_608}


@pytest.mark.parametrize(("setting", "total"), PUBLISHED.items())
def test_counts_are_the_published_ones(setting, total):
    assert data.long_tailed_counts(*setting).sum() == total


def test_counts_class_by_class():
    assert data.long_tailed_counts(5000, 10, 100).tolist() == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    assert data.long_tailed_counts(174, 10, 50).tolist() == [174, 112, 72, 47, 30, 19, 12, 8, 5, 3]


@given(st.integers(100, 5000), st.integers(2, 100), st.floats(1, 100))
def test_counts_never_increase_and_keep_the_ratio(n_max, num_classes, ratio):
    counts = data.long_tailed_counts(n_max, num_classes, ratio)
    assert counts[0] == n_max and (np.diff(counts) <= 0).all()
    assert counts[-1] in (int(n_max / ratio), int(n_max / ratio) - 1, int(n_max / ratio) + 1)


@pytest.mark.parametrize(("ratio", "message"), [(0.5, "at least 1"), (float("nan"), "at least 1"), (175, "empty")])
def test_counts_refuse(ratio, message):
    with pytest.raises(ValueError, match=message):
        data.long_tailed_counts(174, 10, ratio)


def test_indices_follow_the_global_legacy_generator():
    labels = torch.arange(10).repeat(50)[torch.randperm(500, generator=torch.Generator().manual_seed(0))]
    counts = data.long_tailed_counts(50, 10, 10)
    state = np.random.get_state()
    np.random.seed(0)
    expected = []
    for c in range(10):
        index = np.where(labels.numpy() == c)[0]
        np.random.shuffle(index)
        expected.extend(index[: counts[c]])
    np.random.set_state(state)
    assert data.long_tailed_indices(labels, counts).tolist() == expected


def test_splits():
    assert data.splits(range(10, 0, -1)) == {"many": [0, 1, 2], "medium": [3, 4, 5], "few": [6, 7, 8, 9]}
    hundred = data.splits(range(100, 0, -1))
    assert [v[-1] for v in hundred.values()] == [32, 65, 99]
    assert data.splits([1, 9, 5])["many"] == [1]  # by size, not by index
    assert data.splits([1, 2]) == {"many": [1], "few": [0]}
    with pytest.raises(ValueError, match="at least 2"):
        data.splits([1])


def test_long_tailed_digits():
    real = data.load_long_tailed("digits", 50)
    assert real.train.counts.tolist() == [174, 112, 72, 47, 30, 19, 12, 8, 5, 3]
    assert (real.train.counts + real.unseen.counts == real.full.counts).all()
    assert real.full.images.shape == (1797, 1, 8, 8) and real.full.images.max() == 255
    kept, left = ({tuple(x.flatten().tolist()) for x in s.images} for s in (real.train, real.unseen))
    assert not kept & left
    # the largest class is nearly used up; every Medium and Few class has images to spare
    assert real.unseen.counts[3:].min() >= 50


def test_unknown_dataset():
    with pytest.raises(ValueError, match="unknown dataset 'mnist'; known: digits"):
        data.load("mnist")


def test_float_and_back():
    levels = torch.arange(256, dtype=torch.uint8)
    x = data.to_float(levels)
    assert x.min() == -1 and x.max() == 1 and x.dtype == torch.float32
    assert torch.equal(data.to_uint8(x), levels)
    assert data.to_uint8(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(2, 1, 8, 8), torch.zeros(2, dtype=torch.int64), "uint8"),
        (torch.zeros(2, 8, 8, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64), "uint8"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64), "int64"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 2]), r"0\.\.1"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.tensor([-1, 0]), r"0\.\.1"),
    ],
)
def test_image_set_refuses(images, labels, message):
    with pytest.raises(ValueError, match=message):
        data.ImageSet(images, labels, ("a", "b"))
