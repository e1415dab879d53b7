"""Which paths of a folder belong to a context: `.gitignore` files at every level, hidden files, `include` patterns."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Final

from nightfill.contexts.wildmatch import Pattern, parse, parse_line, verdict
from nightfill.errors import BadSource

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_PATTERNS: Final = 64
MAX_PATTERN_CHARS: Final = 256

_parsed = functools.lru_cache(maxsize=512)(parse)


class Rules:
    """The rules in force in one folder: its own and those of the folders above it. Immutable.

    Paths are relative to the context's folder, with `/` between parts. The deepest file that says anything about a
    path decides; within a file the last line that matches does.
    """

    __slots__ = ("_levels",)

    def __init__(self, levels: Sequence[tuple[str, str, tuple[Pattern, ...]]] = ()) -> None:
        self._levels = tuple(levels)  # (base to strip from a path, prefix to add, patterns), the outermost first

    def below(self, folder: str, ignore_text: str) -> Rules:
        """The rules in `folder`, `""` for the top, given the text of its `.gitignore`."""
        return Rules((*self._levels, (f"{folder}/" if folder else "", "", _parsed(ignore_text))))

    def above(self, prefix: str, ignore_text: str) -> Rules:
        """The rules with those of a folder further out added, from which ours is reached by `prefix`."""
        return Rules((("", f"{prefix}/" if prefix else "", _parsed(ignore_text)), *self._levels))

    def ignores(self, path: str, *, is_folder: bool) -> bool:
        """Whether the path is ignored. What lies in an ignored folder is not asked about: nobody goes in."""
        for base, prefix, patterns in reversed(self._levels):
            said = verdict(patterns, prefix + path[len(base) :], is_folder=is_folder)
            if said is not None:
                return said
        return False


def hidden(name: str) -> bool:
    """Whether a file or folder is left out for its name: `.git`, `.env`, `.venv` and the like."""
    return name.startswith(".")


class Include:
    """Patterns, in the language of `.gitignore`, of which a file or a folder above it must match one.

    None at all means every file. Raises BadSource for too many, too long or invalid ones.
    """

    __slots__ = ("_patterns",)

    def __init__(self, patterns: Sequence[str]) -> None:
        if len(patterns) > MAX_PATTERNS:
            raise BadSource(f"{len(patterns)} include patterns: at most {MAX_PATTERNS} are allowed", param="include")
        parsed = []
        for text in patterns:
            pattern = parse_line(text) if len(text) <= MAX_PATTERN_CHARS else None
            if pattern is None:
                raise BadSource(
                    f"include pattern {text[:60]!r} is not valid: a .gitignore pattern of at most "
                    f"{MAX_PATTERN_CHARS} characters, such as *.py or docs/**/*.md",
                    param="include",
                )
            parsed.append(pattern)
        self._patterns = tuple(parsed)

    def __call__(self, path: str) -> bool:
        """Whether the file belongs to the context."""
        if not self._patterns:
            return True
        said = verdict(self._patterns, path, is_folder=False)
        while said is None and "/" in path:
            path = path.rpartition("/")[0]
            said = verdict(self._patterns, path, is_folder=True)
        return bool(said)
