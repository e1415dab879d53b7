"""How many questions a cache of answers serves, how many of them wrongly, and how plain thresholding compares.

    python benchmarks/answers.py [FILE.csv ...] [--seed 0] [--orders 5] [--min-similarity 0.7]

Each FILE has the columns `question_1,question_2,similar` (1 same, 0 different; same questions of several rows form a
cluster) or `text,category`, and may be gzipped. Without one, it is the tests' own table of adversarial pairs.

Each file is a scope of its own. Its questions are asked one by one in random order, `--orders` times. The answer to a
question that nothing serves is stored. A question is served by the first of the four nearest stored ones, of at least
the minimal similarity, that the guard lets pass. Of what is served, labels say:

- `category`: another category is wrong for sure. The same one is counted as right, which flatters whoever serves more:
  one intent is not one answer ("my transfer failed", "where is my transfer?").
- pairs: right within a cluster, wrong between clusters that a row marks as different, else unjudged.

The last line is one JSON object. Rates are of all look-ups, hits or not, means over the orders: `hit_rate`,
`false_hit_rate`, `unjudged_rate`; `false_share_of_hits` is what is wrong among the hits. `threshold_only` does without
the guard, at the threshold between 0.5 and 1 with the most hits whose `false_hit_rate` is no higher than the guard's in
the same run; its hit rate is also `threshold_only_hit_rate`. `spread` has lowest and highest order, `files` the same by
file, for files of pairs with `same_passed` and `different_passed`: rows served when the one question is asked and only
the other stored. `embed_p50_s` and `guard_p50_s` are of one short question on one thread (the guard's of one
candidate, neither question read before), `..._cpu_p50_s` the processor's time of the same.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np

from nightfill.answers.embed import load_embedder
from nightfill.answers.guard import agree
from nightfill.answers.guard_reading import read
from nightfill.bench import commit, this_machine
from nightfill.config import AnswerSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nightfill.answers.embed import Embedder, Vectors

NAME: Final = "answers"
TABLE: Final = Path(__file__).resolve().parents[1] / "tests" / "unit" / "answers" / "pairs.csv"
NEAREST: Final = 4
"""Looked at by the guard, as in the gateway."""
KEPT: Final = 64
"""Nearest earlier questions that are known of each; the four nearest of those stored are among them."""
CHUNK: Final = 512
THRESHOLDS: Final = tuple(round(0.5 + 0.005 * step, 3) for step in range(101))
TIMED: Final = 300
SHORT: Final = "How do I reset my password?"


@dataclass(slots=True)
class Questions:
    """One file: its questions, and what its labels say."""

    name: str
    texts: list[str]
    labels: list[str]
    """Category, or cluster of questions that mean the same."""
    different: set[frozenset[str]] | None = None
    """Pairs of labels that are different for sure; None when all are."""
    rows: list[tuple[int, int, bool]] = field(default_factory=list)
    """Of a file of pairs: two questions, and whether they are the same."""

    def verdict(self, asked: int, stored: int) -> str:
        """What an answer to `stored` is to `asked`: `right`, `wrong` or `unjudged`."""
        one, other = self.labels[asked], self.labels[stored]
        if one == other:
            return "right"
        return "wrong" if self.different is None or frozenset((one, other)) in self.different else "unjudged"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a cache did with the questions of a file in one order."""

    asked: int
    hits: int
    wrong: int
    unjudged: int


def load(path: Path) -> Questions:
    """Read a file in either format."""
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or not (
        {"text", "category"} <= rows[0].keys() or {"question_1", "question_2", "similar"} <= rows[0].keys()
    ):
        raise SystemExit(f"{path}: needs the columns text,category or question_1,question_2,similar")
    if "category" in rows[0]:
        return Questions(path.name, [row["text"] for row in rows], [row["category"] for row in rows])
    places: dict[str, int] = {}
    for row in rows:
        for text in (row["question_1"], row["question_2"]):
            places.setdefault(text, len(places))
    pairs = [(places[row["question_1"]], places[row["question_2"]], row["similar"].strip() == "1") for row in rows]
    leader = list(range(len(places)))

    def found(place: int) -> int:
        while leader[place] != place:
            place = leader[place]
        return place

    for one, other, same in pairs:
        if same:
            leader[found(one)] = found(other)
    different = {frozenset((str(found(one)), str(found(other)))) for one, other, same in pairs if not same}
    return Questions(path.name, list(places), [str(found(place)) for place in range(len(places))], different, pairs)


def neighbours(vectors: Vectors, order: Sequence[int]) -> tuple[np.ndarray[Any, Any], Vectors]:
    """For each question, those asked before it that are nearest, and their cosines; -1 where there is none."""
    position = np.empty(len(order), np.int64)
    position[list(order)] = np.arange(len(order))
    kept = min(KEPT, len(order))
    nearest, cosines = [], []
    for start in range(0, len(order), CHUNK):
        rows = slice(start, start + CHUNK)
        similarity = np.where(position[None, :] < position[rows, None], vectors[rows] @ vectors.T, -1)
        chosen = np.argsort(-similarity, axis=1, kind="stable")[:, :kept]
        nearest.append(chosen)
        cosines.append(np.take_along_axis(similarity, chosen, axis=1))
    return np.concatenate(nearest), np.concatenate(cosines).astype(np.float32)


def replay(
    questions: Questions,
    order: Sequence[int],
    near: tuple[np.ndarray[Any, Any], Vectors],
    threshold: float,
    passes: Callable[[int, int], bool] | None,
) -> Outcome:
    """Ask every question in `order`; without `passes`, the nearest at `threshold` serves."""
    stored = np.zeros(len(order), bool)
    verdicts = []
    limits = (near[1] >= threshold).sum(axis=1)
    for asked in order:
        ranked = near[0][asked, : limits[asked]]
        candidates = ranked[stored[ranked]][:NEAREST].tolist()
        served = next((other for other in candidates if passes is None or passes(asked, other)), None)
        if served is None:
            stored[asked] = True
        else:
            verdicts.append(questions.verdict(asked, served))
    return Outcome(len(order), len(verdicts), verdicts.count("wrong"), verdicts.count("unjudged"))


def rates(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Of several files or orders together."""
    asked, hits = sum(outcome.asked for outcome in outcomes), sum(outcome.hits for outcome in outcomes)
    wrong, unjudged = sum(outcome.wrong for outcome in outcomes), sum(outcome.unjudged for outcome in outcomes)
    return {
        "hit_rate": hits / asked,
        "false_hit_rate": wrong / asked,
        "unjudged_rate": unjudged / asked,
        "false_share_of_hits": wrong / hits if hits else 0.0,
    }


def judged(questions: Questions, vectors: Vectors, floor: float) -> dict[str, int]:
    """Row by row: what passes when one question is asked and only the other stored."""
    counts = {"same": 0, "same_passed": 0, "different": 0, "different_passed": 0}
    for one, other, same in questions.rows:
        key = "same" if same else "different"
        counts[key] += 1
        near = float(vectors[one] @ vectors[other]) >= floor
        counts[f"{key}_passed"] += near and agree(questions.texts[one], questions.texts[other]) is None
    return counts


def measure(
    files: Sequence[Questions], vectors: Sequence[Vectors], *, seed: int, orders: int, floor: float
) -> dict[str, Any]:
    """Replay all files in each order, with the guard and with each threshold alone."""
    rng = np.random.default_rng(seed)
    guarded: list[list[Outcome]] = []
    plain: dict[float, list[list[Outcome]]] = {threshold: [] for threshold in THRESHOLDS}
    known: list[dict[tuple[int, int], bool]] = [{} for _ in files]
    for number in range(orders):
        print(f"order {number + 1} of {orders}", file=sys.stderr, flush=True)
        guarded.append([])
        for outcomes in plain.values():
            outcomes.append([])
        for questions, of_file, memory in zip(files, vectors, known, strict=True):
            order = rng.permutation(len(questions.texts)).tolist()
            near = neighbours(of_file, order)

            def passes(asked: int, stored: int, texts: list[str] = questions.texts, memory: Any = memory) -> bool:
                if (asked, stored) not in memory:
                    memory[asked, stored] = agree(texts[asked], texts[stored]) is None
                return bool(memory[asked, stored])

            guarded[-1].append(replay(questions, order, near, floor, passes))
            for threshold, outcomes in plain.items():
                outcomes[-1].append(replay(questions, order, near, threshold, None))
    in_all = compared(guarded, plain)
    by_file = [
        {"file": questions.name, "questions": len(questions.texts)}
        | compared([[one[place]] for one in guarded], {t: [[one[place]] for one in all_] for t, all_ in plain.items()})
        | (judged(questions, of_file, floor) if questions.rows else {})
        for place, (questions, of_file) in enumerate(zip(files, vectors, strict=True))
    ]
    return in_all | {"files": by_file}


def compared(guarded: Sequence[Sequence[Outcome]], plain: dict[float, list[list[Outcome]]]) -> dict[str, Any]:
    """The guard beside the best threshold that is wrong no more often."""
    per_order = [rates(outcomes) for outcomes in guarded]
    found = {key: fmean(one[key] for one in per_order) for key in per_order[0]}
    alone = {t: rates([outcome for order in orders for outcome in order]) for t, orders in plain.items()}
    allowed = {t: one for t, one in alone.items() if one["false_hit_rate"] <= found["false_hit_rate"]}
    best = max(allowed, key=lambda t: allowed[t]["hit_rate"], default=None)
    return found | {
        "spread": {key: [min(one[key] for one in per_order), max(one[key] for one in per_order)] for key in found},
        "threshold_only_hit_rate": allowed[best]["hit_rate"] if best is not None else 0.0,
        "threshold_only": {"threshold": best} | allowed[best] if best is not None else None,
    }


def timed(embedder: Embedder) -> dict[str, float]:
    """Medians for one short question."""

    def p50(action: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
        took = []
        for _ in range(TIMED):
            begun = clock()
            action()
            took.append(clock() - begun)
        return median(took)

    def guard() -> None:
        read.cache_clear()
        agree(SHORT, "What is the way to reset my password?")

    def embed() -> None:
        embedder.embed([SHORT])

    return {
        "embed_p50_s": p50(embed),
        "embed_cpu_p50_s": p50(embed, time.thread_time),
        "guard_p50_s": p50(guard),
        "guard_cpu_p50_s": p50(guard, time.thread_time),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="question pairs or questions by category")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--orders", type=int, default=5, help="random orders of the questions (default: 5)")
    parser.add_argument("--min-similarity", type=float, default=AnswerSettings().min_similarity)
    options = parser.parse_args()
    files = [load(path) for path in options.files or [TABLE]]
    begun = time.perf_counter()
    embedder = load_embedder()
    load_s = time.perf_counter() - begun
    vectors = [embedder.embed(questions.texts) for questions in files]
    found = measure(files, vectors, seed=options.seed, orders=options.orders, floor=options.min_similarity)
    for one in (found | {"file": "all"}, *found["files"]) if len(files) > 1 else found["files"]:
        print(
            f"{one['file']}: hits {one['hit_rate']:.2%}, wrong {one['false_hit_rate']:.3%} of look-ups; "
            f"a threshold alone, wrong no more often: hits {one['threshold_only_hit_rate']:.2%}"
        )
    print(
        msgspec.json.encode(
            {
                "name": NAME,
                "command": "python " + " ".join([sys.argv[0], *(Path(argument).name for argument in sys.argv[1:])]),
                "commit": commit(),
                "machine": msgspec.to_builtins(this_machine()),
                "seed": options.seed,
                "orders": options.orders,
                "min_similarity": options.min_similarity,
                "load_s": load_s,
                **timed(embedder),
                **found,
            }
        ).decode()
    )


if __name__ == "__main__":
    main()
