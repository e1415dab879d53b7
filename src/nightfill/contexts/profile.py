"""What a log of requests says of prefixes that recur: the loop over its lines, in bounded memory."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from nightfill.contexts.context import Form
from nightfill.contexts.discovery import NODE_BYTES, Sketch, Step
from nightfill.contexts.discovery_prompt import BLOCK_TOKENS, BYTES_PER_TOKEN, About, Shared, chain, text_bytes
from nightfill.contexts.discovery_volatile import VolatileSketch
from nightfill.contexts.profile_log import Asked, Bad, Blocks, block_tokens_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nightfill.contexts.context import Content, Tenant
    from nightfill.contexts.discovery import Finding, Key
    from nightfill.contexts.profile_log import Line

_SIZED_BY: Final = 64
_BAD_SHOWN: Final = 10
_MOST_ABOUTS: Final = 4096
_SECRET: Final = b"nightfill.profile.1\0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """How texts and blocks are measured."""

    min_tokens: int
    """Shorter prefixes are of no interest."""
    block_tokens: int = 0
    """0: as the trace's own lengths say; `BLOCK_TOKENS` for texts."""
    bytes_per_token: float = BYTES_PER_TOKEN

    @property
    def least_bytes(self) -> int:
        """`min_tokens` of text."""
        return max(1, round(self.min_tokens * self.bytes_per_token))

    @property
    def block_bytes(self) -> int:
        """A block of text."""
        return max(1, round((self.block_tokens or BLOCK_TOKENS) * self.bytes_per_token))


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that was left out."""

    file: str
    line: int
    """From 1."""
    why: str
    """Holds nothing of its text."""


class Profile:
    """Takes the lines of one or several logs of a kind, and sums them up. Needs some `max_bytes` of memory at most."""

    def __init__(self, measure: Measure, *, max_bytes: int) -> None:
        self._measure = measure
        self.sketch: Sketch[About] = Sketch(max_nodes=max(1000, max_bytes * 3 // 4 // NODE_BYTES))
        self.volatile: VolatileSketch[About] = VolatileSketch(max_bytes=max_bytes // 4, least_chars=measure.least_bytes)
        self.block_tokens = measure.block_tokens
        """Of a trace; 0 until it is known, and for texts."""
        self.is_trace: bool | None = None
        """None until the first request."""
        self.requests = 0
        self.untimed = 0
        self.prompt_tokens = 0.0
        self.bad = 0
        self.bad_shown: list[BadLine] = []
        self.first_s: float | None = None
        self.last_s: float | None = None
        self._abouts: dict[About, About] = {}
        self._waiting: list[Blocks] = []

    def add(self, line: Line, *, file: str = "", number: int = 0) -> None:
        """Take a line in; `file` and `number` say where it is from, for what is told of bad ones."""
        trace = isinstance(line, Blocks)
        if isinstance(line, Bad) or trace is not (trace if self.is_trace is None else self.is_trace):
            self._note_bad(file, number, line.why if isinstance(line, Bad) else "of another kind than the first one")
            return
        self.is_trace = trace
        self.requests += 1
        self._note_time(line.at_s)
        if isinstance(line, Blocks):
            self._add_blocks(line)
        else:
            self._add_asked(line)

    def finish(self) -> None:
        """No more lines come."""
        if self._waiting:
            self._size_blocks()

    def tokens(self, size: float) -> int:
        """A size of the sketch as tokens."""
        return round(size if self.is_trace else size / self._measure.bytes_per_token)

    def spoils(self, key: Key) -> bool:
        """Whether a short piece of a finding changes from time to time."""
        node = self.sketch.get(key)
        while node is not None and node.parent is not None:
            node = node.parent
        return node is not None and self.volatile.spoils(node.key)

    def _note_bad(self, file: str, number: int, why: str) -> None:
        self.bad += 1
        if len(self.bad_shown) < _BAD_SHOWN:
            self.bad_shown.append(BadLine(file, number, why))

    def _note_time(self, at_s: float | None) -> None:
        if at_s is None:
            self.untimed += 1
        else:
            self.first_s = at_s if self.first_s is None else min(self.first_s, at_s)
            self.last_s = at_s if self.last_s is None else max(self.last_s, at_s)

    def _about(self, *what: str) -> About:
        about = About(*what)
        return self._abouts.get(about) or (
            self._abouts.setdefault(about, about) if len(self._abouts) < _MOST_ABOUTS else about
        )

    def _add_asked(self, line: Asked) -> None:
        self.prompt_tokens += text_bytes(line.prompt) / self._measure.bytes_per_token
        steps = steps_of(line, self._measure)
        about = self._about(line.tenant, line.prompt.model, line.prompt.form)
        if steps and not self.sketch.add(steps, about, line.at_s):
            self.volatile.add(line.prompt, about, steps[0].key)

    def _add_blocks(self, line: Blocks) -> None:
        if self.block_tokens:
            self._count(line)
            return
        self._waiting.append(line)
        if len(self._waiting) == _SIZED_BY:
            self._size_blocks()

    def _size_blocks(self) -> None:
        waiting, self._waiting = self._waiting, []
        self.block_tokens = block_tokens_of(waiting) or 512
        for line in waiting:
            self._count(line)

    def _count(self, line: Blocks) -> None:
        self.prompt_tokens += line.tokens
        least = -(-self._measure.min_tokens // self.block_tokens)
        # The last block may be partial; then only the very same prompt has it.
        steps = [Step(key, (least + n) * self.block_tokens) for n, key in enumerate(line.ids[least - 1 :])]
        self.sketch.add(steps, self._about(), line.at_s)


class Contents:
    """A second look at the log: the texts of some of its findings, by their keys."""

    def __init__(self, findings: Iterable[Finding[About]], measure: Measure) -> None:
        self._measure = measure
        self._shared: dict[Key, Shared | None] = dict.fromkeys(finding.key for finding in findings)

    def add(self, line: Asked) -> None:
        """See what it shares with those before it."""
        for step in steps_of(line, self._measure):
            if step.key in self._shared:
                shared = self._shared[step.key]
                if shared is None:
                    self._shared[step.key] = Shared(line.prompt)
                else:
                    shared.meet(line.prompt)

    def content(self, finding: Finding[About]) -> Content | str:
        """A finding as a context, or why it cannot be one."""
        shared = self._shared[finding.key]
        return (
            shared.content(least_bytes=self._measure.least_bytes)
            if shared is not None
            else "the log cannot be read a second time, or was changed meanwhile"
        )


def steps_of(line: Asked, measure: Measure) -> list[Step]:
    """The steps of a request; those of different tenants have no key in common."""
    return chain(line.prompt, secret_of(line.tenant), least_bytes=measure.least_bytes, block_bytes=measure.block_bytes)[
        0
    ]


def secret_of(tenant: Tenant) -> bytes:
    """What seeds the keys of a tenant, the same in each run."""
    return hashlib.sha256(_SECRET + tenant.encode()).digest()


def form_of(about: About) -> Form | None:
    """The form of a finding; None in traces."""
    return Form(about.form) if about.form else None
