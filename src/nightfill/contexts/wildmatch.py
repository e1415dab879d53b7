"""The pattern language of `.gitignore` (gitignore(5)), as regular expressions.

Written here because libraries for it answer for whole trees at once and then differ from git where patterns are negated
inside ignored folders. A walk that does not enter ignored folders needs only the verdict on one path, which is short;
the tests hold it against git itself.

Every star is matched without backtracking into earlier ones (leftmost is best for all but the last), so a hostile
pattern costs no more than its length times the path's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

_POSIX: Final = {
    "alnum": "a-zA-Z0-9",
    "alpha": "a-zA-Z",
    "blank": " \\t",
    "cntrl": "\\x00-\\x1f\\x7f",
    "digit": "0-9",
    "graph": "\\x21-\\x7e",
    "lower": "a-z",
    "print": "\\x20-\\x7e",
    "punct": "\\x21-\\x2f\\x3a-\\x40\\x5b-\\x60\\x7b-\\x7e",
    "space": "\\t-\\r ",
    "upper": "A-Z",
    "xdigit": "0-9a-fA-F",
}
_FOLDERS: Final = "(?:[^/]+/)*"
_STARS_BEHIND_TEXT: Final = re.compile(r"([^*?\[\\]*[^*?\[\\/])\*{2,}(/|$)")


@dataclass(frozen=True, slots=True)
class Pattern:
    """One line. `regex` matches a whole path relative to the file's folder, or just its name if `by_name`."""

    regex: re.Pattern[str]
    negated: bool
    folders_only: bool
    by_name: bool

    def matches(self, path: str, *, is_folder: bool) -> bool:
        """Whether the line speaks of this path (not of what lies below it)."""
        if self.folders_only and not is_folder:
            return False
        return self.regex.fullmatch(path.rpartition("/")[2] if self.by_name else path) is not None


def parse_line(line: str) -> Pattern | None:
    """The pattern of a line; None for comments, blank lines, and what git takes for no pattern."""
    line = _without_trailing_blanks(line.removesuffix("\r"))
    if not line or line.startswith("#"):
        return None
    negated = line.startswith("!")
    line = line.removeprefix("!")
    folders_only = line.endswith("/")
    line = line.removesuffix("/")
    by_name = "/" not in line
    line = line.removeprefix("/")
    if not line:
        return None
    try:
        regex = _segment(line) if by_name else _line(line)
    except _NoPattern:
        return None
    return Pattern(re.compile(regex, re.DOTALL), negated, folders_only, by_name)


def parse(text: str) -> tuple[Pattern, ...]:
    """The patterns of a whole file, in order."""
    return tuple(pattern for line in text.removeprefix("\ufeff").split("\n") if (pattern := parse_line(line)))


def verdict(patterns: tuple[Pattern, ...], path: str, *, is_folder: bool) -> bool | None:
    """What the last pattern that matches says: True for a match, False for a negated one; None when none does."""
    for pattern in reversed(patterns):
        if pattern.matches(path, is_folder=is_folder):
            return not pattern.negated
    return None


class _NoPattern(ValueError):
    """An open bracket or a backslash at the end: git lets such a line match nothing."""


def _without_trailing_blanks(line: str) -> str:
    stripped = line.rstrip(" ")
    if stripped != line and (len(stripped) - len(stripped.rstrip("\\"))) % 2:
        return stripped + " "  # the first of them is escaped
    return stripped


def _line(text: str) -> str:
    """git compares what comes before the first wildcard by itself, so that stars right behind it stand at a beginning,
    where they cross slashes.
    """
    stem = _STARS_BEHIND_TEXT.match(text)
    if stem is None:
        return _path(text.split("/"))
    rest = text[stem.end() :]
    return re.escape(stem[1]) + ("(?:.*/)?" + _path(rest.split("/")) if stem[2] else ".*")


def _path(segments: list[str]) -> str:
    """Segments between `**` belong together; all groups but the last take their leftmost place."""
    groups: list[list[str]] = [[]]
    for segment in segments:
        if len(segment) > 1 and not segment.strip("*"):
            groups.append([])
        else:
            groups[-1].append(_segment(segment))
    if len(groups) == 1:
        return "/".join(groups[0])
    first, *middle, last = groups
    out = "".join(f"{segment}/" for segment in first)
    out += "".join(f"(?>(?:[^/]+/)*?{'/'.join(group)}/)" for group in middle if group)
    return out + (_FOLDERS + "/".join(last) if last else ".+")


def _segment(text: str) -> str:
    """What lies between two slashes: parts between stars, all but the last in their leftmost place."""
    parts = [""]
    position = 0
    while position < len(text):
        char = text[position]
        position += 1
        if char == "*":
            parts.append("")
        elif char == "?":
            parts[-1] += "[^/]"
        elif char == "[":
            bracket, position = _bracket(text, position)
            parts[-1] += bracket
        elif char == "\\":
            if position == len(text):
                raise _NoPattern
            parts[-1] += re.escape(text[position])
            position += 1
        else:
            parts[-1] += re.escape(char)
    if len(parts) == 1:
        return parts[0]
    first, *middle, last = parts
    return first + "".join(f"(?>[^/]*?{part})" for part in middle if part) + "[^/]*" + last


def _bracket(text: str, position: int) -> tuple[str, int]:
    """A bracket expression from behind its `[`; the regular expression and the place behind its `]`."""
    negated = text[position : position + 1] in ("!", "^")
    position += negated
    items: list[str] = []
    first = True
    while True:
        if position >= len(text):
            raise _NoPattern
        if text[position] == "]" and not first:
            break
        first = False
        if text.startswith("[:", position) and (end := text.find(":]", position)) > 0:
            name = text[position + 2 : end]
            if name not in _POSIX:
                raise _NoPattern
            items.append(_POSIX[name])
            position = end + 2
            continue
        low, position = _char(text, position)
        items.append(re.escape(low))  # on its own too: git takes a range that runs backwards for its first character
        if text.startswith("-", position) and text[position + 1 : position + 2] not in ("", "]"):
            high, position = _char(text, position + 1)
            if low <= high:
                items.append(f"{re.escape(low)}-{re.escape(high)}")
    inside = "".join(items)
    return (f"[^/{inside}]" if negated else f"(?!/)[{inside}]"), position + 1


def _char(text: str, position: int) -> tuple[str, int]:
    if text[position] == "\\":
        position += 1
        if position >= len(text):
            raise _NoPattern
    return text[position], position + 1
