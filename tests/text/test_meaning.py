"""Names that change what is learnt, however they are spelled."""

import pytest

from ft.text import meaning


@pytest.mark.parametrize(
    "name",
    ["weight", "Weights", "sample_weight", "loss-weight", "lossMask", "mask", "LOSS", "train"],
)
def test_weights_and_masks_are_told_by_their_names(name):
    assert meaning.weighs(name)


@pytest.mark.parametrize("name", ["weighted", "body_weight", "attention_mask", "trained", "gloss"])
def test_other_names_are_none(name):
    assert not meaning.weighs(name)


def test_images_are_told_by_their_names():
    assert all(map(meaning.shows, ("image", "Images", "imageUrl", "VIDEO")))
    assert not any(map(meaning.shows, ("imagery", "image_caption")))


def test_a_weight_of_one_changes_nothing():
    assert all(map(meaning.is_one, (1, 1.0, True, "1", "1.00", "true", " True ")))
    assert not any(map(meaning.is_one, (0, 0.5, False, "0", "x", None, [1], "")))


def test_a_text_of_which_nothing_can_be_seen():
    assert all(map(meaning.blank, ("", " \n\t", "\u00a0\u3000", "\u200b \ufeff\u2060\u200d")))
    assert not any(map(meaning.blank, ("a", "\u200ba", ".", "\u0301", "👩\u200d🚀")))
