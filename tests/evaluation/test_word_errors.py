import pytest

from runner.evaluation.word_errors import word_error_rate, words


def test_spelling_of_the_same_words_makes_no_difference() -> None:
    assert words(" He wasn’t an ill-disposed  young man. ") == words("he wasn't an ill disposed young man")
    assert words("Straße — Größe!") == "strasse grösse"


def test_the_rate_counts_words_over_all_clips() -> None:
    rate = word_error_rate(["one two three", "four"], ["one too three", "four five"])
    assert rate.value == pytest.approx(2 / 4)
    assert rate.samples == pytest.approx((1 / 3, 1.0))
    assert rate.note == "2 clips, 4 words"
    assert word_error_rate(["Nothing is lost."], ["nothing is lost"]).value == 0
    assert word_error_rate(["lost"], [""]).value == 1
