"""What a Redis tier knows of its blocks, kept in the server itself, so that all who use it see the same.

Three keys, which share a hash tag and so one node of a cluster: `<name>:b:<hex>` is a block, the sorted set
`<name>:used` holds the last use of each, and the hash `<name>:sizes` its length, with their sum under `#bytes`. They
change together, in a script, and the sum never drifts. Blocks are the truth: an index that the server lost is built
again from them, and what the index has and the server lost is forgotten when somebody notices.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from nightfill.errors import TierFull, TierUnavailable
from nightfill.kv.eviction import Record
from nightfill.kv.key import BlockKey
from nightfill.kv.resp import ReplyError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from nightfill.kv.resp import Reply
    from nightfill.kv.resp_pool import Pool

_NAME: Final = re.compile(rb"[0-9a-f]{64}")
_BATCH: Final = 500
"""Blocks that one script looks at, so that nobody else on the server waits for long."""
_STALE: Final = frozenset({"READONLY", "LOADING", "MASTERDOWN", "MOVED", "ASK", "CLUSTERDOWN", "NOAUTH", "NOPERM"})
"""Errors that another server behind the same name may not have."""

_SCRIPT: Final = rb"""
local block, used, sizes = KEYS[1], KEYS[2], KEYS[3]
local op, now = ARGV[1], tonumber(ARGV[2])
if not now then
  local time = redis.call('TIME')
  now = tonumber(time[1]) + tonumber(time[2]) / 1000000
end

local function length(name)
  local found = redis.pcall('STRLEN', block .. name)
  return type(found) == 'number' and found or 0  -- of another type: no block
end
local function forget(name)
  local size = redis.call('HGET', sizes, name)
  if size then
    redis.call('HDEL', sizes, name)
    redis.call('HINCRBY', sizes, '#bytes', -tonumber(size))
  end
  redis.call('ZREM', used, name)
end
local function note(name, size, at)
  forget(name)
  redis.call('HSET', sizes, name, size)
  redis.call('HINCRBY', sizes, '#bytes', size)
  redis.call('ZADD', used, string.format('%.6f', at), name)
end
local function bytes()
  return tonumber(redis.call('HGET', sizes, '#bytes') or 0)
end

if op == 'room' then  -- name, incoming bytes, cap, first candidate, number of candidates
  local name, offset = ARGV[3], tonumber(ARGV[6])
  local blocks = redis.call('HLEN', sizes) - redis.call('HEXISTS', sizes, '#bytes')
    - redis.call('HEXISTS', sizes, '#scanned')
  if blocks ~= redis.call('ZCARD', used) then redis.call('UNLINK', sizes, used) end
  local need = bytes() - tonumber(redis.call('HGET', sizes, name) or 0) + tonumber(ARGV[4]) - tonumber(ARGV[5])
  local reply = {redis.call('HEXISTS', sizes, '#scanned'), need}
  if need > 0 then
    local found = redis.call('ZRANGE', used, offset, offset + tonumber(ARGV[7]) - 1, 'WITHSCORES')
    for i = 1, #found, 2 do
      reply[#reply + 1] = found[i]
      reply[#reply + 1] = redis.call('HGET', sizes, found[i]) or 0
      reply[#reply + 1] = found[i + 1]
    end
  end
  return reply
elseif op == 'evict' then  -- (name, last use as the evictor knows it)...
  local evicted = 0
  for i = 3, #ARGV, 2 do
    if tonumber(redis.call('ZSCORE', used, ARGV[i])) == tonumber(ARGV[i + 1]) then
      evicted = evicted + redis.call('UNLINK', block .. ARGV[i])
      forget(ARGV[i])
    end
  end
  return evicted
elseif op == 'commit' then  -- name, cap
  local size = length(ARGV[3])
  if size > 0 then note(ARGV[3], size, now) end
  return bytes() - tonumber(ARGV[4])
elseif op == 'touch' then  -- name
  if redis.call('ZSCORE', used, ARGV[3]) then
    return redis.call('ZADD', used, 'XX', string.format('%.6f', now), ARGV[3])
  end
  local size = length(ARGV[3])
  if size > 0 then note(ARGV[3], size, now) end
elseif op == 'heal' then  -- names
  for i = 3, #ARGV do
    if length(ARGV[i]) == 0 then forget(ARGV[i]) end
  end
elseif op == 'drop' then  -- name
  local dropped = redis.call('UNLINK', block .. ARGV[3])
  forget(ARGV[3])
  return dropped
elseif op == 'usage' then
  return {bytes(), redis.call('ZCARD', used)}
elseif op == 'look' then  -- names
  local reply = {string.format('%.6f', now)}
  for i = 3, #ARGV do
    local at, size = redis.call('ZSCORE', used, ARGV[i]), redis.call('HGET', sizes, ARGV[i])
    if not at or not size then
      local idle = redis.pcall('OBJECT', 'IDLETIME', block .. ARGV[i])  -- refused under an LFU policy
      at, size = now - (type(idle) == 'number' and idle or 0), length(ARGV[i])
      if size > 0 then note(ARGV[i], size, at) end
      at = string.format('%.6f', at)
    end
    if tonumber(size) > 0 then
      reply[#reply + 1] = ARGV[i]
      reply[#reply + 1] = size
      reply[#reply + 1] = at
    end
  end
  return reply
elseif op == 'scanned' then
  redis.call('HSET', sizes, '#scanned', string.format('%.6f', now))
end
return 0
"""
_DIGEST: Final = hashlib.sha1(_SCRIPT, usedforsecurity=False).hexdigest().encode()


@dataclass(frozen=True, slots=True)
class Room:
    """What stands in the way of a block."""

    scanned: bool
    """Whether the index knows all blocks; else it was lost, and `RedisIndex.scan` builds it again."""
    need_bytes: int
    """To be freed first."""
    candidates: tuple[Record, ...]
    """Oldest use first; by the server's clock."""


class RedisIndex:
    """The index of the blocks under `name`, and the blocks' own keys. As safe to use from threads as its pool.

    Each method is one round trip, but for `scan`, and raises TierUnavailable or TierFull. `clock` replaces the
    server's, for tests.
    """

    def __init__(self, pool: Pool, *, name: bytes, clock: Callable[[], float] | None = None) -> None:
        self._pool = pool
        self._prefix = name + b":b:"
        self._used = name + b":used"
        self._sizes = name + b":sizes"
        self._clock = clock

    def value_key(self, key: BlockKey) -> bytes:
        """Under which name a block lies."""
        return self._prefix + _name(key)

    def room(self, key: BlockKey, nbytes: int, *, max_bytes: int, offset: int, count: int) -> Room:
        """What must go before `nbytes` of `key` fit, and `count` blocks, from the `offset` oldest on, that may."""
        reply = self._run(b"room", _name(key), *_numbers(nbytes, max_bytes, offset, count))
        scanned, need, *flat = _listed(reply)
        return Room(scanned == 1, _int(need), tuple(_records(flat)))

    def evict(self, records: Iterable[Record]) -> int:
        """Delete these blocks, but not those used since; how many were there."""
        return _int(self._run(b"evict", *(word for record in records for word in (_name(record.key), _score(record)))))

    def commit(self, key: BlockKey, sealed: memoryview, *, max_bytes: int) -> int:
        """Store a block and note it, both or neither; bytes that all together are over `max_bytes` now."""
        arguments = [_name(key), *_numbers(max_bytes)]
        replies = self._pool.call(
            [b"MULTI"],
            [b"SET", self.value_key(key), sealed],
            self._script(b"commit", *arguments, whole=False),
            [b"EXEC"],
        )
        # An error of a single command comes first when it was queued, and within the last reply when it was executed.
        for reply in replies:
            self._value(reply)
        stored, noted = _listed(replies[-1])
        self._value(stored)
        return _int(self._run(b"commit", *arguments) if _unknown(noted) else self._value(noted))

    def touch(self, key: BlockKey) -> None:
        """Note a use, without waiting for the server to do so."""
        self._pool.post(self._script(b"touch", _name(key), whole=True))

    def heal(self, key: BlockKey) -> None:
        """Forget a block if the server lost it, without waiting for that."""
        self._pool.post(self._script(b"heal", _name(key), whole=True))

    def drop(self, key: BlockKey) -> bool:
        """Delete a block; whether it was there."""
        return _int(self._run(b"drop", _name(key))) == 1

    def usage(self) -> tuple[int, int]:
        """Bytes and blocks."""
        used_bytes, blocks = _listed(self._run(b"usage"))
        return _int(used_bytes), _int(blocks)

    def scan(self) -> tuple[float, list[Record]]:
        """The server's time and all blocks, in no order, after index and blocks have been brought to agree."""
        found: dict[BlockKey, Record] = {}
        now_s = 0.0
        # The prefix holds nothing that is special in a pattern.
        for names in self._cursor([b"SCAN"], [b"MATCH", self._prefix + b"*"], step=1):
            ours = [name for whole in names if _NAME.fullmatch(name := whole.removeprefix(self._prefix))]
            for batch in _batches(ours):
                now, *flat = _listed(self._run(b"look", *batch))
                now_s = float(_bytes(now))
                found |= {record.key: record for record in _records(flat)}
        for names in self._cursor([b"ZSCAN", self._used], [], step=2):
            lost = [name for name in names if not _NAME.fullmatch(name) or _key(name) not in found]
            for batch in _batches(lost):
                self._run(b"heal", *batch)
        self._run(b"scanned")
        return now_s, list(found.values())

    def _cursor(self, command: list[bytes], options: list[bytes], *, step: int) -> Iterator[list[bytes]]:
        cursor = b"0"
        while True:
            reply = self._value(self._pool.call([*command, cursor, *options, b"COUNT", b"%d" % _BATCH])[0])
            following, items = _listed(reply)
            yield [_bytes(item) for item in _listed(items)[::step]]
            cursor = _bytes(following)
            if cursor == b"0":
                return

    def _script(self, op: bytes, *arguments: bytes, whole: bool) -> list[bytes]:
        """A command that runs the script, `whole` or by its digest, which the server may not know."""
        how = [b"EVAL", _SCRIPT] if whole else [b"EVALSHA", _DIGEST]
        now = b"%.6f" % self._clock() if self._clock else b"server"
        return [*how, b"3", self._prefix, self._used, self._sizes, op, now, *arguments]

    def _run(self, op: bytes, *arguments: bytes) -> Reply:
        reply = self._pool.call(self._script(op, *arguments, whole=False))[0]
        if _unknown(reply):
            reply = self._pool.call(self._script(op, *arguments, whole=True))[0]
        return self._value(reply)

    def _value(self, reply: Reply) -> Reply:
        return checked(reply, self._pool)


def checked(reply: Reply, pool: Pool) -> Reply:
    """The reply, unless it is an error: then TierFull or TierUnavailable."""
    if not isinstance(reply, ReplyError):
        return reply
    if "OOM command not allowed" in reply.text:  # an error of a command in a script is not always at its beginning
        raise TierFull(f"{pool.name}: the server is at its maxmemory: {reply.text}")
    if reply.code in _STALE:
        pool.discard()
    raise TierUnavailable(f"{pool.name}: {reply.text}")


def _unknown(reply: Reply) -> bool:
    return isinstance(reply, ReplyError) and reply.code == "NOSCRIPT"


def _name(key: BlockKey) -> bytes:
    return key.hex().encode()


def _key(name: bytes) -> BlockKey:
    return BlockKey(bytes.fromhex(name.decode()))


def _score(record: Record) -> bytes:
    return b"%.17g" % record.used_s


def _records(flat: Sequence[Reply]) -> Iterator[Record]:
    for name, size, used_s in zip(flat[::3], flat[1::3], flat[2::3], strict=True):
        yield Record(_key(_bytes(name)), _int(size), float(_bytes(used_s)))


def _numbers(*numbers: int) -> list[bytes]:
    return [b"%d" % number for number in numbers]


def _batches(names: list[bytes]) -> Iterator[list[bytes]]:
    for start in range(0, len(names), _BATCH):
        yield names[start : start + _BATCH]


def _listed(reply: Reply) -> list[Reply]:
    if not isinstance(reply, list):
        raise TierUnavailable("a reply that nobody expects")
    return reply


def _int(reply: Reply) -> int:
    if isinstance(reply, int) or (isinstance(reply, bytes) and reply.isdigit()):
        return int(reply)
    raise TierUnavailable("a reply that nobody expects")


def _bytes(reply: Reply) -> bytes:
    if not isinstance(reply, bytes):
        raise TierUnavailable("a reply that nobody expects")
    return reply
