"""The reading process: embeds and judges what it is asked on its standard input, a socket, until that ends.

It gives way to the requests of the gateway that started it. A low weight is not enough: Linux lets a process finish
its slice, 3 ms unless told otherwise, before one that wakes gets the core, whatever their weights (EEVDF,
RUN_TO_PARITY). So its slices are short. Not SCHED_IDLE: beside an engine on all cores it would hardly ever run, and
near answers would never serve.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import socket
import struct
import sys
from typing import TYPE_CHECKING, Final

import msgspec

from nightfill.answers.embed import load_embedder
from nightfill.answers.guard import judge
from nightfill.answers.reader import Asked, Embed, Embedded, Judge, Judged, Ready, Unfit, framed, unframed
from nightfill.errors import BadSetting

if TYPE_CHECKING:
    from nightfill.answers.embed import Embedder

_NICE: Final = 7
"""A fifth of a gateway's weight: less, and beside an engine on all cores each look-up would come too late."""
_SLICE_NS: Final = 100_000
"""The shortest that Linux grants, from 6.12 on; earlier ones take no notice."""
_SCHED_SETATTR: Final = {"x86_64": 314, "aarch64": 274}
_SCHED_ATTR: Final = struct.Struct("=IIQiIQQQ")
"""size, policy, flags, nice, priority, runtime (the slice, for SCHED_OTHER), deadline, period; see sched_setattr(2)."""


def main(folder: str) -> None:
    """Serve until the end of what is asked. `folder`: see `load_embedder`."""
    give_way()
    # Who asked may be gone at any time, and does not wait for an answer then.
    with socket.socket(fileno=0) as line, contextlib.suppress(ConnectionError):
        try:
            embedder = load_embedder(folder)
        except BadSetting as exc:
            line.sendall(framed(Unfit(why=str(exc), param=exc.param)))
            return
        _warm(embedder)
        line.sendall(framed(Ready(identity=embedder.identity)))
        while (asked := unframed(line.recv)) is not None:
            line.sendall(framed(_answer(embedder, msgspec.msgpack.decode(asked, type=Asked))))


def give_way() -> None:
    """Give the calling thread, and those that it starts, little weight and short slices."""
    nice = os.nice(_NICE)  # so much more than the gateway's, which may be high already
    number = _SCHED_SETATTR.get(platform.machine())
    if number is None:
        return
    attributes = _SCHED_ATTR.pack(_SCHED_ATTR.size, os.SCHED_OTHER, 0, nice, 0, _SLICE_NS, 0, 0)
    if ctypes.CDLL(None, use_errno=True).syscall(number, 0, attributes, 0) != 0:
        # Some sandboxes refuse it. Near answers then cost the others more, and are as right.
        sys.stderr.write(f"near answers: sched_setattr refused: {os.strerror(ctypes.get_errno())}\n")


def _warm(embedder: Embedder) -> None:
    """Used once, so that the first look-up does not pay for what is read and compiled then."""
    embedder.embed(["Is it warm?"])
    judge("Is it warm?", ["Is it warm now?"])


def _answer(embedder: Embedder, asked: Asked) -> Embedded | Judged:
    match asked:
        case Embed(texts=texts):
            return Embedded(vectors=embedder.embed(texts).tobytes())
        case Judge(asked=text, stored=stored):
            place, reason = judge(text, stored)
            return Judged(place=place, reason=reason)


if __name__ == "__main__":
    main(*sys.argv[1:])
