import pytest

from gossamer.evaluate.answers import is_right, normalised, recall


@pytest.mark.parametrize(
    ("given", "truth"),
    [
        ("Yes.", "yes"),
        ("The left lung", "left lung"),
        ("an X-ray", "x-ray"),
        (" 2 ", "2"),
        ("a", "a"),
        ("Crohn's", "crohns"),
    ],
)
def test_right_answers(given, truth):
    assert is_right(given, truth)


@pytest.mark.parametrize(("given", "truth"), [("no", "yes"), ("left", "left lung"), ("the", "a"), ("", "yes")])
def test_wrong_answers(given, truth):
    assert not is_right(given, truth)


def test_normalising_keeps_inner_hyphens():
    assert normalised("The top-left, corner!") == "top-left corner"


def test_recall_counts_the_true_words():
    assert recall("a mass in the left lung", "left lung mass") == 1
    assert recall("left", "the left lung") == 0.5
    assert recall("", "lung") == 0
