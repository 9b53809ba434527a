import pytest
import torch

from nayer_pl import InputError
from nayer_pl.data import ImageSet, open_split


class Labelled:
    def __init__(self, labels):
        self.labels = torch.tensor(labels, dtype=torch.int64)

    def load(self, split):
        return ImageSet(torch.zeros(len(self.labels), 1, 2, 2, dtype=torch.uint8), self.labels)


def test_fitting_labels_are_passed_on():
    assert open_split(Labelled([0, 2, 1]), "train", 3).labels.tolist() == [0, 2, 1]
    assert open_split(Labelled([0]), "evaluation", 1000).labels.tolist() == [0]
    assert open_split(Labelled([5]), "train").labels.tolist() == [5]


def test_too_large_a_label_names_it_and_the_classes():
    with pytest.raises(InputError, match=r"evaluation split is 9, .*num_classes=3 .*0 to 2"):
        open_split(Labelled([0, 9, 1]), "evaluation", 3)
    with pytest.raises(InputError, match="train split is 3"):
        open_split(Labelled([3]), "train", 3)


def test_images_without_labels_point_to_the_validation_split():
    with pytest.raises(InputError, match=r"2 of the 3 .*evaluation_split=validation"):
        open_split(Labelled([-1, 0, -1]), "evaluation", 3)


def test_empty_split_is_refused():
    with pytest.raises(InputError, match=r"evaluation split .* no images"):
        open_split(Labelled([]), "evaluation", 3)
