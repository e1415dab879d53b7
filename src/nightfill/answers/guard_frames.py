"""The frame of a question: what is asked about the rest ("how can I", "is it possible to", "what is the price of").

The tables are in `phrasing.txt` beside this module.
"""

from __future__ import annotations

import re
from typing import Final

from nightfill.answers.guard_words import PARTICIPLES, sections

_TABLES: Final = sections("phrasing.txt")
_MACROS: Final = dict(line.split(": ", 1) for line in _TABLES["macros"]) | {
    "participles": "|".join(sorted(PARTICIPLES))
}


def _regex(source: str) -> str:
    """A pattern of `phrasing.txt` as `re` has it."""
    while (found := re.search(r"(?<!\?P)(?<!\\g)<([a-z]+)>", source)) is not None:
        source = source[: found.start()] + _MACROS[found[1]] + source[found.end() :]
    return re.sub(r"(?<!\\)\((?!\?)", "(?:", source)


def _replacements(heading: str, around: str) -> list[tuple[re.Pattern[str], str]]:
    """The lines `pattern => replacement` under a heading, in their order."""
    lines = [line.partition("=>") for line in _TABLES[heading]]
    return [(re.compile(around % _regex(pattern.rstrip())), to.lstrip()) for pattern, _, to in lines]


def _kinds(heading: str, around: str) -> list[tuple[re.Pattern[str], str, str]]:
    """The lines `kind: pattern => replacement` under a heading, in their order."""
    found = []
    for line in _TABLES[heading]:
        kind, _, rest = line.partition(": ")
        pattern, _, to = rest.partition(" => ")
        found.append((re.compile(around % _regex(pattern)), kind, to + " " * bool(to)))
    return found


CONTRACTIONS: Final = _replacements("contractions", "%s")
PHRASES: Final = _replacements("phrases", r"\b(?:%s)\b")
_ANY_CONTRACTION: Final = re.compile(r"'|nt\b|\bi(?:m|ve)\b|\b(?:what|where|how|who)s\b|\bcannot\b")
_ANY_PHRASE: Final = re.compile("|".join(re.sub(r"\?P<[a-z]+>", "?:", pattern.pattern) for pattern, _ in PHRASES))
"""One search instead of seventy, for the many lines without any."""
VOICES: Final = _replacements("voices", "%s")
FRAMES: Final = _kinds("frames", r"(?:%s)(?:(?<= )|(?= |$)|(?<!\w)) ?")
CODAS: Final = _kinds("codas", "(?:%s)$")
PREAMBLES: Final = re.compile(f"(?:{'|'.join(map(_regex, _TABLES['preambles']))})(?= |$) ?[,:;!-]? ?")
WISHES: Final = re.compile("|".join(_TABLES["wishes"]))
ECHOES: Final = re.compile(f"(?:{'|'.join(map(_regex, _TABLES['echoes']))})$")
LATE: Final = re.compile(
    r"((?:in|on|with|for|at|from|when|if|after|before|during|using|as|to|under|within) [^,]+) , "
    r"((?:how|what|which|when|where|why|who|is|are|do|does|did|can|could|should|will|would|must|may)\b.*)"
)


def spelt(line: str) -> str:
    """`line`, words in lower case, with contractions written out."""
    for pattern, to in CONTRACTIONS if _ANY_CONTRACTION.search(line) else ():
        line = pattern.sub(to, line)
    return line


def phrased(line: str) -> str:
    """`line` with each phrase of several words as one word, or as the plainest phrase that says the same."""
    for pattern, to in PHRASES if _ANY_PHRASE.search(line) else ():
        line = pattern.sub(to, line)
    return line


def greeted(sentence: str) -> tuple[str, bool]:
    """`sentence` without what stands before its question, and whether that asked to be told about something."""
    wished = False
    while (found := PREAMBLES.match(sentence)) is not None:
        wished = wished or WISHES.search(found[0]) is not None
        sentence = sentence[found.end() :].lstrip(" ,:;!-")
    return re.sub(r"^(?:more )?(?:about|on|of|regarding) ", "", sentence) if wished else sentence, wished


def coda(sentence: str) -> str:
    """The kind of question that `sentence` asks about what was said before; empty when it says something itself."""
    sentence, _ = greeted(sentence)
    return next((kind for pattern, kind, _ in CODAS if pattern.match(sentence)), "")


def echoes(sentence: str) -> bool:
    """Whether `sentence` only repeats the question that the one before it asked."""
    return ECHOES.match(sentence) is not None


def framed(sentence: str) -> tuple[str, str, str]:
    """Kind of question, its frame and the rest of `sentence`; the kind is empty for what is no question."""
    sentence, wished = greeted(sentence)
    if (late := LATE.match(sentence)) is not None:  # "on Linux, how do I ..." asks "how do I ... on Linux"
        sentence = f"{late[2]} , {late[1]}"
    for pattern, to in VOICES:
        sentence = pattern.sub(to, sentence)
    for pattern, kind, to in FRAMES:
        if (found := pattern.match(sentence)) is not None:
            named = kind.replace("*", found["a"]) if "*" in kind else kind
            return named, found[0], to + sentence[found.end() :]
    return "what" if wished else "", "", sentence
