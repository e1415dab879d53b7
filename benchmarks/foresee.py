"""How many human questions are served by answers that were prepared before, and how many of them wrongly.

    python benchmarks/foresee.py FILE [FILE ...] [--seed 0] [--rounds 3] [--log-share 0.3] [--per-context 50]

Each FILE has documents with human questions as JSON lines, also gzipped: `document`, and `questions` with `q`, `a` and
either `answer_start` (COVID-QA: `a` is a list of spans, `answer_start` where they begin) or `kind` and `turns` (QMSum:
`turns` are first and last line numbers of the evidence; a question of kind `general` is about all of it).

A document's questions come in random order. The first part is its log; the rest is asked. Before that, answers are
prepared to what is foreseen from the log, from the logs of the file's other documents, and from the text's structure,
within the default bound per context. The model's own list is left out: the demo models write noise. A question is
served as the gateway would at its default setting: an answer to the same text, else one of the nearest that the guard
lets pass. Nothing is fitted to any question.

Whether what is served is right is judged by the people who made the data, as strictly as they allow:

- Prepared for the same words: right, for the model was asked that very question.
- `log`, other words: right if the answers of the two questions lie in the same place: COVID-QA, their spans overlap;
  QMSum, they have half of their evidence in common, or both are general.
- `recurring`, other words: right if both are general wherever they were asked; nothing else is known of them.
  How much that is worth shows in `same_words_elsewhere_share`: of the questions that were asked again in the very same
  words, so many have their answers in another place than the first time.
- `structure`, other words: right if the place that the question was made from has the beginning of a gold answer
  (COVID-QA) or half of the evidence (QMSum); of a place that is the whole text, only if the question is general.

`false_hit_rate` is by these rules. `false_hit_rate_beyond_form` leaves aside those judged wrong that differ from what
was prepared in articles, plurals and is/are alone: the same question, which people have answered in two places.

The last line is one JSON object: `served_share` and `false_hit_rate` (of those served), in all, by file and by source,
means over the rounds, each with its lowest and highest round in `spread`; `same_words_share` of the questions asked;
by source the answers `prepared`, and the `used_share` of these. What is judged wrong is printed.
"""

from __future__ import annotations

import argparse
import gzip
import random
import re
import sys
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Final

import msgspec

from nightfill.answers.embed import load_embedder
from nightfill.answers.guard import agree
from nightfill.bench import commit, this_machine
from nightfill.config import AnswerSettings, ForeseeSettings
from nightfill.sleep.predict import normal, quotas
from nightfill.sleep.predict_sources import chosen, gathered
from nightfill.state.answers import Asked, Origin

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nightfill.answers.embed import Embedder, Vectors
    from nightfill.sleep.predict import Candidate

NAME: Final = "foresee"
SOURCES: Final = ("log", "recurring", "structure")
NEAREST: Final = 4
"""Looked at by the guard, as in the gateway."""

FLOOR: Final = AnswerSettings().min_similarity

Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Human:
    """A question that somebody asked, and where the text answers it; nowhere in particular if it is general."""

    text: str
    evidence: tuple[Span, ...]
    """Characters (COVID-QA) or lines (QMSum); the ends are beyond."""
    general: bool


@dataclass(frozen=True, slots=True)
class Document:
    """A text with its questions. `lines`: where each line begins, if the evidence is in lines."""

    text: str
    questions: tuple[Human, ...]
    lines: tuple[int, ...] | None


@dataclass(slots=True)
class Tally:
    """Of one round: by source, how many were served, rightly and wrongly."""

    asked: int = 0
    served: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    beyond_form: int = 0
    """Wrong, and not only in articles and plurals."""
    same_words: int = 0
    asked_again: int = 0
    """In the same words as before, of the same document."""
    elsewhere: int = 0
    """Of these, with the answer in another place."""
    prepared: Counter[str] = field(default_factory=Counter)
    used: Counter[str] = field(default_factory=Counter)


class Remembering:
    """Embeddings, each computed once."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self._known: dict[str, Vectors] = {}

    def vectors(self, texts: Sequence[str]) -> dict[str, Vectors]:
        """Of these and all before them."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        self._known |= dict(zip(new, self._embedder.embed(new), strict=True))
        return self._known


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="*", metavar="FILE")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=3, help="orders of the questions (default: 3)")
    parser.add_argument("--log-share", type=float, default=0.3, help="of the questions (default: 0.3)")
    parser.add_argument("--per-context", type=int, default=ForeseeSettings().per_context, help="answers prepared")
    parser.add_argument("--documents", type=int, help="only so many of each file, drawn by the seed")
    options = parser.parse_args()
    if not options.files:
        print("nothing to measure: name files of documents with questions", file=sys.stderr)
        return
    embedder = Remembering(load_embedder())
    result: dict[str, Any] = {}
    rounds: dict[str, list[Tally]] = defaultdict(list)
    for path in options.files:
        documents = read(path)
        random.Random(options.seed).shuffle(documents)
        for number in range(options.rounds):
            rng = random.Random(f"{options.seed} {number}")
            began_s = time.monotonic()
            tally = replay(documents[: options.documents], rng, options.log_share, options.per_context, embedder)
            rounds[path.name].append(tally)
            print(
                f"{path.name}, seed {options.seed}, order {number}: {told(tally)}, {time.monotonic() - began_s:.0f} s"
            )
    for name, tallies in rounds.items():
        result[name] = figures(tallies)
    together = [sum_of(tallies) for tallies in zip(*rounds.values(), strict=True)]
    line = {
        "benchmark": NAME,
        **figures(together),
        "files": result,
        "model_source": "off: the demo models write noise",
        "seed": options.seed,
        "rounds": options.rounds,
        "log_share": options.log_share,
        "per_context": options.per_context,
        "command": " ".join(
            [
                "python",
                "benchmarks/foresee.py",
                *(path.name for path in options.files),
                *sys.argv[1 + len(options.files) :],
            ]
        ),
        "machine": this_machine(),
        "commit": commit(),
    }
    print(msgspec.json.encode(line).decode())


def read(path: Path) -> list[Document]:
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [document_of(msgspec.json.decode(line)) for line in data.splitlines() if line.strip()]


def document_of(row: dict[str, Any]) -> Document:
    in_lines = any("kind" in one for one in row["questions"])
    starts = [0]
    for line in row["document"].splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    questions = []
    for one in row["questions"]:
        if in_lines:
            evidence = tuple((int(first), int(last) + 1) for first, last in one.get("turns", ()))
        else:
            evidence = tuple(
                (start, start + len(span)) for start, span in zip(one["answer_start"], one["a"], strict=True)
            )
        questions.append(Human(one["q"], evidence, general=one.get("kind") == "general"))
    return Document(row["document"], tuple(questions), tuple(starts) if in_lines else None)


def replay(
    documents: Sequence[Document], rng: random.Random, log_share: float, per_context: int, embedder: Remembering
) -> Tally:
    """One order of every document's questions."""
    orders = [rng.sample(one.questions, len(one.questions)) for one in documents]
    cuts = [round(log_share * len(order)) for order in orders]
    logs = [order[:cut] for order, cut in zip(orders, cuts, strict=True)]
    general = {normal(one.text): True for log in logs for one in log}
    for log in logs:
        for one in log:
            general[normal(one.text)] &= one.general
    tally = Tally()
    for at, document in enumerate(documents):
        limits = quotas({}, per_context)
        wide = gathered(
            document.text,
            asked=[Asked(text=one.text, at_s=0.0) for one in logs[at]],
            others=[[Asked(text=one.text, at_s=0.0) for one in log] for i, log in enumerate(logs) if i != at],
            written="",
            structure=True,
            limits=limits,
            most=per_context,
            vectors=embedder.vectors([one.text for one in logs[at]]),
            now_s=0.0,
        )
        vectors = embedder.vectors([one.text for one in wide])
        candidates = chosen(wide, limits=limits, most=per_context, vectors=vectors)
        asked = {normal(one.text): one for one in logs[at]}
        ask(document, orders[at][cuts[at] :], candidates, asked, general, embedder, tally)
    return tally


def ask(
    document: Document,
    queries: Sequence[Human],
    candidates: Sequence[Candidate],
    asked: dict[str, Human],
    general: dict[str, bool],
    embedder: Remembering,
    tally: Tally,
) -> None:
    sources = [source_of(one, asked) for one in candidates]
    tally.asked += len(queries)
    tally.prepared.update(sources)
    if not candidates or not queries:
        return
    exact = {one.text: at for at, one in enumerate(candidates)}
    vectors = embedder.vectors([*exact, *(one.text for one in queries)])
    used = set()
    for query in queries:
        at = exact.get(query.text)
        if at is None:
            row = [float(vectors[query.text] @ vectors[one.text]) for one in candidates]
            nearest = sorted(range(len(candidates)), key=lambda i: -row[i])[:NEAREST]
            near = (i for i in nearest if row[i] >= FLOOR)
            at = next((i for i in near if agree(query.text, candidates[i].text) is None), None)
        if at is None:
            continue
        candidate, source = candidates[at], sources[at]
        used.add(at)
        tally.served[source] += 1
        same = normal(candidate.text) == normal(query.text)
        tally.same_words += same
        if same and source == "log":
            tally.asked_again += 1
            tally.elsewhere += not right(document, query, candidate, source, asked, general)
        if not same and not right(document, query, candidate, source, asked, general):
            tally.wrong[source] += 1
            tally.beyond_form += form(query.text) != form(candidate.text)
            print(f"wrong by {source}: {query.text!r} was given the answer to {candidate.text!r}")
    tally.used.update(sources[at] for at in used)


def source_of(candidate: Candidate, asked: dict[str, Human]) -> str:
    if candidate.origin is Origin.STRUCTURE:
        return "structure"
    return "log" if normal(candidate.text) in asked else "recurring"


def right(
    document: Document,
    query: Human,
    candidate: Candidate,
    source: str,
    asked: dict[str, Human],
    general: dict[str, bool],
) -> bool:
    """Whether an answer to other words is the answer; see above."""
    if source == "recurring":
        return query.general and general[normal(candidate.text)]
    if source == "log":
        other = asked[normal(candidate.text)]
        if query.general or other.general:
            return query.general and other.general
        if document.lines is None:
            return any(one[0] < two[1] and two[0] < one[1] for one in query.evidence for two in other.evidence)
        mine, yours = places(query.evidence), places(other.evidence)
        return 2 * len(mine & yours) >= len(mine | yours) > 0
    assert candidate.span is not None
    first, last = candidate.span
    if query.general or (first, last) == (0, len(document.text)):
        return query.general and (first, last) == (0, len(document.text))
    if document.lines is None:
        return any(first <= start < last for start, _ in query.evidence)
    mine = places(query.evidence)
    inside = [line for line in mine if line + 1 < len(document.lines) and first <= document.lines[line] < last]
    return 2 * len(inside) >= len(mine) > 0


def places(evidence: Sequence[Span]) -> set[int]:
    return {line for first, last in evidence for line in range(first, last)}


def form(text: str) -> list[str]:
    """Its words without articles, endings of plurals, and the number of `be`."""
    words = ("is" if word == "are" else word for word in normal(text).split() if word not in ("a", "an", "the"))
    return [re.sub(r"(?:ies|y|s)$", "", word) if len(word) > 3 else word for word in words]


def sum_of(tallies: Sequence[Tally]) -> Tally:
    whole = Tally()
    for one in tallies:
        whole.asked += one.asked
        whole.beyond_form += one.beyond_form
        whole.same_words += one.same_words
        whole.asked_again += one.asked_again
        whole.elsewhere += one.elsewhere
        for name in ("served", "wrong", "prepared", "used"):
            getattr(whole, name).update(getattr(one, name))
    return whole


def shares(tally: Tally, sources: Sequence[str] = SOURCES) -> tuple[float, float]:
    """Of the questions asked, those served; and of these, the wrong ones."""
    served, wrong = (sum(counts[source] for source in sources) for counts in (tally.served, tally.wrong))
    return served / max(tally.asked, 1), wrong / max(served, 1)


def told(tally: Tally) -> str:
    served, wrong = shares(tally)
    return f"{tally.asked} asked, {served:.1%} served, {wrong:.1%} of them wrongly"


def figures(tallies: Sequence[Tally]) -> dict[str, Any]:
    """Means over rounds, each with its lowest and highest."""
    pairs = [shares(tally) for tally in tallies]
    by_source = {}
    for source in SOURCES:
        own = [shares(tally, (source,)) for tally in tallies]
        by_source[source] = {
            "served_share": fmean(served for served, _ in own),
            "false_hit_rate": fmean(wrong for _, wrong in own),
            "wrong": sum(tally.wrong[source] for tally in tallies),
            "served": sum(tally.served[source] for tally in tallies),
            "prepared": sum(tally.prepared[source] for tally in tallies),
            "used_share": sum(tally.used[source] for tally in tallies)
            / max(sum(tally.prepared[source] for tally in tallies), 1),
        }
    return {
        "asked": tallies[0].asked,
        "served_share": fmean(served for served, _ in pairs),
        "false_hit_rate": fmean(wrong for _, wrong in pairs),
        "false_hit_rate_beyond_form": sum(tally.beyond_form for tally in tallies)
        / max(sum(tally.served.total() for tally in tallies), 1),
        "same_words_share": fmean(tally.same_words / max(tally.asked, 1) for tally in tallies),
        "same_words_elsewhere_share": sum(tally.elsewhere for tally in tallies)
        / max(sum(tally.asked_again for tally in tallies), 1),
        "asked_again": sum(tally.asked_again for tally in tallies),
        "spread": {
            "served_share": [min(served for served, _ in pairs), max(served for served, _ in pairs)],
            "false_hit_rate": [min(wrong for _, wrong in pairs), max(wrong for _, wrong in pairs)],
        },
        "sources": by_source,
    }


if __name__ == "__main__":
    main()
