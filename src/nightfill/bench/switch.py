"""What it costs to go from one model to another and back, on memory for one of them: four ways, in turns A B A B A B.

`reload` ends the process, and loads the other model from a disk whose cache has nothing of it. The others put the model
to sleep and wake the other one: without a warm-up, with one, and with the KV of a long context kept in the store.
"""

from __future__ import annotations

import os
import random
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from nightfill.config import ByteSize, DeviceSettings, Duration, LifecycleSettings
from nightfill.engines.engine import Call, Prefix
from nightfill.engines.lifecycle.lifecycle import Lifecycle, Managed
from nightfill.errors import EngineRefused

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from nightfill.engines.engine import Engine
    from nightfill.engines.lifecycle.lifecycle import Event
    from nightfill.engines.lifecycle.sleeper import Sleeper

RELOAD: Final = "reload"
SLEEP: Final = "sleep"
WARM: Final = "sleep, warm-up"
KEPT: Final = "sleep, warm-up, KV kept"
NOT_KEPT: Final = "the same, KV not kept"
PROMPT: Final = "prompt"
REST: Final = "rest"
_DEVICE: Final = "one"
_SLACK: Final = 1.05
"""By which the same load may take more than the last time."""
_SALT: Final = bytes(32)
_STEADY: Final = 3
"""Prompts after the first, for comparison; their time is not the arm's."""
HOW_COLD: Final = "fsync and posix_fadvise(DONTNEED) on the model's file while no process has it open"


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """One of the two models."""

    name: str
    file: Path
    vocabulary: int
    """Tokens that it knows."""
    engine: Engine
    sleeper: Sleeper
    pid: Callable[[], int | None]
    """Of the process that has it now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One prompt, answered by one token."""

    seconds: float
    prompt: int
    reused: int
    """Tokens of the prompt that were not computed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One switch, and the first prompt after it."""

    model: str
    seconds: float
    """From the request to its answer: what the arm counts."""
    phases: Mapping[str, float]
    """Where they went, in order."""
    first: Asked
    steady: tuple[Asked, ...] = ()
    read_bytes: int = 0
    """That the model's process had to have from the disk."""


@dataclass(slots=True, kw_only=True)
class Plan:
    """What is asked of the models."""

    rounds: int
    prompt_tokens: int
    context_tokens: int
    rng: random.Random = field(default_factory=lambda: random.Random(0))  # noqa: S311 - noise for a model, no secret

    def prompt(self, subject: Subject, tokens: int = 0) -> tuple[int, ...]:
        """Random tokens, unlike any before; as many as a prompt has if not said."""
        low, high = min(100, subject.vocabulary // 2), subject.vocabulary // 2
        return tuple(self.rng.randrange(low, high + 1) for _ in range(tokens or self.prompt_tokens))


async def run(a: Subject, b: Subject, plan: Plan, *, said: Callable[[str], None]) -> dict[str, list[Step]]:
    """All arms, in turns where their times are compared. Both models are stopped afterwards. `said` hears what happens.

    Raises EngineError, KvError.
    """
    arms: dict[str, list[Step]] = defaultdict(list)
    said("a first look at both models")
    awake_bytes, asleep_bytes = map(max, zip(*[await _looked_at(subject, plan) for subject in (a, b)], strict=True))
    room_bytes = int(_SLACK * (awake_bytes + asleep_bytes))
    for turn in range(plan.rounds):
        said(f"round {turn + 1}: {RELOAD}; {SLEEP}; {WARM}")
        try:
            arms[RELOAD] += [await _reloaded(a, b, plan), await _reloaded(b, a, plan)]
            await _laid_down(a, b)
            arms[SLEEP] += [await _slept(a, b, plan), await _slept(b, a, plan)]
        finally:
            for subject in (a, b):
                await subject.sleeper.stop()
        both = _Both(a, b, plan, room_bytes=room_bytes)
        async with both.lifecycle:
            await both.settle()
            arms[WARM] += [await both.switch(subject) for subject in (a, b)]
    both = _Both(a, b, plan, room_bytes=room_bytes)
    async with both.lifecycle:
        said(f"fill {plan.context_tokens} tokens of context for each")
        contexts = [(subject, await both.fill(subject)) for subject in (a, b)]
        await both.settle()
        for arm, turns in ((KEPT, plan.rounds), (NOT_KEPT, 1)):
            for turn in range(turns):
                said(f"round {turn + 1}: {arm}")
                for subject, context in contexts:
                    stored = context if arm == KEPT else None
                    arms[arm].append(await both.switch(subject, context.tokens, stored))
    return arms


async def _looked_at(subject: Subject, plan: Plan) -> tuple[int, int]:
    """Bytes that it takes awake and asleep. What is done once is done, and its file is in the page cache."""
    sleeper = subject.sleeper
    await sleeper.wake()
    await sleeper.warm()
    await subject.engine.describe()
    await _ask(subject, plan.prompt(subject))
    awake = await sleeper.footprint()
    await sleeper.sleep(1)
    asleep = await sleeper.footprint()
    await sleeper.stop()
    return awake.device_bytes, asleep.device_bytes


async def _laid_down(a: Subject, b: Subject) -> None:
    """`a` asleep, and `b` awake after it had been asleep."""
    await b.sleeper.sleep(1)
    await a.sleeper.wake()
    await a.sleeper.sleep(1)
    await b.sleeper.wake()


async def _reloaded(subject: Subject, other: Subject, plan: Plan) -> Step:
    began_s = time.perf_counter()
    await other.sleeper.stop()
    stop_s = time.perf_counter() - began_s
    make_cold(subject.file)
    began_s = time.perf_counter()
    woken = await subject.sleeper.wake()
    first = await _ask(subject, plan.prompt(subject))
    seconds = stop_s + time.perf_counter() - began_s
    return await _step(subject, {"stop": stop_s, **woken.seconds}, seconds, first, _read_bytes(subject), plan)


async def _slept(subject: Subject, other: Subject, plan: Plan) -> Step:
    before = _read_bytes(subject)
    began_s = time.perf_counter()
    await other.sleeper.sleep(1)
    sleep_s = time.perf_counter() - began_s
    woken = await subject.sleeper.wake()
    first = await _ask(subject, plan.prompt(subject))
    seconds = time.perf_counter() - began_s
    read_bytes = _read_bytes(subject) - before
    return await _step(subject, {"sleep": sleep_s, **woken.seconds}, seconds, first, read_bytes, plan)


class _Both:
    """Both models under one lifecycle, as in `nightfill serve`; it lets one go as soon as nobody asks it any more."""

    def __init__(self, a: Subject, b: Subject, plan: Plan, *, room_bytes: int) -> None:
        self._subjects = (a, b)
        self._plan = plan
        self._phases: dict[str, float] = {}
        settings = LifecycleSettings(
            devices=(DeviceSettings(name=_DEVICE, max_bytes=ByteSize(room_bytes)),),
            level_1_after_s=Duration(0),
            level_2_after_s=Duration(0),
            min_awake_s=Duration(0),
        )
        models = [Managed(name=one.name, device=_DEVICE, sleeper=one.sleeper) for one in (a, b)]
        self.lifecycle = Lifecycle(models, settings, on_event=self._hear)

    def _hear(self, event: Event) -> None:
        self._phases.update(event.seconds)

    async def settle(self) -> None:
        """Both have been awake, and `b` is. Twice, since before a model whose size is not known all others have to end
        their processes.
        """
        for subject in 2 * self._subjects:
            await self.lifecycle.wake(subject.name)

    async def switch(self, subject: Subject, context: Sequence[int] = (), prefix: Prefix | None = None) -> Step:
        """Ask about `context`, which the store has if it is the `prefix` too."""
        prompt = (*context, *self._plan.prompt(subject))
        before = _read_bytes(subject)
        self._phases.clear()
        began_s = time.perf_counter()
        async with self.lifecycle.use(subject.name):
            first = await _ask(subject, prompt, prefix)
            seconds = time.perf_counter() - began_s
            read_bytes = _read_bytes(subject) - before
            return await _step(subject, self._phases, seconds, first, read_bytes, self._plan, context, prefix)

    async def fill(self, subject: Subject) -> Prefix:
        """A context of the planned length, computed and stored."""
        count = self._plan.context_tokens
        prefix = Prefix(tokens=self._plan.prompt(subject, count), salt=_SALT)
        async with self.lifecycle.use(subject.name), subject.engine.fill(prefix) as fill:
            await fill.extend(count)
            await fill.keep()
        return prefix


async def _step(
    subject: Subject,
    phases: Mapping[str, float],
    seconds: float,
    first: Asked,
    read_bytes: int,
    plan: Plan,
    context: Sequence[int] = (),
    prefix: Prefix | None = None,
) -> Step:
    known = {**phases, PROMPT: first.seconds}
    steady = [await _ask(subject, (*context, *plan.prompt(subject)), prefix) for _ in range(_STEADY)]
    return Step(
        model=subject.name,
        seconds=seconds,
        phases={**known, REST: max(0.0, seconds - sum(known.values()))},
        first=first,
        steady=tuple(steady),
        read_bytes=read_bytes,
    )


async def _ask(subject: Subject, prompt: Sequence[int], prefix: Prefix | None = None) -> Asked:
    body = {"prompt": list(prompt), "max_tokens": 1, "temperature": 0}
    call = Call(
        path="/v1/completions",
        body={name: msgspec.Raw(msgspec.json.encode(value)) for name, value in body.items()},
        stream=False,
        salt=_SALT,
        prefix=prefix,
    )
    began_s = time.perf_counter()
    async with subject.engine.open(call) as reply:
        whole = b"".join([chunk async for chunk in reply.chunks()])
        if reply.status != 200:
            raise EngineRefused(f"answered with status {reply.status}", engine=subject.name, status=reply.status)
    assert whole
    seconds = time.perf_counter() - began_s
    return Asked(seconds=seconds, prompt=reply.tokens.prompt or 0, reused=reply.tokens.reused or 0)


def make_cold(path: Path) -> None:
    """Have the page cache drop a file that no process maps."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def _read_bytes(subject: Subject) -> int:
    pid = subject.pid()
    if pid is None:
        return 0
    text = Path(f"/proc/{pid}/io").read_text(encoding="ascii")
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("read_bytes:"))
