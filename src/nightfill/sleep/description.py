"""Engine descriptions as notes in the state, so that a plan can be made while no engine runs."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any, Final

from nightfill.contexts.context import Signature
from nightfill.engines.engine import Description, Reuse

if TYPE_CHECKING:
    from collections.abc import Mapping

_KINDS: Final[Mapping[str, type]] = {
    "engine": str,
    "model": str,
    "signature": str,
    "context_length": int,
    "kv_bytes_per_token": int,
    "slots": int,
    "reuse": str,
    "embeddings": bool,
    "version": str,
}


def note_of(description: Description) -> dict[str, str | int | bool]:
    """A flat JSON object."""
    note: dict[str, Any] = {field.name: getattr(description, field.name) for field in fields(description)}
    return {**note, "reuse": description.reuse.name}


def description_of(note: Mapping[str, str | int | bool]) -> Description | None:
    """The inverse of `note_of`; None when another version of nightfill wrote something else."""
    if (
        any(not isinstance(note.get(name), kind) for name, kind in _KINDS.items())
        or note["reuse"] not in Reuse.__members__
    ):
        return None
    values: dict[str, Any] = {name: note[name] for name in _KINDS}
    return Description(**{**values, "reuse": Reuse[values["reuse"]], "signature": Signature(values["signature"])})
