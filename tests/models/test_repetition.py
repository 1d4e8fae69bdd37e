import pytest

from runner.models.repetition import loops, said_once

SENTENCE = [5, 1, 8, 3, 9, 2, 7, 4, 6, 11, 12]


@pytest.mark.parametrize("phrase", [[7], [1, 2], SENTENCE])
def test_a_phrase_over_and_over_is_a_loop_and_stays_once(phrase: list[int]) -> None:
    looping = [30, 31, *phrase * max(4, 40 // len(phrase) + 1)]
    assert loops(looping)
    assert said_once(looping) == [30, 31, *phrase]


@pytest.mark.parametrize("tokens", [[], [7] * 12, SENTENCE * 3, list(range(200)), [*SENTENCE * 4, 99]])
def test_what_people_repeat_is_no_loop(tokens: list[int]) -> None:
    assert not loops(tokens)
    assert said_once(tokens) == tokens
