"""A question on its way to plain words: what is taken word for word is set aside, the rest is spelt one way."""

from __future__ import annotations

import enum
import re
from typing import Final

from nightfill.answers.guard_frames import phrased, spelt
from nightfill.answers.guard_literals import (
    DATES,
    NUMBER,
    ORDINAL,
    QUOTES,
    TIMES,
    date_of,
    normal,
    number_of,
    numbers,
    time_of,
)


class Sort(enum.StrEnum):
    """What an atom is."""

    WORD = "word"
    NAME = "name"
    NUMBER = "number"
    DATE = "date"
    QUOTED = "quoted"
    CODE = "code"
    QUANTITY = "quantity"


_CASED: Final = frozenset(("kb", "mb", "gb", "tb", "kbps", "mbps", "gbps", "mw", "ma", "mv", "pa"))
"""Units that are others in other letters: Mb is no MB."""
_WORD: Final = re.compile(r"[a-z]+(?:['-][a-z]+)*'?", re.IGNORECASE)
_WORDS_JOINED: Final = re.compile(r"[A-Za-z]{2,}(?:[/&+][A-Za-z]{2,})+|[A-Za-z]+-\d+")


class Source:
    """A text on its way to words in lower case; literals are held, and stand in the line as `‹0›`."""

    def __init__(self) -> None:
        self.literals: list[tuple[str, Sort]] = []
        self.names: set[str] = set()
        """Words with a capital where no sentence begins, and elsewhere: which is not told apart."""

    def line(self, text: str) -> str:
        """Words and signs with one space between."""
        text = normal(text)
        text = QUOTES.sub(lambda found: self.held(found[0].strip("`\"'«»").strip(), Sort.QUOTED), text)
        for pattern in DATES:
            text = pattern.sub(lambda found: self.held(date_of(found), Sort.DATE), text)
        text = TIMES.sub(lambda found: self.held(time_of(found), Sort.DATE), text)
        pieces: list[str] = []
        for chunk in text.split():
            if chunk.rstrip("?!,;:.") == "A" and pieces and pieces[-1] != "." and not text.istitle():  # vitamin A
                pieces.append(self.held("A", Sort.NAME).strip())
            else:
                pieces += self.words(chunk)
            pieces += ends(chunk)
        return phrased(" ".join(numbers(spelt(" ".join(pieces)).split())))

    def held(self, content: str, sort: Sort) -> str:
        """What stands for a literal."""
        self.literals.append((content, sort))
        return f" ‹{len(self.literals) - 1}› "

    def words(self, chunk: str) -> list[str]:
        """The words of what stands between two spaces."""
        core = bared(chunk)
        if not core or core.startswith("‹"):
            return core.split()
        if core in {"US", "USA"}:
            return ["usa"]
        if core in {"&", "+"}:
            return ["and" if core == "&" else "plus"]
        if _WORD.fullmatch(core):
            if core in {"IT", "WHO"} or (core.lower() in _CASED and core not in {core.lower(), core.upper()}):
                return self.held(core, Sort.NAME).split()
            if core != core.lower():
                self.names.add(core.lower())
            return core.lower().replace("-", " ").split()
        if (found := ORDINAL.fullmatch(core)) is not None:
            return [f"{found[1]}th"]
        if (found := NUMBER.fullmatch(core)) is not None:
            return number_of(found)
        if _WORDS_JOINED.fullmatch(core):
            return re.sub(r"[/&+-]", " ", core.lower()).split()
        return [","] if set(core) == {"-"} else self.held(core, Sort.CODE).split()


def bared(chunk: str) -> str:
    """`chunk` without the punctuation around it; that of code (`foo()`, `.env`, `C++`) stays."""
    if not chunk.strip("?!,;:….¿¡") or not any(map(str.isalnum, chunk)):  # an end of a sentence, or an operator
        return chunk.strip("?!,;:….¿¡") and chunk
    core = chunk.lstrip("¿¡").rstrip("?!,;:…")
    core = core[1:] if re.match(r"[,;:…]\w", core) else core
    core = core.replace(".", "") if re.fullmatch(r"(?:[A-Za-z]\.)+", core) else core.rstrip(".")
    wrapped = core.startswith(tuple("([{<\"'*_")) and core.endswith(tuple(")]}>\"'*_"))
    return core.strip("()[]{}\"'*") if wrapped or core.count("(") != core.count(")") else core


def ends(chunk: str) -> list[str]:
    """The end of a sentence or of a part of one, if `chunk` is the last of it."""
    if re.search(r"[.?!;]['\")]*$", chunk):
        return ["."]
    return [","] if chunk.endswith((",", ":")) else []
