from __future__ import annotations

import io
import json
import logging
from typing import TYPE_CHECKING

import pytest

from nightfill.observe.logs import set_up

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    root = logging.getLogger("nightfill")
    before = (root.handlers[:], root.level, root.propagate)
    yield logging.getLogger("nightfill.room")
    root.handlers[:], root.propagate = before[0], before[2]
    root.setLevel(before[1])


def test_json_lines_have_the_extra_fields_and_the_error(logger: logging.Logger) -> None:
    stream = io.StringIO()
    set_up(level="info", kind="json", stream=stream)
    logger.info("filled", extra={"context": "repo", "tokens": 12})
    try:
        int("no")
    except ValueError:
        logger.exception("failed")
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert (first["level"], first["logger"], first["message"]) == ("info", "nightfill.room", "filled")
    assert (first["context"], first["tokens"]) == ("repo", 12)
    assert "ValueError: invalid literal" in second["error"]


def test_a_text_line_is_one_line_whatever_it_says(logger: logging.Logger) -> None:
    stream = io.StringIO()
    set_up(level="info", kind="text", stream=stream)
    logger.warning("bad\nname %s", "x", extra={"reason": "a b", "seconds": 0.123456789})
    [line] = stream.getvalue().splitlines()
    assert line.endswith('WARNING nightfill.room: bad\\nname x reason="a b" seconds=0.123457')


def test_setting_up_twice_writes_once_and_leaves_the_root_alone(logger: logging.Logger) -> None:
    root_before = logging.getLogger().handlers[:]
    old, new = io.StringIO(), io.StringIO()
    set_up(level="info", kind="text", stream=old)
    set_up(level="warning", kind="text", stream=new)
    logger.info("quiet")
    logger.warning("loud")
    assert old.getvalue() == ""
    assert len(new.getvalue().splitlines()) == 1
    assert logging.getLogger().handlers == root_before
