"""Images and labels: the formats as they are published, made here, and what is done to images at random."""

import multiprocessing
import os
import pickle
import signal
import struct

import numpy as np
import pytest
import torch

from triton_dirac.train import cifar, data, folders
from triton_dirac.train.data import cropped, evaluation_draws, flipped, open_data, training_draws

pytestmark = pytest.mark.cpu


# --- order --------------------------------------------------------------------------------------------------


def test_an_epoch_has_whole_batches_in_an_order_of_its_own_that_comes_again():
    first, again, other = (training_draws(50, 8, 3, epoch) for epoch in (0, 0, 1))
    assert first == again
    assert [len(draw.indices) for draw in first] == [8] * 6
    assert len({index for draw in first for index in draw.indices}) == 48
    assert [draw.indices for draw in first] != [draw.indices for draw in other]
    assert len({draw.seed for draw in (*first, *other)}) == 12
    assert training_draws(50, 8, 4, 0)[0].indices != first[0].indices


def test_processes_share_every_batch():
    alone = training_draws(50, 8, 0, 2)
    parts = [training_draws(50, 8, 0, 2, rank, 4) for rank in range(4)]
    for step, draw in enumerate(alone):
        assert [index for part in parts for index in part[step].indices] == list(draw.indices)
    assert len({part[0].seed for part in parts}) == 4
    tested = [index for rank in range(3) for draw in evaluation_draws(10, 2, rank, 3) for index in draw.indices]
    assert sorted(tested) == list(range(10))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((5, 8, 0, 0), "batch must be at most the number of training images, 5, got 8"),
        ((50, 8, 0, 0, 0, 3), "batch must be a multiple of the number of processes, 3, got 8"),
    ],
)
def test_batches_that_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=message):
        training_draws(*arguments)


# --- changes ------------------------------------------------------------------------------------------------


def test_crops_are_places_of_the_padded_image_and_flips_are_mirror_images():
    images = torch.arange(6 * 3 * 5 * 5, dtype=torch.float32).view(6, 3, 5, 5)
    padded = torch.nn.functional.pad(images, (2,) * 4, mode="reflect")
    moved = cropped(images, torch.Generator().manual_seed(0), 2, "reflect")
    places = set()
    for image, whole in zip(moved, padded, strict=True):
        found = [(y, x) for y in range(5) for x in range(5) if torch.equal(image, whole[:, y : y + 5, x : x + 5])]
        assert len(found) == 1
        places.add(found[0])
    assert len(places) > 3
    changed = flipped(images, torch.Generator().manual_seed(0))
    kinds = [
        "as it was" if torch.equal(new, old) else "mirrored" if torch.equal(new, old.flip(2)) else "else"
        for new, old in zip(changed, images, strict=True)
    ]
    assert set(kinds) == {"as it was", "mirrored"}


def test_what_is_random_is_the_seeds_alone():
    split = open_data("digits").train
    first, second = ([*split.batches([data.Draw(range(20), 5)])] for _ in range(2))
    assert torch.equal(first[0][0], second[0][0])
    other = [*split.batches([data.Draw(range(20), 6)])]
    assert not torch.equal(first[0][0], other[0][0])


def test_digits_are_split_by_place_and_normalised():
    digits = open_data("digits")
    assert (len(digits.train), len(digits.test), digits.classes, digits.size) == (1437, 360, 10, 8)
    assert digits.train.images.mean().abs() < 1e-5
    assert digits.train.images.std() == pytest.approx(1, abs=1e-3)
    images, labels = next(digits.test.batches(evaluation_draws(360, 360)))
    assert images.shape == (360, 3, 8, 8)
    assert labels.bincount().min() > 25


# --- CIFAR --------------------------------------------------------------------------------------------------

PER_FILE = 6


def drawn(classes, seed):
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 256, (PER_FILE, 3072), dtype=np.uint8)
    return pixels, generator.integers(0, classes, PER_FILE).tolist()


def write(root, classes, binary):
    """The published layout; returns (pixels, labels) of training and of testing."""
    folder = root / cifar.FOLDERS[classes][binary]
    folder.mkdir(parents=True)
    found = []
    for part in (cifar.TRAIN[classes], cifar.TEST[classes]):
        every = [drawn(classes, seed + (0 if part is cifar.TEST[classes] else 10)) for seed in range(len(part))]
        for name, (pixels, labels) in zip(part, every, strict=True):
            if binary:
                ahead = [bytes([7] * (classes == 100)) + struct.pack("B", label) for label in labels]
                records = [a + row.tobytes() for a, row in zip(ahead, pixels, strict=True)]
                (folder / f"{name}.bin").write_bytes(b"".join(records))
            else:
                coarse = {b"coarse_labels": [7] * PER_FILE} if classes == 100 else {}
                key = b"labels" if classes == 10 else b"fine_labels"
                content = {b"data": pixels, key: labels, b"filenames": [b"a.png"] * PER_FILE, **coarse}
                with (folder / name).open("wb") as file:
                    pickle.dump(content, file, protocol=2)
        found.append((np.concatenate([p for p, _ in every]), [label for _, labels in every for label in labels]))
    return folder, *found


@pytest.mark.parametrize("inside", [False, True], ids=["root", "its folder"])
@pytest.mark.parametrize("binary", [False, True], ids=["Python", "binary"])
@pytest.mark.parametrize("classes", [10, 100])
def test_cifar_as_it_is_published(tmp_path, classes, binary, inside):
    folder, train, test = write(tmp_path, classes, binary)
    found = open_data(f"cifar{classes}", folder if inside else tmp_path)
    assert (found.classes, found.size) == (classes, 32)
    for split, (pixels, labels) in ((found.train, train), (found.test, test)):
        assert split.labels.tolist() == labels
        image = split.images[3]
        expected = (pixels[3].reshape(3, 32, 32)[1, 4, 5] - 123.0) / 62.1
        assert image[1, 4, 5].item() == pytest.approx(expected, rel=1e-5)
    assert found.train.change is data.moved_and_flipped
    assert found.test.change is None


class Executed:
    def __reduce__(self):
        return pytest.fail, ("a data file was executed",)


def test_damaged_cifar_files_are_named_and_never_executed(tmp_path):
    folder, *_ = write(tmp_path / "a", 10, False)
    with (folder / "data_batch_3").open("wb") as file:
        pickle.dump({b"data": Executed()}, file)
    with pytest.raises(ValueError, match=r"data_batch_3 must be a CIFAR-10 file .* it asks for _pytest"):
        open_data("cifar10", tmp_path / "a")
    codec = b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x04\x00\x00\x00none\x86R."
    for damaged in (b"\x80\x02}q", codec, b"\x80\x04\x8e" + b"\xff" * 8, b"\x80\x02}K\x01a."):
        (folder / "data_batch_3").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"data_batch_3 must be a CIFAR-10 file of the Python version"):
            open_data("cifar10", tmp_path / "a")
    folder, *_ = write(tmp_path / "b", 100, True)
    (folder / "train.bin").write_bytes(b"abc")
    with pytest.raises(ValueError, match=r"train.bin must hold records of 3074 bytes, and has 3 bytes"):
        open_data("cifar100", tmp_path / "b")
    with pytest.raises(FileNotFoundError, match=r"root must be or hold cifar-10-batches-py or cifar-10-batches-bin"):
        open_data("cifar10", tmp_path / "b")


# --- folders ------------------------------------------------------------------------------------------------


@pytest.fixture
def images(tmp_path):
    Image = pytest.importorskip("PIL.Image")
    for part in ("train", "val"):
        for label, name in enumerate(("cat", "dog")):
            (tmp_path / part / name).mkdir(parents=True)
            for index in range(3):
                image = Image.new("RGB", (300 + 40 * index, 260), (200 * label, 100, 20))
                image.save(tmp_path / part / name / f"{index}.{'JPEG' if index else 'png'}")
        (tmp_path / part / "dog" / "notes.txt").write_text("no image")
    return tmp_path


@pytest.mark.parametrize("workers", [0, 2])
def test_image_folders(images, workers):
    found = open_data("imagenet", images, workers)
    assert (len(found.train), len(found.test), found.classes, found.size) == (6, 6, 2, 224)
    draws = [data.Draw([0, 4], 1), data.Draw([5], 2)]
    batches = list(found.train.batches(draws))
    assert [tuple(x.shape) for x, _ in batches] == [(2, 3, 224, 224), (1, 3, 224, 224)]
    assert [y.tolist() for _, y in batches] == [[0, 1], [1]]
    red = (batches[0][0][:, 0] * 0.229 + 0.485) * 255
    assert red[0].mean() < 5 < 195 < red[1].mean()  # JPEG's own error aside


def test_what_is_random_about_an_image_is_its_draws_seed_whoever_decodes_it(images):
    Image = pytest.importorskip("PIL.Image")
    noise = np.random.default_rng(0).integers(0, 256, (260, 300, 3), dtype=np.uint8)
    Image.fromarray(noise).save(images / "train" / "cat" / "0.png")
    draws = [data.Draw([0], 1)]
    (alone, _), (helped, _) = (next(iter(open_data("imagenet", images, n).train.batches(draws))) for n in (0, 1))
    assert torch.equal(alone, helped)
    (other, _) = next(iter(open_data("imagenet", images).train.batches([data.Draw([0], 2)])))
    assert not torch.equal(alone, other)


def test_processes_that_decode_go_on_when_their_whole_group_is_asked_to_end(images):
    """The training saves at its next step, for which it may need a batch more."""
    batches = open_data("imagenet", images, 1).train.batches([data.Draw([0], seed) for seed in range(12)])
    next(batches)
    for child in multiprocessing.active_children():
        os.kill(child.pid, signal.SIGTERM)
        os.kill(child.pid, signal.SIGINT)
    assert len(list(batches)) == 11


def test_boxes_lie_inside_and_have_the_published_shares():
    generator = torch.Generator().manual_seed(0)
    for width, height in ((500, 375), (224, 224), (40, 400)):
        for _ in range(50):
            left, top, right, bottom = folders.random_box(width, height, generator)
            assert 0 <= left < right <= width + 1e-6
            assert 0 <= top < bottom <= height + 1e-6
            assert 0.74 < (right - left) / (bottom - top) < 1.34
    assert folders.middle_box(512, 256) == (144.0, 16.0, 368.0, 240.0)


def test_folders_that_are_none(images, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"train must hold a folder of images for every class"):
        open_data("imagenet", tmp_path / "elsewhere")
    (images / "val" / "emu").mkdir()
    with pytest.raises(ValueError, match="must have the same classes, and differ in emu"):
        open_data("imagenet", images)
    (images / "train" / "emu").mkdir()
    with pytest.raises(FileNotFoundError, match=r"emu must hold images, and has none of \.bmp"):
        open_data("imagenet", images)
    for part in ("train", "val"):
        (images / part / "emu" / "0.jpg").write_bytes(b"no JPEG")
    found = open_data("imagenet", images)
    with pytest.raises(ValueError, match=r"emu/0.jpg must be an image"):
        next(iter(found.train.batches([data.Draw([6], 0)])))


def test_names():
    with pytest.raises(ValueError, match="data must be one of digits, cifar10, cifar100, imagenet, got 'mnist'"):
        open_data("mnist")
    with pytest.raises(ValueError, match="root must be the folder of cifar10, got none"):
        open_data("cifar10")
