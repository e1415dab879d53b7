"""What a body has that it must not have, in words for those who sent it."""

from __future__ import annotations

import difflib
import re
from typing import Final

import msgspec
from msgspec import inspect

from nightfill.errors import BadRequest

_PATH: Final = re.compile(r"^(?P<what>.*?)(?: - at `(?P<key>key in )?\$(?P<path>.*)`)?$", re.DOTALL)
_UNKNOWN: Final = re.compile(r"unknown field `(.*)`$", re.DOTALL)


def explained(exc: msgspec.ValidationError, record: type[msgspec.Struct]) -> BadRequest:
    """What to answer to a body that is no `record`: names the member and what is allowed."""
    match = _PATH.match(str(exc))
    assert match is not None  # the pattern takes any text
    what, path = match["what"], (match["path"] or "").removeprefix(".")
    unknown = _UNKNOWN.search(what)
    if unknown is not None:
        known = [name for kind in _kinds_at(record, path) for name in _names(kind)]
        close = difflib.get_close_matches(unknown[1], known, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        where = f"{path}: " if path else ""
        said = f"{where}unknown member {unknown[1][:80]!r}{hint} (known: {', '.join(dict.fromkeys(known))})"
        return BadRequest(said, param=path or unknown[1][:80])
    missing = re.search(r"missing required field `(\w+)`", what)
    if missing is not None:
        param = f"{path}.{missing[1]}" if path else missing[1]
        return BadRequest(f"{param} is required", param=param)
    if what.startswith(("Invalid enum value", "Invalid value")):
        allowed = [str(value) for kind in _kinds_at(record, path) for value in _values(kind)]
        what = f"{what[:120]}; allowed: {', '.join(allowed)}"
    what = what.replace("matching regex '^[A-Za-z_-]{1,32}$'", "of 1 to 32 letters, _ or -")
    return BadRequest(f"{path or 'body'}: {what[:500]}", param=path or None)


def _kinds_at(record: type[msgspec.Struct], path: str) -> list[inspect.Type]:
    """What may stand at `path` of a record, as msgspec writes paths: `source.paths[0]`."""
    kinds: list[inspect.Type] = [inspect.type_info(record)]
    for step in re.findall(r"\[.*?\]|[^.\[]+", path):
        below = [one for kind in kinds for one in _below(kind, step)]
        kinds = [one for kind in below for one in (kind.types if isinstance(kind, inspect.UnionType) else (kind,))]
    return kinds


def _below(kind: inspect.Type, step: str) -> list[inspect.Type]:
    match kind:
        case inspect.StructType(tag_field=field, tag=tag) if step == field:
            return [inspect.LiteralType((tag,))]
        case inspect.StructType(fields=fields):
            return [field.type for field in fields if field.encode_name == step]
        case inspect.ListType(item_type=item) | inspect.VarTupleType(item_type=item):
            return [item]
        case inspect.DictType(value_type=item):
            return [item]
        case _:
            return []


def _names(kind: inspect.Type) -> list[str]:
    return [field.encode_name for field in kind.fields] if isinstance(kind, inspect.StructType) else []


def _values(kind: inspect.Type) -> list[object]:
    match kind:
        case inspect.LiteralType(values=values):
            return list(values)
        case inspect.EnumType(cls=cls):
            return [one.value for one in cls]
        case _:
            return []
