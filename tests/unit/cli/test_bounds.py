from __future__ import annotations

from typing import Any

import msgspec
import pytest

from nightfill.cli.bounds import BOUNDS, check_bounds
from nightfill.config import Duration, Settings, SleepSettings
from nightfill.errors import BadSetting


def numbers(kind: Any, path: str = "") -> set[str]:
    """Every key that holds a number, items of lists as `*`."""
    found: set[str] = set()
    for field in msgspec.structs.fields(kind):
        here = f"{path}.{field.name}" if path else field.name
        item = getattr(field.type, "__args__", (field.type,))[0]
        if isinstance(item, type) and issubclass(item, msgspec.Struct):
            found |= numbers(item, here if item is field.type else f"{here}.*")
        elif isinstance(item, type) and issubclass(item, int | float) and item is not bool:
            found.add(here)
    return found


def test_every_number_has_bounds_and_every_bound_a_number() -> None:
    assert set(BOUNDS) == numbers(Settings)


def test_the_defaults_are_within_them() -> None:
    check_bounds(Settings())


def test_a_value_that_is_no_number_is_out_of_bounds() -> None:
    with pytest.raises(BadSetting, match="quiet_s"):
        check_bounds(Settings(sleep=SleepSettings(quiet_s=Duration("nan"))))
