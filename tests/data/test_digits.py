import hashlib

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from nayer_pl import Digits, InputError


def raw_rows(split):
    """The 8x8 originals, [N, 64] in 0..16, and the labels, as they were before enlarging."""
    images, labels = Digits(8).load(split)
    return np.rint(images.flatten(1).double().numpy() * 16 / 255).astype(int), labels.numpy()


def test_load__sizes_and_types():
    for split, count in (("train", 1297), ("evaluation", 500)):
        images, labels = Digits().load(split)
        assert images.shape == (count, 1, 16, 16)
        assert labels.shape == (count,)
        assert (images.dtype, labels.dtype) == (torch.uint8, torch.int64)
        small = Digits(8).load(split).images
        assert (int(small.min()), int(small.max())) == (0, 255)
    with pytest.raises(InputError, match="image_size must be"):
        Digits(0)


def test_load__disjoint_halves():
    def rows(images, labels):
        pairs = zip(images.astype(int), labels, strict=True)
        return [image.tobytes() + bytes([label]) for image, label in pairs]

    halves = rows(*raw_rows("train")) + rows(*raw_rows("evaluation"))
    everything = rows(*load_digits(return_X_y=True))
    assert len(set(everything)) == 1797
    assert sorted(halves) == sorted(everything)


def test_load__stratified():
    totals = np.bincount(load_digits().target)
    kept = np.bincount(Digits().load("evaluation").labels.numpy())
    np.testing.assert_array_less(np.abs(kept - totals * 500 / 1797), 1)


@pytest.mark.parametrize("size", [8, 16, 32, 21])
def test_load__bilinear(size):
    originals, labels = raw_rows("evaluation")
    images, same_labels = Digits(size).load("evaluation")
    centres = (np.arange(size) + 0.5) * 8 / size - 0.5
    weights = np.stack([np.interp(centres, np.arange(8), unit) for unit in np.eye(8)], axis=1)
    gray = originals.reshape(-1, 8, 8) * 255 / 16
    expected = weights @ gray @ weights.T
    assert np.abs(images[:, 0].numpy() - expected).max() < 0.5 + 1e-3
    np.testing.assert_array_equal(labels, same_labels.numpy())


def test_load__fingerprint():
    """The split of all published figures, on every machine and with every scikit-learn."""
    assert [fingerprint(*Digits(8).load(split)) for split in ("train", "evaluation")] == [
        "db5f7c516e41a0f21fc308a50a383e32a73f28a0ffafd3f218ec1bb766207fd8",
        "da2b3ef4e6c367545c0780238ec1ff9baa97cd067bc9c9a52edf222ea3f95b19",
    ]


def fingerprint(images, labels):
    return hashlib.sha256(images.numpy().tobytes() + labels.numpy().tobytes()).hexdigest()


def test_load__global_random_state():
    torch.manual_seed(3)
    np.random.seed(3)
    first = Digits().load("evaluation").images
    after = torch.rand(1), np.random.rand()
    torch.manual_seed(3)
    np.random.seed(3)
    assert after == (torch.rand(1), np.random.rand())
    assert torch.equal(first, Digits().load("evaluation").images)
