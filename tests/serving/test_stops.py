"""Stop texts: what a stream shows does not depend on how it is cut into pieces."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from runner.serving.stops import StopTexts

TEXTS = st.text("abc", max_size=24)
STOPS = st.lists(st.text("abc", min_size=1, max_size=4), max_size=3)


@given(st.lists(st.text("abc", max_size=5), max_size=8), STOPS)
def test_the_text_before_the_first_stop_is_shown(pieces: list[str], stops: list[str]) -> None:
    watch = StopTexts(stops)
    shown = "".join([*(watch.feed(piece) for piece in pieces), watch.rest()])
    whole = "".join(pieces)
    found = [at for at in map(whole.find, stops) if at >= 0]
    assert watch.met == bool(found)
    if not found:
        assert shown == whole
    else:  # a longer stop may still be open where a shorter one ends
        assert whole.startswith(shown)
        assert len(shown) <= max(found)
        assert not any(stop in shown for stop in stops)


@given(TEXTS, STOPS)
def test_in_single_characters_the_earliest_end_of_a_stop_counts(text: str, stops: list[str]) -> None:
    watch = StopTexts(stops)
    shown = "".join([*map(watch.feed, text), watch.rest()])
    assert not any(stop in shown for stop in stops)
    assert text.startswith(shown)
