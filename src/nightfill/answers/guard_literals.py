"""What is taken word for word in a question: quotations, code, dates, times and numbers, each in one spelling."""

from __future__ import annotations

import re
import unicodedata
from typing import Final

_MONTH_NAMES: Final = (
    ("january", "jan"), ("february", "feb"), ("march", "mar"), ("april", "apr"), ("may",), ("june", "jun"),
    ("july", "jul"), ("august", "aug"), ("september", "sept", "sep"), ("october", "oct"), ("november", "nov"),
    ("december", "dec"),
)  # fmt: skip
MONTHS: Final = {name: number for number, names in enumerate(_MONTH_NAMES, start=1) for name in names}
_MONTH: Final = rf"(?P<month>{'|'.join(sorted(MONTHS, key=len, reverse=True))})\b\.?"
_DAY: Final = r"(?P<day>[0-3]?\d)(?:st|nd|rd|th)?"
_YEAR: Final = r"(?:,? (?P<year>(?:19|20)\d\d)\b)?"
DATES: Final = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"\b(?P<year>(?:19|20)\d\d)-(?P<month>[01]\d)-(?P<day>[0-3]\d)\b",
        rf"\b(?:the )?{_DAY} (?:of )?{_MONTH}{_YEAR}",
        rf"\b{_MONTH} (?:the )?{_DAY}\b(?!:){_YEAR}",
    )
)
TIMES: Final = re.compile(
    r"\b(?P<hour>[0-2]?\d)(?:[:.](?P<minute>[0-5]\d))? ?(?P<half>[ap])\.?m\b\.?"
    r"|\b(?P<hour24>[0-2]?\d):(?P<minute24>[0-5]\d)\b|\b(?P<word>noon|midnight)\b",
    re.IGNORECASE,
)
QUOTES: Final = re.compile(
    r"```.*?```|`[^`]+`|\"[^\"]+\"|«[^»]+»|(?<![\w'])'(?=\S)[^'\n]*(?:'\w[^'\n]*)*(?<=\S)'(?!\w)", re.DOTALL
)
_SIGNS: Final = {"$": "dollar", "€": "euro", "£": "gbp", "¥": "yen", "₹": "inr", "%": "percent", "°": "degrees"}
NUMBER: Final = re.compile(
    r"(?P<sign>[-+]?)(?P<before>[$€£¥₹]?)(?P<value>\d[\d,]*(?:\.\d+)?)(?P<after>[a-z%$€£¥₹°]*)", re.IGNORECASE
)
ORDINAL: Final = re.compile(r"(\d+)(?:st|nd|rd|th)", re.IGNORECASE)

_UNITS: Final = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
_TENS: Final = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_SMALL: Final = {name: n for n, name in enumerate(_UNITS)} | {name: 10 * n for n, name in enumerate(_TENS, start=2)}
_SCALES: Final = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9}
_RANK_NAMES: Final = (
    "first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth", "eleventh",
    "twelfth",
)  # fmt: skip
_RANKS: Final = {name: f"{n}th" for n, name in enumerate(_RANK_NAMES, start=1)}
_DURATION: Final = frozenset(("per", "a", "every", "each", "one"))
"""After these, and after a number, a second is no rank."""
_PRONOMINAL: Final = frozenset(
    (
        "",
        "which",
        "this",
        "that",
        "the",
        "any",
        "no",
        "every",
        "another",
        "each",
        "some",
        "new",
        "old",
        "right",
        "wrong",
    )
)
"""After these, one is no number."""


def normal(text: str) -> str:
    """One kind of quotation mark, apostrophe, dash and space; a text all in capitals in lower case."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
        text = re.sub("[“”„‟″‹›]", '"', re.sub("[‘’‚‛′]", "'", re.sub("[‐-―−]", "-", text)))
    text = re.sub(r"(?<=\w)[`´](?=\w)", "'", text)
    text = re.sub(r"(?<=[?!,;])(?=[A-Za-z])", " ", re.sub(r"\s+", " ", text)).strip()
    return text.lower() if text.isupper() and len(text) > 12 else text


def date_of(found: re.Match[str]) -> str:
    """A match of `DATES` as `2024-05-03`, or `--05-03` without a year."""
    month = found["month"].lower()
    return f"{found['year'] or '-'}-{MONTHS.get(month) or int(month):02}-{int(found['day']):02}"


def time_of(found: re.Match[str]) -> str:
    """A match of `TIMES` on a clock of 24 hours."""
    if found["word"]:
        return "12:00" if found["word"].lower() == "noon" else "00:00"
    if found["hour24"]:
        return f"{int(found['hour24']):02}:{found['minute24']}"
    hour = int(found["hour"]) % 12 + (12 if found["half"].lower() == "p" else 0)
    return f"{hour:02}:{found['minute'] or '00'}"


def number_of(found: re.Match[str]) -> list[str]:
    """A match of `NUMBER`: `$1,000` as `1000`, `dollar`; `10kg` as `10`, `kg`; `5k` as `5000`."""
    value = found["value"].rstrip(",")
    if re.fullmatch(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?", value):
        value = value.replace(",", "")
    after = found["after"].lower()
    if after == "k" and value.isdigit():
        value, after = value + "000", ""
    return [
        found["sign"].replace("+", "") + value,
        *(_SIGNS.get(sign, sign) for sign in (found["before"], after) if sign),
    ]


def numbers(words: list[str]) -> list[str]:
    """`words` with numbers as digits: `two hundred and fifty` becomes `250`, `third` `3th`, `5 million` `5000000`.

    `one` stays where it stands for a thing ("which one"), `second` where it is a time.
    """
    out: list[str] = []
    at = 0
    while at < len(words):
        word, before = words[at], out[-1] if out else ""
        if word in _RANKS and not (word == "second" and (before in _DURATION or before.isdigit())):
            out.append(_RANKS[word])
            at += 1
        elif word == "one" and (before in _PRONOMINAL or words[at + 1 : at + 2] == ["of"]):
            out.append(word)
            at += 1
        else:
            value, used = _number(words[at:])
            out.append(str(value) if used else word)
            at += max(used, 1)
    return out


def _number(words: list[str]) -> tuple[int, int]:
    """The number that `words` begin with, and how many of them say it; 0 of them when there is none."""
    total = part = used = 0
    for at, word in enumerate(words):
        fits = part % 100 == 0 or (part % 10 == 0 and part % 100 >= 20 and _SMALL.get(word, 10) < 10)
        if word in _SMALL and fits:
            part += _SMALL[word]
        elif word.isdigit() and at == 0:
            part = int(word)
        elif word in _SCALES and used:
            part *= _SCALES[word]
            if part >= 1000:
                total, part = total + part, 0
        elif word == "and" and used and words[at - 1] in _SCALES and words[at + 1 : at + 2] and words[at + 1] in _SMALL:
            continue
        else:
            break
        used = at + 1
    return total + part, used
