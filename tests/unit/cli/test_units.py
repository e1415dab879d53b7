from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightfill.cli.units import parse_duration, parse_size, show_duration


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (512, 512),
        ("512", 512),
        ("64KiB", 65536),
        ("1.5GB", 1_500_000_000),
        ("2 TiB", 2 << 40),
        ("1_000b", 1000),
        (0, 0),
    ],
)
def test_sizes(text: object, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [(30, 30), (0.5, 0.5), ("250ms", 0.25), ("4h", 14400), ("7d", 604800), ("90", 90), ("1.5 m", 90)],
)
def test_durations(text: object, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "value", ["", "x", "-1", -1, "1x", "1 2", None, True, [], float("nan"), float("inf"), "1e3", "٣"]
)
def test_what_is_no_size_or_duration_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="must be a size such as"):
        parse_size(value)
    with pytest.raises(ValueError, match="must be a duration such as"):
        parse_duration(value)


def test_a_broken_byte_is_refused() -> None:
    with pytest.raises(ValueError, match="must be a size"):
        parse_size(1.5)


@given(st.text(max_size=8))
def test_any_text_gives_a_value_or_a_clear_refusal(text: str) -> None:
    for parse in (parse_size, parse_duration):
        try:
            assert parse(text) >= 0
        except ValueError as error:
            assert "such as" in str(error)  # noqa: PT017 - most texts are refused, some are not


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.25, "0.25 s"), (90, "90 s"), (300, "5 min"), (14400, "4 h"), (604800, "7 d")]
)
def test_durations_are_shown_short(seconds: float, text: str) -> None:
    assert show_duration(seconds) == text
