import errno
import gzip
import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock, Timeout
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from callkit import data, folders
from callkit.config import make_config

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


def official_cifar10_labels() -> torch.Tensor:
    """The labels of the 50,000 training images in file order, kept as one integer with a leading 1."""
    number = int.from_bytes((Path(__file__).parent / "cifar10_labels.bin").read_bytes(), "big")
    digits = []
    while number > 1:
        number, chunk = divmod(number, 10**500)
        digits.append(f"{chunk:0500}")
    return torch.tensor([int(d) for d in "".join(reversed(digits))])


def test_the_subsets_of_cifar10_are_the_fields():
    """Lengths, sums and hashes of what the published code keeps of the official files."""
    labels = official_cifar10_labels()
    assert labels.bincount().tolist() == [5000] * 10 and labels[:10].tolist() == [6, 9, 9, 4, 1, 1, 2, 7, 8, 3]
    for ir, size, total, digest in (
        (100, 12_406, 309_748_569, "4bf45bff8878d2786e47dccd702f96ff33b2b11d8c7da3b5015f10937290f866"),
        (50, 13_996, 349_804_152, "d7edcfaf02772bee1e2310a33be8b6c46232f043641158348b9de3ec731e26ac"),
    ):
        kept = data.long_tailed_indices(labels, data.long_tailed_counts(5000, 10, ir))
        assert (len(kept), kept.sum()) == (size, total)
        assert hashlib.sha256(kept.astype("<i8").tobytes()).hexdigest() == digest


def test_a_class_that_is_too_small_is_named():
    with pytest.raises(ValueError, match="class 1 has 2 images, fewer than the 3 to keep"):
        data.long_tailed_indices(torch.tensor([0, 0, 0, 1, 1]), [3, 3])


def test_splits():
    assert data.splits(range(10, 0, -1)) == {"many": [0, 1, 2], "medium": [3, 4, 5], "few": [6, 7, 8, 9]}
    hundred = data.splits(range(100, 0, -1))
    assert [v[-1] for v in hundred.values()] == [32, 65, 99]
    assert data.splits([1, 9, 5])["many"] == [1]  # by size, not by index
    assert data.splits([1, 2]) == {"many": [1], "few": [0]}
    with pytest.raises(ValueError, match="at least 2"):
        data.splits([1])


def test_frequencies_are_shares_of_the_images():
    labels = torch.tensor([0, 0, 0, 2])
    found = data.ImageSet(torch.zeros(4, 1, 2, 2, dtype=torch.uint8), labels, ("a", "b", "c")).frequency
    assert torch.equal(found, torch.tensor([0.75, 0.0, 0.25]))


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


def png(path: Path, color, size=(20, 20), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(path)


@pytest.fixture
def fashion(tmp_path, monkeypatch):
    """Debian's layout, an image of each class, the last class first; all pixels are 20 times its place, in the test
    set 1 more."""
    labels = np.arange(10, dtype=np.uint8)[::-1]
    for part, more in (("train", 0), ("t10k", 1)):
        images = np.zeros((10, 28, 28), np.uint8) + np.arange(10, dtype=np.uint8)[:, None, None] * 20 + more
        for name, header, array in (("images-idx3", 16, images), ("labels-idx1", 8, labels)):
            with gzip.open(tmp_path / f"{part}-{name}-ubyte.gz", "wb") as f:
                f.write(bytes(header) + array.astype(np.uint8).tobytes())
    monkeypatch.setattr(data, "DEBIAN_FASHION", tmp_path)


@pytest.mark.parametrize(("size", "inner"), [(None, slice(2, 30)), (16, slice(1, 15)), (8, slice(1, 7))])
def test_fashion_mnist_is_padded_and_averaged(fashion, size, inner):
    found = data.load("fashion-mnist", image_size=size)
    assert found.images.shape == (10, 1, size or 32, size or 32) and found.labels.tolist() == [*range(9, -1, -1)]
    assert (found.images[4, 0, inner, inner] == 80).all()
    corner = found.images[4, 0, 0, 0].item()
    assert corner == (20 if size == 8 else 0)  # of 16 pixels 4 lie inside


def test_the_reference_of_fashion_mnist_is_its_test_set_and_of_others_the_whole_set(fashion):
    for ratio in (1, None):
        real = data.load_long_tailed("fashion-mnist", ratio, image_size=8)
        assert real.reference is real.test and real.test.images[4, 0, 4, 4] == 81
        assert real.train.images.shape == real.test.images.shape and real.full.images[4, 0, 4, 4] == 80
    digits = data.load_long_tailed("digits", 50)
    assert digits.test is None and digits.reference is digits.full


def test_a_fixed_size_is_refused_by_name():
    with pytest.raises(ValueError, match="image_size of digits can be 8; got 16"):
        data.load("digits", image_size=16)
    with pytest.raises(ValueError, match="image_size of celeba-hq can be 4 to 1024; got 2"):
        data.load("celeba-hq", image_size=2)


def test_one_process_at_a_time_downloads(tmp_path, monkeypatch):
    def download(root, train, download):
        with pytest.raises(Timeout):
            FileLock(root / ".CIFAR10.lock", timeout=0, is_singleton=False).acquire()
        raise RuntimeError("locked")

    monkeypatch.setattr("torchvision.datasets.CIFAR10", download)
    with pytest.raises(OSError, match="could not be downloaded: locked"):
        data.load("cifar10", tmp_path / "new")
    monkeypatch.setattr("os.access", lambda *_: False)  # a folder to read from: nothing to lock
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        data.load("cifar10", tmp_path / "new")


def test_a_failed_download_says_what_failed(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise RuntimeError("no network")

    monkeypatch.setattr("torchvision.datasets.CIFAR10", refuse)
    with pytest.raises(OSError, match=r"CIFAR10 is not in .*, and could not be downloaded: no network"):
        data.load("cifar10", tmp_path)


def test_celeba_hq_reads_the_published_layout(tmp_path):
    folder = tmp_path / "CelebAMask-HQ"
    for i in range(4):
        png(folder / "CelebA-HQ-img" / f"{i}.jpg", (60 * i, 0, 0), (100, 100))
    lines = ["4", "Bald Male Smiling", "0.jpg  -1 -1 1", "1.jpg  -1 1 1", "2.jpg  1 -1 1", "3.jpg  -1 -1 -1"]
    (folder / "CelebAMask-HQ-attribute-anno.txt").write_text("\n".join(lines) + "\n")
    real = data.load_long_tailed("celeba-hq", 2, tmp_path)
    assert real.full.images.shape == (4, 3, 64, 64) and real.full.class_names == ("Female", "Male")
    assert real.full.labels.tolist() == [0, 1, 0, 0]
    assert real.train.counts.tolist() == [2, 1]  # N / C = 2 of the majority
    assert data.splits(real.train.counts) == {"many": [0], "few": [1]}


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        ("celeba-hq", "CelebAMask-HQ.zip from https://.*CelebA-HQ-img.*Found there: notes.txt"),
        ("artbench10", "artbench-10-imagefolder-split.tar from https://.*Found in .*: CelebAMask-HQ/"),
    ],
)
def test_what_must_be_fetched_by_hand_is_explained(tmp_path, dataset, expected):
    (tmp_path / "CelebAMask-HQ").mkdir()
    (tmp_path / "CelebAMask-HQ" / "notes.txt").touch()
    with pytest.raises(FileNotFoundError, match=expected):
        data.load(dataset, tmp_path)


def test_artbench_reads_the_published_layout(tmp_path):
    for style in ("ukiyo_e", "baroque"):
        png(tmp_path / "artbench-10-imagefolder-split" / "train" / style / "1.jpg", "red", (256, 256))
    found = data.load("artbench10", tmp_path, image_size=32)
    assert found.class_names == ("baroque", "ukiyo_e") and found.images.shape == (2, 3, 32, 32)


@pytest.fixture
def birds(tmp_path):
    """Three classes of mixed sizes and modes."""
    root = tmp_path / "birds"
    png(root / "owl" / "wide.png", (200, 100, 50), (60, 20))
    png(root / "owl" / "grey.png", 90, (20, 33), "L")
    png(root / "tit" / "clear.png", (10, 20, 30, 0), (16, 16), "RGBA")
    png(root / "tit" / "palette.gif", 3, (9, 9), "P")
    png(root / "jay" / "photo.JPG", (0, 255, 0), (40, 30))
    (root / "jay" / "._photo.JPG").write_bytes(b"of a Mac")
    (root / ".thumbnails").mkdir()
    return root


def test_a_folder_of_your_own_images(birds, tmp_path):
    found = data.load(f"imagefolder:{birds}", tmp_path, image_size=16)
    assert found.class_names == ("jay", "owl", "tit") and found.counts.tolist() == [1, 2, 2]
    assert found.images.shape == (5, 3, 16, 16) and found.images.dtype == torch.uint8
    by_name = dict(zip(("jay", "grey", "wide", "clear", "palette"), found.images, strict=True))
    assert (by_name["grey"] == 90).all()
    assert by_name["wide"].flatten(1)[:, 0].tolist() == [200, 100, 50]
    assert (by_name["clear"] == 255).all()  # transparent: on white
    natural = data.load_long_tailed(f"imagefolder:{birds}", None, tmp_path, 16)
    assert natural.train.counts.tolist() == [1, 2, 2] and len(natural.unseen) == 0
    assert data.load_long_tailed(f"imagefolder:{birds}", 1, tmp_path, 16).train.counts.tolist() == [1, 1, 1]


def test_photos_are_turned_upright(tmp_path):
    image = Image.new("RGB", (8, 8), "black")
    image.paste("white", (0, 0, 8, 4))  # white above
    exif = image.getexif()
    exif[274] = 6  # the camera was turned: show with the left side up
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        image.save(tmp_path / name / "1.png", exif=exif)
    upright = data.load(f"imagefolder:{tmp_path}", tmp_path / "cache", image_size=8).images[0, 0]
    assert upright[:, :3].max() == 0 and upright[:, 5:].min() == 255


def test_decoding_happens_once_and_again_when_a_file_changes(birds, tmp_path, monkeypatch):
    calls = []
    decode = folders.decode
    monkeypatch.setattr(folders, "decode", lambda path, size: calls.append(path) or decode(path, size))
    name = f"imagefolder:{birds}"
    first = data.load(name, tmp_path, 8)
    first.images.zero_()  # must not reach the file
    again = data.load(name, tmp_path, 8)
    assert len(calls) == 5 and again.images.max() == 255
    png(birds / "owl" / "grey.png", 10, (21, 33), "L")
    assert data.load(name, tmp_path, 8).images[1].max() == 10 and len(calls) == 10


def test_a_disk_that_is_too_small_is_an_error_before_decoding(birds, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(folders.os, "posix_fallocate", full)
    monkeypatch.setattr(folders, "decode", None)
    with pytest.raises(OSError, match=r"cannot write 0 MB to .*callkit-cache: No space left on device"):
        data.load(f"imagefolder:{birds}", tmp_path, 8)
    assert all(p.suffix == ".lock" for p in (tmp_path / data.CACHE).iterdir())


def test_a_broken_file_and_an_empty_class_are_named(birds, tmp_path):
    (birds / "owl" / "broken.png").write_bytes(b"\x89PNG not really")
    with pytest.raises(ValueError, match=r"owl/broken.png cannot be read as an image"):
        data.load(f"imagefolder:{birds}", tmp_path)
    assert all(p.suffix == ".lock" for p in (tmp_path / data.CACHE).iterdir())  # nothing half done stays
    (birds / "wren").mkdir()
    with pytest.raises(ValueError, match=r"wren has no images .*found nothing"):
        data.load(f"imagefolder:{birds}", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere"):
        data.load("imagefolder:nowhere", tmp_path)
    with pytest.raises(ValueError, match="must hold one folder of images per class"):
        data.load(f"imagefolder:{birds / 'owl'}", tmp_path)


def test_files_that_are_left_out_are_told(birds, tmp_path):
    for i in range(3):
        (birds / "jay" / f"IMG_{i}.HEIC").touch()
    with pytest.warns(UserWarning, match=r"jay: 3 of 4 files are left out, IMG_0.HEIC for one; images end in .bmp, "):
        assert data.load(f"imagefolder:{birds}", tmp_path, 8).counts.tolist() == [1, 2, 2]


def test_sixteen_bits_become_eight_and_what_has_no_known_range_is_refused(tmp_path, monkeypatch):
    levels = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    for suffix in ("png", "tif"):
        Image.fromarray(levels).save(tmp_path / f"deep.{suffix}")
        assert folders.decode(tmp_path / f"deep.{suffix}", 16)[1].ravel().tolist() == list(range(256))
    for of, what in ((np.float32, "floating-point numbers"), (np.int32, "integers of no known range")):
        Image.fromarray(levels.astype(of)).save(tmp_path / "other.tif")
        with pytest.raises(ValueError, match=rf"other.tif cannot be read as an image: its pixels are {what}; save it"):
            folders.decode(tmp_path / "other.tif", 16)
    opened = Image.fromarray(levels.astype(np.int32))
    opened.format = "PNG"  # as Pillow 10 opens one of 16 bits
    monkeypatch.setattr(folders.Image, "open", lambda path: opened)
    assert folders.decode(tmp_path / "deep.png", 16)[1].ravel().tolist() == list(range(256))


def test_a_share_of_each_class_is_held_out(tmp_path):
    for c, n in enumerate((10, 4, 2)):
        for i in range(n):
            png(tmp_path / "set" / f"c{c}" / f"{i}.png", (100 * c, i, 0), (4, 4))
    name = f"imagefolder:{tmp_path / 'set'}"
    real = data.load_long_tailed(name, None, tmp_path, 4, held_out=0.3)
    assert real.train.counts.tolist() == [7, 3, 1] and real.unseen.counts.tolist() == [3, 1, 1]
    assert sorted([*real.kept, *real.left_out]) == list(range(16))
    with pytest.raises(ValueError, match=r"held_out 0.8 leaves no training image of class c2"):
        data.load_long_tailed(name, None, tmp_path, 4, held_out=0.8)
    with pytest.raises(ValueError, match=r"held_out is for a data set's own counts .*at 2 the images left out"):
        data.load_long_tailed(name, 2, tmp_path, 4, held_out=0.3)


def test_a_run_has_the_published_subset_or_with_redraw_one_of_its_seed():
    published = data.load_long_tailed("digits", 50)
    for seed in (0, 3):
        assert np.array_equal(data.load_for(make_config(seed=seed)).kept, published.kept)
    redrawn = [data.load_for(make_config(seed=seed, redraw=True)) for seed in range(5)]
    assert np.array_equal(redrawn[3].kept, data.long_tailed_indices(published.full.labels, published.train.counts, 4))
    assert len({tuple(real.kept) for real in [published, *redrawn]}) == 6
    assert all(np.array_equal(real.train.counts, published.train.counts) for real in redrawn)
    few = [set(real.kept[-3:]) for real in [published, *redrawn]]  # of the rarest class, which has 174
    assert len(set.union(*few)) > 12


def test_a_set_that_is_kept_whole_is_not_copied():
    whole, part = (data.load_long_tailed("digits", ratio) for ratio in (None, 50))
    assert whole.train.images.data_ptr() == whole.full.images.data_ptr()
    assert part.train.images.data_ptr() != part.full.images.data_ptr()
