import io

import numpy as np
import pytest
import torch
from PIL import Image

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


@pytest.mark.parametrize("crop", [1.0, 0.5])
def test_center_crop__picture_of_this_size(crop):
    array = noise(9, 7)
    np.testing.assert_array_equal(as_array(Decoder((3, 9, 7), crop)(encode(array))), array)


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


SIZES = [(200, 200), (240, 160), (120, 250)]


@pytest.mark.parametrize(("width", "height"), SIZES)
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


def test_random_crop__key():
    decoder, picture = Decoder((3, 8, 8), random=True), noise(40, 40)
    torch.manual_seed(0)
    first = decoder(encode(picture), "0 1 7")
    torch.manual_seed(1)
    assert torch.equal(first, decoder(encode(picture), "0 1 7"))
    others = [decoder(encode(picture), key) for key in ("0 1 8", "0 2 7", "1 1 7")]
    assert not any(torch.equal(first, other) for other in others)


def test_random_crop__very_long_picture():
    picture = noise(4, 400)
    expected = Decoder((3, 4, 4))(encode(picture))
    assert torch.equal(Decoder((3, 4, 4), random=True)(encode(picture), "x"), expected)


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_decoder__truncated_picture(form):
    content = encode(noise(64, 64), form).getvalue()
    with pytest.raises((OSError, SyntaxError)):
        Decoder((3, 64, 64))(io.BytesIO(content[: len(content) // 2]))


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
