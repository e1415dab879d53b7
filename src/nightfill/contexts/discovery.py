"""Which prefixes recur: a bounded sketch of what prompts begin with. Pure.

A prompt comes as its *steps*: keys that each stand for the whole prompt up to some place, so that equal keys mean equal
prefixes (hashes chained over blocks). The sketch counts the steps beyond the length from which a prefix is of interest;
a step's parent is the step before it, which makes it a radix tree of hashes: no text is in it.
"""

from __future__ import annotations

import math
import random
from array import array
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

NODE_BYTES: Final = 640
"""Most bytes of memory that a node takes (CPython 3.11, 64 bits): 330 when it is met once, rather more with gaps."""
_GAPS: Final = 32
_ALL_GAPS: Final = 4096

Key = bytes | int
"""Names a whole prefix: a digest, or the number that a trace gives it."""
About = TypeVar("About")


class Step(NamedTuple):
    """A prefix of a prompt."""

    key: Key
    size: int
    """Of the whole prefix: bytes, or tokens where the source counts them. Grows from step to step."""


class Gaps:
    """A uniform sample of bounded size of the times between uses (Vitter 1985, algorithm R). Seconds."""

    __slots__ = ("_most", "_seen", "values")

    def __init__(self, most: int) -> None:
        self._most = most
        self._seen = 0
        self.values = array("f")

    def add(self, gap_s: float, rng: random.Random) -> None:
        """Take it in, or not."""
        self._seen += 1
        if len(self.values) < self._most:
            self.values.append(gap_s)
        elif (place := rng.randrange(self._seen)) < self._most:
            self.values[place] = gap_s


class Node(Generic[About]):
    """A prefix that was met."""

    __slots__ = ("about", "first_s", "gaps", "key", "last_s", "parent", "requests", "size")

    def __init__(self, step: Step, parent: Node[About] | None, about: About, at_s: float | None) -> None:
        self.key, self.size = step
        self.parent = parent
        self.about = about
        self.requests = 0
        self.first_s = self.last_s = at_s
        self.gaps: Gaps | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding(Generic[About]):
    """A prefix that recurs, at the place where its requests go different ways."""

    key: Key
    within: Key | None
    """Of the next shorter finding that it begins with."""
    about: About
    size: int
    requests: int
    first_s: float | None
    last_s: float | None
    gaps: tuple[float, ...]
    """A sample of the times between two uses, in order of length; empty where requests have no time."""

    @property
    def recurrences(self) -> int:
        """Uses after the first one."""
        return self.requests - 1

    @property
    def stake(self) -> int:
        """What recurrences compute again, in units of `size`."""
        return self.recurrences * self.size


@dataclass(slots=True, kw_only=True)
class Totals:
    """Sums over everything that was added; see `Sketch` for how exact they are."""

    requests: int = 0
    """With a prefix that is long enough."""
    distinct: int = 0
    """Different prefixes of the least length that is of interest."""
    recurring: int = 0
    """Of these, those that came again."""
    recurrences: int = 0
    known_size: int = 0
    """Of all prompts, what an earlier one began with."""
    evicted: int = 0
    evicted_shortest: int = 0
    """Evicted prefixes of the least length: so many of `distinct` may be counted twice, and so many recurrences may be
    missing.
    """
    complete_s: float = math.inf
    """Recurrences that came within so many seconds are all counted."""


class Sketch(Generic[About]):
    """Counts of prefixes, at most `max_nodes` of them: those met longest ago go first, and longer ones before shorter.

    Nothing is counted that was not there (but for collisions of hashes). Of a recurrence it is certain that it is
    counted if fewer than `max_nodes` other steps came in between; `totals` say what may be missing. For one thread.
    """

    def __init__(self, *, max_nodes: int) -> None:
        self.max_nodes = max_nodes
        self.totals = Totals()
        self.gaps = Gaps(_ALL_GAPS)
        """Between uses of the prefixes of the least length."""
        self._rng = random.Random(0)  # noqa: S311 - chooses a sample
        self._nodes: OrderedDict[Key, Node[About]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._nodes)

    def get(self, key: Key) -> Node[About] | None:
        """What is known of a prefix."""
        return self._nodes.get(key)

    def add(self, steps: Sequence[Step], about: About, at_s: float | None) -> int:
        """Count one prompt; of its steps, how many were known before. Steps too short to matter are to be left out.

        at_s: when it came, in any seconds; None for not known.
        """
        steps = steps[: self.max_nodes]
        if not steps:
            return 0
        nodes, totals = self._nodes, self.totals
        path: list[Node[About]] = []
        known = 0
        for step in steps:
            node = nodes.get(step.key)
            if node is None:
                node = nodes[step.key] = Node(step, path[-1] if path else None, about, at_s)
            else:
                known += 1
                self._note_gap(node, at_s, shortest=not path)
            node.requests += 1
            path.append(node)
        totals.requests += 1
        totals.distinct += known == 0
        totals.recurrences += known > 0
        totals.recurring += known > 0 and path[0].requests == 2
        totals.known_size += path[known - 1].size if known else 0
        # The longest is the oldest of them, so that no step outlives the one before it.
        for node in reversed(path):
            nodes.move_to_end(node.key)
        while len(nodes) > self.max_nodes:
            self._evict(at_s)
        return known

    def findings(self, *, least: int = 1) -> list[Finding[About]]:
        """Prefixes with at least so many recurrences, each at the longest at which no use has left it yet."""
        often = [node for node in self._nodes.values() if node.requests > least]
        goes_on = {id(node.parent) for node in often if node.parent and node.parent.requests == node.requests}
        ends = [node for node in often if id(node) not in goes_on]
        chosen = {id(node) for node in ends}
        return [_finding(node, next((up for up in _up(node.parent) if id(up) in chosen), None)) for node in ends]

    def _note_gap(self, node: Node[About], at_s: float | None, *, shortest: bool) -> None:
        if at_s is None:
            return
        if node.last_s is not None:
            gap_s = max(0.0, at_s - node.last_s)
            if node.gaps is None:
                node.gaps = Gaps(_GAPS)
            node.gaps.add(gap_s, self._rng)
            if shortest:
                self.gaps.add(gap_s, self._rng)
        node.last_s = at_s

    def _evict(self, at_s: float | None) -> None:
        _, gone = self._nodes.popitem(last=False)
        totals = self.totals
        totals.evicted += 1
        totals.evicted_shortest += gone.parent is None
        passed_s = 0.0 if at_s is None or gone.last_s is None else max(0.0, at_s - gone.last_s)
        totals.complete_s = min(totals.complete_s, passed_s)


def worth_showing(findings: Sequence[Finding[About]], *, top: int) -> list[Finding[About]]:
    """At most `top` of them, by what is at stake: nested ones only where each has something of its own.

    One that a longer one follows in nine of ten recurrences is left out, and so is one that adds less than a tenth to
    what is at stake in the one that it begins with. In the order of the tree: a finding comes after what it begins
    with, siblings by what is at stake.
    """
    by_key = {one.key: one for one in findings}
    covered = {
        one.within
        for one in findings
        if one.within is not None and one.recurrences >= 0.9 * by_key[one.within].recurrences
    }
    kept: dict[Key, Finding[About]] = {}
    for one in sorted(findings, key=lambda one: one.size):
        above = _above(one, by_key, kept)
        added = (one.size - (above.size if above else 0)) * one.recurrences
        if one.key not in covered and (above is None or added >= 0.1 * above.stake):
            kept[one.key] = one
    best = sorted(kept.values(), key=lambda one: -one.stake)[:top]
    shown = {one.key: one for one in best}
    below: dict[Key | None, list[Finding[About]]] = {}
    for one in best:
        above = _above(one, by_key, shown)
        below.setdefault(above.key if above else None, []).append(replace(one, within=above.key if above else None))
    ordered: list[Finding[About]] = []
    waiting = below.get(None, [])[::-1]
    while waiting:
        ordered.append(waiting.pop())
        waiting += below.get(ordered[-1].key, [])[::-1]
    return ordered


def short_name(key: Key) -> str:
    """What people see of a key."""
    return key[:4].hex() if isinstance(key, bytes) else str(key)


def quantile(values: Sequence[float], share: float) -> float | None:
    """The value below which `share` of them lie, by linear interpolation; None where there are none."""
    if not values:
        return None
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def _above(one: Finding[About], by_key: dict[Key, Finding[About]], among: dict[Key, Any]) -> Finding[About] | None:
    key = one.within
    while key is not None and key not in among:
        key = by_key[key].within
    return by_key[key] if key is not None else None


def _up(node: Node[About] | None) -> Iterator[Node[About]]:
    while node is not None:
        yield node
        node = node.parent


def _finding(node: Node[About], within: Node[About] | None) -> Finding[About]:
    return Finding(
        key=node.key,
        within=within.key if within is not None else None,
        about=node.about,
        size=node.size,
        requests=node.requests,
        first_s=node.first_s,
        last_s=node.last_s,
        gaps=tuple(sorted(node.gaps.values)) if node.gaps is not None else (),
    )
