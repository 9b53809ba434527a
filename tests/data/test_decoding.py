import io
import multiprocessing
import os
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from nayer_pl import InputError
from nayer_pl.data import Batches, ImageStream
from nayer_pl.data.decoding import Decoder


def noise(height, width, channels=3, seed=0):
    shape = (height, width) if channels == 1 else (height, width, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encode(array, form="PNG", **options):
    out = io.BytesIO()
    Image.fromarray(array).save(out, form, **options)
    return io.BytesIO(out.getvalue())


def as_array(image):
    """[C, H, W] -> [H, W, C]"""
    return image.permute(1, 2, 0).numpy()


IMAGENET = ((224, 224), 0.875)


@pytest.mark.parametrize(
    ("size", "shape_and_crop", "resized", "corner"),
    [  # (width, height), (height, width) and crop, (width, height) before the crop, left and top
        ((500, 375), IMAGENET, (341, 256), (58, 16)),
        ((375, 500), IMAGENET, (256, 341), (16, 58)),
        ((301, 300), IMAGENET, (256, 256), (16, 16)),
        ((100, 400), IMAGENET, (256, 1024), (16, 400)),
        ((256, 256), IMAGENET, (256, 256), (16, 16)),
        ((50, 40), IMAGENET, (320, 256), (48, 16)),
        ((100, 40), ((8, 8), 1), (20, 8), (6, 0)),  # the shorter side fits
        ((30, 30), ((10, 20), 1), (20, 20), (0, 5)),
        ((30, 30), ((20, 10), 1), (20, 20), (5, 0)),
        ((7, 9), ((9, 7), 0.5), (7, 9), (0, 0)),  # it has this size
    ],
)
def test_center_crop__by_hand(size, shape_and_crop, resized, corner):
    array = noise(size[1], size[0])
    (height, width), crop = shape_and_crop
    left, top = corner
    by_hand = Image.fromarray(array).resize(resized, Image.Resampling.BILINEAR)
    expected = np.array(by_hand)[top : top + height, left : left + width]
    found = Decoder((3, height, width), crop)(encode(array))
    np.testing.assert_array_equal(as_array(found), expected)


def test_decoder__gray_and_rgb():
    gray, color = noise(6, 6, channels=1), noise(6, 6)
    found = as_array(Decoder((3, 6, 6))(encode(gray)))
    np.testing.assert_array_equal(found, np.stack([gray] * 3, axis=-1))
    luminance = color @ np.array([0.299, 0.587, 0.114])  # ITU-R 601
    assert np.abs(Decoder((1, 6, 6))(encode(color))[0].numpy() - luminance).max() <= 1


def test_decoder__upright():
    array = noise(6, 6)
    exif = Image.Exif()
    exif[0x0112] = 6  # the top row is the picture's right side
    found = as_array(Decoder((3, 6, 6))(encode(array, exif=exif)))
    np.testing.assert_array_equal(found, np.rot90(array, -1))


@pytest.mark.parametrize(("width", "height"), [(200, 200), (240, 160), (120, 250)])
def test_random_crop__published_areas_and_ratios(width, height):
    # Red is the column and green the row, so every pixel tells where it was taken from.
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    picture = np.stack([columns, rows, 0 * rows], axis=-1).astype(np.uint8)
    content, decoder = encode(picture).getvalue(), Decoder((3, 16, 16), random=True)
    areas, lefts = [], []
    for i in range(200):
        crop = as_array(decoder(io.BytesIO(content), f"{i}")).astype(float)
        # Inside, where no edge is near, pixel centres are a step apart.
        wide = (crop[8, 13, 0] - crop[8, 2, 0]) / 11 * 16
        tall = (crop[13, 8, 1] - crop[2, 8, 1]) / 11 * 16
        areas.append(wide * tall / (width * height))
        lefts.append((crop[8, 2, 0] - 2.5 * wide / 16 + 0.5) / (width - wide + 1e-6))
        assert 3 / 4 * 0.9 < wide / tall < 4 / 3 * 1.1
        assert 0.08 * 0.85 < areas[-1] < 1.03
    assert min(areas) < 0.15
    assert max(areas) > 0.65 * min(width / height, height / width) ** 0.5
    assert np.std(areas) > 0.12
    assert 0.3 < np.median(lefts) < 0.7


def test_random_crop__very_long_picture():
    picture = noise(4, 400)
    expected = Decoder((3, 4, 4))(encode(picture))
    assert torch.equal(Decoder((3, 4, 4), random=True)(encode(picture), "x"), expected)


def test_decoder__sixteen_bits():
    """PIL itself clips it at 255, which makes nearly all of it white."""
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    for form in ("PNG", "TIFF"):
        found = Decoder((1, 8, 8))(encode(ramp, form))[0].numpy()
        np.testing.assert_array_equal(found, ramp // 257)
    assert Decoder((3, 8, 8))(encode(ramp)).shape == (3, 8, 8)


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_decoder__unknown_range(kind):
    with pytest.raises(ValueError, match="its pixels are numbers of mode"):
        Decoder((1, 8, 8))(encode(np.zeros((8, 8), kind), "TIFF"))


# ImageStream


class Noise:
    """Picture i is noise of seed i, as a PNG of varied size; the `bad` ones are cut in half."""

    def __init__(self, count, bad=()):
        self.count, self.bad = count, bad

    def __len__(self):
        return self.count

    def array(self, i):
        return noise(8, 8 + 3 * (i % 3), seed=i)

    def __getitem__(self, i):
        content = encode(self.array(i)).getvalue()
        read = len(content) // 2 if i in self.bad else len(content)
        return f"picture {i}", io.BytesIO(content[:read])


def stream(count=30, bad=(), **options):
    decoder = Decoder((3, 8, 8), random=options.pop("random", False))
    return ImageStream(Noise(count, bad), torch.arange(count) % 7, decoder, **options)


def together(batches):
    images, labels = zip(*batches, strict=True)
    return torch.cat(images), torch.cat(labels)


@pytest.mark.parametrize("workers", [0, 2])
def test_stream__same_as_in_memory(workers):
    streamed, kept = stream(workers=workers), stream().decoded()
    for shuffle in (False, True):
        both = (Batches(images, 7, shuffle, seed=3) for images in (streamed, kept))
        for ours, theirs in zip(*both, strict=True):
            assert isinstance(ours, list)
            assert torch.equal(ours[0], theirs[0])
            assert torch.equal(ours[1], theirs[1])
    assert list(streamed.read([])) == []
    # Every third picture has this size already.
    for i in range(0, 30, 3):
        expected = Noise(30).array(i).transpose(2, 0, 1)
        np.testing.assert_array_equal(kept.images[i].numpy(), expected)


def test_stream__decodes_in_workers():
    class Witness(Noise):
        def array(self, i):
            return np.full((8, 8, 3), os.getpid() % 251, dtype=np.uint8)

    def processes(workers):
        labels = torch.zeros(40, dtype=torch.int64)
        images = ImageStream(Witness(40), labels, Decoder((3, 8, 8)), workers=workers)
        return {int(image[0, 0, 0]) for batch, _ in Batches(images, 4) for image in batch}

    assert processes(0) == {os.getpid() % 251}
    workers = processes(2)
    assert len(workers) == 2
    assert os.getpid() % 251 not in workers


def test_stream__random_crops():
    def epoch(batch_size, world, workers, number=0):
        images = {}
        for rank in range(world):
            source = stream(24, random=True, workers=workers)
            source.labels = torch.arange(24)
            for pixels, numbers in Batches(source, batch_size, True, 5, number, rank, world):
                images |= dict(zip(numbers.tolist(), pixels, strict=True))
        return images

    before = torch.get_rng_state()
    first = epoch(8, 1, 0)
    for batch_size, world, workers in ((8, 1, 2), (3, 2, 0), (4, 2, 2)):
        other = epoch(batch_size, world, workers)
        assert all(torch.equal(first[i], other[i]) for i in range(24))
    later = epoch(8, 1, 0, number=1)
    assert sum(torch.equal(first[i], later[i]) for i in range(24)) < 3
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("workers", [0, 2])
def test_stream__stops_at_a_damaged_picture(workers):
    batches = iter(Batches(stream(bad=(13, 14), workers=workers), 5))
    assert torch.equal(next(batches)[0], stream().decoded().images[:5])
    with pytest.raises(InputError, match=r"picture 13 \(.+\) \(and 1 more\).*corrupt=skip"):
        list(batches)


@pytest.mark.parametrize("workers", [0, 2])
def test_stream__skips_damaged_pictures(workers, caplog):
    bad = (3, 13, 14)
    damaged = stream(bad=bad, corrupt="skip", workers=workers)
    for _ in range(2):  # epochs
        images, labels = together(Batches(damaged, 5))
        good = [i for i in range(30) if i not in bad]
        assert torch.equal(images, stream().decoded().images[good])
        assert torch.equal(labels, torch.arange(30)[good] % 7)
    text = caplog.text
    assert [text.count(f"picture {i} (") for i in bad] == [1, 1, 1]
    assert text.count("3 of 30 images are left out") == 1
    kept = stream(bad=bad, corrupt="skip").decoded()
    assert torch.equal(kept.images, images)
    assert torch.equal(kept.labels, labels)


@pytest.mark.parametrize("count", [4, 6, 8])
def test_stream__count_before_the_last_batch(count, caplog):
    # A trainer that knows the length never asks for what follows it.
    batches = Batches(stream(count, bad=(count - 1,), corrupt="skip", workers=1), 2)
    iterator = iter(batches)
    sizes = [len(next(iterator)[1]) for _ in range(len(batches))]
    assert sum(sizes) == count - 1
    assert f"1 of {count} images are left out" in caplog.text
    assert not multiprocessing.active_children()


def test_decoded__damaged_pictures(caplog):
    with pytest.raises(InputError, match=r"picture 3 .*and 2 more.*corrupt=skip"):
        stream(bad=(3, 13, 29)).decoded()
    with pytest.raises(InputError, match="None of the 30 images"):
        stream(bad=range(30), corrupt="skip").decoded()
    caplog.clear()
    stream(bad=range(25), corrupt="skip").decoded()
    assert caplog.text.count("Left out") == 10  # are named
    assert "25 of 30 images are left out" in caplog.text


def test_stream__batch_of_damaged_pictures():
    with pytest.raises(InputError, match=r"whole batch of 5 .*picture 10"):
        together(Batches(stream(bad=range(10, 15), corrupt="skip"), 5))


def test_decoded__unknown_format():
    class Text(Noise):
        def __getitem__(self, i):
            return "notes.txt", io.BytesIO(b"not an image")

    images = ImageStream(Text(1), torch.zeros(1, dtype=torch.int64), Decoder((3, 8, 8)))
    with pytest.raises(InputError, match=r"notes.txt \(no known image format\)"):
        images.decoded()


def test_stream__pickle():
    original = stream()
    copy = pickle.loads(pickle.dumps(original))
    assert torch.equal(together(Batches(copy, 9))[0], together(Batches(original, 9))[0])
