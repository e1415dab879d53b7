from __future__ import annotations

from typing import Any

import msgspec
import pytest

from nightfill.cli.bounds import BOUNDS, check_bounds
from nightfill.config import BudgetSettings, Duration, PriceSettings, Settings, SleepSettings
from nightfill.errors import BadSetting


def numbers(kind: Any, path: str = "") -> set[str]:
    """Every key that holds a number, items of lists and of objects as `*`."""
    found: set[str] = set()
    for field in msgspec.structs.fields(kind):
        here = f"{path}.{field.name}" if path else field.name
        if getattr(field.type, "__origin__", None) is dict:
            item = field.type.__args__[1]
            if isinstance(item, type) and issubclass(item, int | float):
                found.add(f"{here}.*")
            continue
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


def test_each_number_of_an_object_is_within_its_bounds() -> None:
    with pytest.raises(BadSetting, match=r"budgets\.weights\.acme = 0\.0: must be 0\.001 to 1_000"):
        check_bounds(Settings(budgets=BudgetSettings(weights={"acme": 0.0})))
    check_bounds(Settings(prices=PriceSettings(machines={"h100": 2.5})))
