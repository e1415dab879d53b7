"""The table of an arena: which block lies where, in memory that several processes have mapped.

offset      bytes            field (native integers: an arena never leaves its host)
     0       4096            words of the header: magic, version, slab bytes, slabs, buckets; then what changes
  4096       4 * buckets     1 + index of the first entry of each bucket, 0 for none
   ...       4 * slabs       1 + the slab that follows this one in its block or in the free list, 0 for none
   ...      64 * slabs       entries: key (4 words), sequence, length, first slab | 1 + next entry of the bucket << 32,
                             last use in microseconds
   ...                       data: slabs of equal size

*Slabs of one size, chained as a FAT chains clusters*, cannot fragment: any free slab serves any block, whatever mix of
lengths came before; the price is half a slab a block. A chain freed goes to the head of the free list as it is, so the
next block takes warm pages, and mostly neighbours, which are copied in one go.

*Sequence*: 0 while an entry holds nothing, else a number that never comes again. A reader notes it, copies the block
and looks again: when it is still the same, no byte of the copy can be another block's, because a block's entry is
zeroed before its slabs are handed on. (Another processor might show the two stores in another order; then the
block's seal does not match.) Words are read and written whole, so that no reader sees half of one.

*Writers* hold the arena's lock. `dirty` is set while they change something: a successor that finds it set rebuilds
everything from the entries that are whole.
"""

from __future__ import annotations

from array import array
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from nightfill.errors import BlockCorrupt
from nightfill.kv.buffer import ALIGNMENT
from nightfill.kv.key import BlockKey

if TYPE_CHECKING:
    from collections.abc import Iterator

VERSION: Final = 1
_MAGIC: Final = int.from_bytes(b"nf.arena", "little")
_DIRTY, _SEQUENCE, _FREE_HEAD, _FREE, _GROWN, _ENTRIES, _ENTRY_HEAD, _BYTES, _BLOCKS = range(8, 17)
_ENTRY_WORDS: Final = 8
_KEY_BYTES: Final = 32
_SEQ, _LENGTH, _LINKS, _USED = range(4, 8)
_LOW: Final = 0xFFFF_FFFF
_TOO_MANY: Final = 1 << 63
_MAX_STEPS: Final = 64
"""Keys are digests and buckets as many as slabs: a longer bucket is a damaged one."""

_MIN_SLAB: Final = 32 << 10
_MAX_SLABS: Final = 1 << 18
_SMALL: Final = 16 << 20

Runs = list[tuple[int, int]]
"""(slab, how many from it on), in the order of the block's bytes."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """Where everything lies, in bytes from the start of the file."""

    slab_bytes: int
    slabs: int
    buckets: int

    @classmethod
    def for_cap(cls, max_bytes: int) -> Geometry:
        """Small slabs waste less, few slabs are walked sooner: 32 KiB up to 8 GiB, then so large that 2**18 do."""
        slab = ALIGNMENT if max_bytes < _SMALL else _MIN_SLAB
        while slab * _MAX_SLABS < max_bytes:
            slab *= 2
        slabs = max(max_bytes // slab, 1)
        return cls(slab, slabs, max(1 << (slabs - 1).bit_length(), 16))

    @property
    def chain_at(self) -> int:
        """The links between slabs."""
        return ALIGNMENT + 4 * self.buckets

    @property
    def entries_at(self) -> int:
        """The entries, on a page of their own."""
        return -(-(self.chain_at + 4 * self.slabs) // ALIGNMENT) * ALIGNMENT

    @property
    def data_at(self) -> int:
        """The first slab."""
        return -(-(self.entries_at + 8 * _ENTRY_WORDS * self.slabs) // ALIGNMENT) * ALIGNMENT

    @property
    def file_bytes(self) -> int:
        """Length of the whole."""
        return self.data_at + self.slabs * self.slab_bytes

    def slabs_for(self, nbytes: int) -> int:
        """How many hold a block of `nbytes`."""
        return -(-nbytes // self.slab_bytes)


@dataclass(frozen=True, slots=True)
class Entry:
    """One block of the table, as it was when it was looked up."""

    index: int
    sequence: int
    key: BlockKey
    size_bytes: int
    first: int
    used_us: int


class Table:
    """The words of an arena. Look-ups need no lock; `changing` and all that happens within it need the arena's.

    Everything read is checked before it is used as a place: BlockCorrupt says that the table cannot be right.
    """

    def __init__(self, raw: memoryview, geometry: Geometry) -> None:
        self._geometry = geometry
        self._raw = raw[: geometry.data_at]
        self._words = self._raw.cast("Q")
        self._links = self._raw.cast("I")
        self._first_bucket = ALIGNMENT // 4
        self._first_link = geometry.chain_at // 4
        self._first_entry = geometry.entries_at // 8
        self._neighbours = memoryview(array("I", range(2, geometry.slabs + 2)))
        """The links of slabs that are all in one row."""

    # What anybody may do

    @property
    def fits(self) -> bool:
        """Whether the header is one of ours, and of this geometry."""
        wanted = self._identity()
        return list(self._words[: len(wanted)]) == wanted

    @property
    def dirty(self) -> bool:
        """Whether a writer was cut off."""
        return self._words[_DIRTY] != 0

    @property
    def free_slabs(self) -> int:
        """Slabs with memory behind them that hold nothing."""
        return self._words[_FREE]

    @property
    def grown_slabs(self) -> int:
        """Slabs, from the first on, that have memory behind them."""
        return min(self._words[_GROWN], self._geometry.slabs)

    @property
    def used_bytes(self) -> int:
        """Sum of the lengths of all blocks."""
        return self._words[_BYTES]

    @property
    def blocks(self) -> int:
        """How many there are."""
        return self._words[_BLOCKS]

    def find(self, key: BlockKey) -> Entry | None:
        """The entry of `key`."""
        link = self._links[self._bucket(key)]
        for _ in range(_MAX_STEPS):
            if not link or link > self._geometry.slabs:
                return None
            at = self._first_entry + _ENTRY_WORDS * (link - 1)
            found = self._entry(link - 1)
            if found and found.key == key:
                return found
            link = self._words[at + _LINKS] >> 32
        return None

    def unchanged(self, entry: Entry) -> bool:
        """Whether its slabs are still its own."""
        return self._words[self._at(entry.index) + _SEQ] == entry.sequence

    def unused_since(self, entry: Entry) -> bool:
        """Whether it is unchanged, and nobody used it."""
        return self.unchanged(entry) and self._words[self._at(entry.index) + _USED] == entry.used_us

    def stamp(self, entry: Entry, used_us: int) -> None:
        """Note a use. Whoever took the place of the block meanwhile seems used just now: it was, by its writer."""
        self._words[self._at(entry.index) + _USED] = used_us

    def runs(self, entry: Entry) -> Runs:
        """Where its bytes lie. Raises BlockCorrupt."""
        return self._walk(entry.first, self._geometry.slabs_for(entry.size_bytes))

    def entries(self) -> list[Entry]:
        """All blocks, longest unused first."""
        found = (self._entry(index) for index in range(min(self._words[_ENTRIES], self._geometry.slabs)))
        return sorted(filter(None, found), key=lambda entry: entry.used_us)

    # What needs the lock

    def format(self) -> None:
        """Make a table of an arena that is all zeros; the magic comes last, so that half a table is none."""
        identity = self._identity()
        for at in range(1, len(identity)):
            self._words[at] = identity[at]
        self._words[_SEQUENCE] = 1
        self._words[0] = identity[0]

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Around each change. Whoever is cut off inside, be it by an exception, leaves the table dirty."""
        self._words[_DIRTY] = 1
        yield
        self._words[_DIRTY] = 0

    def grow(self, count: int) -> None:
        """Add `count` slabs, which have memory now, to the free ones."""
        grown = self.grown_slabs
        for slab in range(grown, grown + count - 1):
            self._links[self._first_link + slab] = slab + 2
        self._give_back(grown, grown + count - 1, count)
        self._words[_GROWN] = grown + count

    def take(self, count: int) -> Runs:
        """Take `count` slabs off the free list, the last freed first. There must be so many."""
        first = self._words[_FREE_HEAD] - 1
        runs = self._walk(first, count)
        last = runs[-1][0] + runs[-1][1] - 1
        self._words[_FREE_HEAD] = self._links[self._first_link + last]
        self._count(_FREE, -count)
        self._links[self._first_link + last] = 0
        return runs

    def free_runs(self, count: int) -> Runs:
        """The first `count` of the free list."""
        return self._walk(self._words[_FREE_HEAD] - 1, count)

    def add(self, key: BlockKey, size_bytes: int, runs: Runs, used_us: int) -> None:
        """Enter a block whose bytes lie in `runs`, as taken. There must be none of that key."""
        index = self._new_entry()
        bucket, at = self._bucket(key), self._at(index)
        self._raw[8 * at : 8 * at + _KEY_BYTES] = key
        self._words[at + _LENGTH] = size_bytes
        self._words[at + _LINKS] = runs[0][0] | self._links[bucket] << 32
        self._words[at + _USED] = used_us
        self._links[bucket] = index + 1
        self._count(_SEQUENCE, 1)
        self._words[at + _SEQ] = self._words[_SEQUENCE]  # and from here on it is there
        self._count(_BYTES, size_bytes)
        self._count(_BLOCKS, 1)

    def remove(self, entry: Entry) -> Runs:
        """Take a block out; its slabs are free now, at the head of the list. Raises BlockCorrupt."""
        runs = self.runs(entry)
        at = self._at(entry.index)
        self._words[at + _SEQ] = 0
        self._unlink(entry)
        self._words[at + _LINKS] = self._head(_ENTRY_HEAD) << 32
        self._words[_ENTRY_HEAD] = entry.index + 1
        self._give_back(entry.first, runs[-1][0] + runs[-1][1] - 1, self._geometry.slabs_for(entry.size_bytes))
        self._count(_BYTES, -entry.size_bytes)
        self._count(_BLOCKS, -1)
        return runs

    def repair(self) -> Runs:
        """Rebuild all but the entries from the entries that are whole; the runs that are free now."""
        geometry, grown = self._geometry, self.grown_slabs
        high = min(self._words[_ENTRIES], geometry.slabs)
        taken = bytearray(grown)
        kept: dict[BlockKey, Entry] = {}
        # The latest first: of two blocks that claim one key or one slab, the later has the better claim.
        for entry in sorted(filter(None, map(self._entry, range(high))), key=lambda entry: -entry.sequence):
            if entry.key not in kept and self._claim(entry, taken):
                kept[entry.key] = entry
        whole = {entry.index for entry in kept.values()}
        self._links[self._first_bucket : self._first_bucket + geometry.buckets] = array(
            "I", bytes(4 * geometry.buckets)
        )
        self._words[_ENTRY_HEAD] = 0
        for index in range(high):
            if index not in whole:
                at = self._at(index)
                self._words[at + _SEQ] = 0
                self._words[at + _LINKS] = self._words[_ENTRY_HEAD] << 32
                self._words[_ENTRY_HEAD] = index + 1
        for entry in kept.values():
            bucket = self._bucket(entry.key)
            self._words[self._at(entry.index) + _LINKS] = entry.first | self._links[bucket] << 32
            self._links[bucket] = entry.index + 1
        self._words[_ENTRIES] = high
        self._words[_GROWN] = grown
        known = self._words[_SEQUENCE] if self._words[_SEQUENCE] < _TOO_MANY // 2 else 1
        self._words[_SEQUENCE] = max([known, *(entry.sequence for entry in kept.values())])
        self._words[_BYTES] = sum(entry.size_bytes for entry in kept.values())
        self._words[_BLOCKS] = len(kept)
        self._words[_FREE_HEAD] = self._words[_FREE] = 0
        for slab in range(grown - 1, -1, -1):
            if not taken[slab]:
                self._give_back(slab, slab, 1)
        return self.free_runs(self.free_slabs) if self.free_slabs else []

    # How

    def _identity(self) -> list[int]:
        return [_MAGIC, VERSION, self._geometry.slab_bytes, self._geometry.slabs, self._geometry.buckets]

    def _bucket(self, key: BlockKey) -> int:
        return self._first_bucket + (int.from_bytes(key[:4], "little") & (self._geometry.buckets - 1))

    def _at(self, index: int) -> int:
        return self._first_entry + _ENTRY_WORDS * index

    def _entry(self, index: int) -> Entry | None:
        at = self._at(index)
        sequence = self._words[at + _SEQ]
        if not sequence:
            return None
        key = BlockKey(bytes(self._raw[8 * at : 8 * at + _KEY_BYTES]))
        size_bytes, links, used_us = self._words[at + _LENGTH : at + _ENTRY_WORDS]
        if self._words[at + _SEQ] != sequence:
            return None
        return Entry(index, sequence, key, size_bytes, links & _LOW, used_us)

    def _walk(self, first: int, count: int) -> Runs:
        links, base, slabs = self._links, self._first_link, self.grown_slabs
        if not 0 <= first < slabs or not 0 < count <= slabs:
            raise BlockCorrupt(f"the arena's table leads to {count} slabs from {first} on, of {slabs}")
        runs: Runs = []
        start = at = first
        left = count - 1
        while left:
            following = links[base + at]  # 1 + the next slab
            at += 1
            if following != at + 1:
                runs.append((start, at - start))
                start = at = following - 1
            if not 0 <= at < slabs:
                raise BlockCorrupt(f"the arena's table leads to slab {at} of {slabs}")
            left -= 1
            # Most often all the rest are neighbours, which one comparison tells sooner than as many steps.
            if at + left < slabs and links[base + at : base + at + left] == self._neighbours[at : at + left]:
                at += left
                left = 0
        runs.append((start, at + 1 - start))
        return runs

    def _give_back(self, first: int, last: int, count: int) -> None:
        self._links[self._first_link + last] = self._head(_FREE_HEAD)
        self._words[_FREE_HEAD] = first + 1
        self._count(_FREE, count)

    def _head(self, word: int) -> int:
        link = self._words[word]
        if link > self._geometry.slabs:
            raise BlockCorrupt(f"the arena's table leads to {link - 1} of {self._geometry.slabs} from word {word}")
        return link

    def _count(self, word: int, by: int) -> None:
        value = self._words[word] + by
        if not 0 <= value < _TOO_MANY:
            raise BlockCorrupt(f"the arena's table counts {value} in word {word}")
        self._words[word] = value

    def _new_entry(self) -> int:
        link, slabs = self._words[_ENTRY_HEAD], self._geometry.slabs
        if link:
            if link > slabs or self._words[self._at(link - 1) + _SEQ]:
                raise BlockCorrupt(f"the arena's table has no free entry {link - 1}")
            self._words[_ENTRY_HEAD] = self._words[self._at(link - 1) + _LINKS] >> 32
            return link - 1
        index = self._words[_ENTRIES]
        if index >= slabs:
            raise BlockCorrupt(f"the arena's table has {index} entries for {slabs} slabs")
        # The sequence says that it holds nothing; what was cut off here before may have left one.
        self._words[self._at(index) + _SEQ] = 0
        self._words[_ENTRIES] = index + 1
        return index

    def _unlink(self, entry: Entry) -> None:
        """Take an entry out of its bucket."""
        following = self._words[self._at(entry.index) + _LINKS] >> 32
        bucket = self._bucket(entry.key)
        link = self._links[bucket]
        if link == entry.index + 1:
            self._links[bucket] = following
            return
        for _ in range(_MAX_STEPS):
            if not 0 < link <= self._geometry.slabs:
                break
            at = self._at(link - 1) + _LINKS
            link = self._words[at] >> 32
            if link == entry.index + 1:
                self._words[at] = self._words[at] & _LOW | following << 32
                return
        raise BlockCorrupt(f"the arena's table has entry {entry.index} in no bucket")

    def _claim(self, entry: Entry, taken: bytearray) -> bool:
        """Mark the slabs of a block as taken, if it is whole and none of them is taken yet."""
        if entry.size_bytes % ALIGNMENT or entry.sequence >= _TOO_MANY // 2:
            return False
        try:
            runs = self.runs(entry)
        except BlockCorrupt:
            return False
        if any(any(taken[slab : slab + count]) for slab, count in runs):
            return False
        for slab, count in runs:
            taken[slab : slab + count] = b"\1" * count
        return True
