"""Many files as one text.

Each file is a heading line `# file: PATH`, its text, a line end if it lacks one, and a blank line. There is no list of
files at the top: the text before a file depends on the files before it alone, so that adding or changing one leaves
the KV of all that comes earlier usable. Files come by path, not by age or size, although files that seldom change
would better come first: only the path gives the same text, and so the same stored KV, on every machine and checkout.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NoReturn

from nightfill.contexts.context import Text
from nightfill.contexts.fingerprint import normalise
from nightfill.errors import BadSource

if TYPE_CHECKING:
    from nightfill.config import ContextSettings

_BIGGEST_SHOWN: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a source held when it was read."""

    content: Text
    mark: bytes
    """Changes when the source may have changed; see `sources.stat_mark`."""
    files: int
    left_out: dict[str, int] = field(default_factory=dict)
    """How many files were left out, by reason: `binary`, `too large`, `link`."""


def show_bytes(count: int) -> str:
    """A number of bytes for people: `512 bytes`, `1.5 MiB`."""
    size = float(count)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{count} bytes" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def show_path(path: str) -> str:
    """A path on one line: bytes that are not UTF-8 and control characters become escapes."""
    text = path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


class Bundle:
    """Collects files in the order of the text, within the bounds of `limits`. `origin` names it in errors."""

    def __init__(self, origin: str, limits: ContextSettings) -> None:
        self._origin, self._limits = origin, limits
        self._parts: list[str] = []
        self._sizes: list[tuple[int, str]] = []
        self._bytes = 0
        self.left_out: dict[str, int] = {}

    @property
    def full(self) -> bool:
        """Whether the bound is passed already, so that only sizes are of interest still."""
        return self._bytes > self._limits.max_bytes

    @property
    def files(self) -> int:
        """Files taken in."""
        return len(self._sizes)

    def leave_out(self, reason: str) -> None:
        """Count a file that is left out."""
        self.left_out[reason] = self.left_out.get(reason, 0) + 1

    def count(self, path: str, size: int) -> None:
        """Count a file by its size alone, when `full`."""
        self._bytes += size
        self._sizes.append((size, path))

    def add(self, path: str, data: bytes) -> bool:
        """Take a file in. False, and it is counted as left out, when it is binary: holds a NUL or is not UTF-8."""
        if b"\0" in data:
            self.leave_out("binary")
            return False
        try:
            text = normalise(data)
        except BadSource:
            self.leave_out("binary")
            return False
        end = "" if text.endswith("\n") or not text else "\n"
        part = f"# file: {show_path(path)}\n{text}{end}\n"
        self.count(path, len(part.encode()))
        if not self.full:
            self._parts.append(part)
        return True

    def reading(self, mark: bytes) -> Reading:
        """All of it. Raises BadSource when it is empty or over the bound."""
        if self.full:
            self._refuse_size()
        if not self._parts:
            out = f" ({show_left_out(self.left_out)} left out)" if self.left_out else ""
            raise BadSource(f"{self._origin}: no text files found{out}")
        return Reading(content=Text("".join(self._parts)), mark=mark, files=self.files, left_out=self.left_out)

    def _refuse_size(self) -> NoReturn:
        biggest = sorted(self._sizes, reverse=True)[:_BIGGEST_SHOWN]
        listed = ", ".join(f"{show_path(path)} ({show_bytes(size)})" for size, path in biggest)
        raise BadSource(
            f"{self._origin}: {show_bytes(self._bytes)} in {self.files} files, more than the {self._limits.max_bytes} "
            f"bytes that contexts.max_bytes allows; the largest: {listed}. Take in less with include patterns or a "
            "subfolder, or raise the bound"
        )


def show_left_out(left_out: dict[str, int]) -> str:
    """`3 binary, 1 too large`."""
    return ", ".join(f"{count} {reason}" for reason, count in sorted(left_out.items()))
