"""Engine descriptions as notes in the state, so that a plan can be made while no engine runs."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any, Final

from nightfill.contexts.context import Signature
from nightfill.engines.engine import Description, Reuse

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from nightfill.state.engines import EngineNote

SEEN_S: Final = 600.0
"""So long a worker counts as there since it last told of its engine."""
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


def seen_last(notes: Sequence[EngineNote]) -> list[Description]:
    """The engines that were there when the last of them was, one of each signature."""
    found = [(note.seen_at_s, one) for note in notes if (one := description_of(note.body)) is not None]
    since_s = max((seen_at_s for seen_at_s, _ in found), default=0.0) - SEEN_S
    return list({one.signature: one for seen_at_s, one in found if seen_at_s > since_s}.values())
