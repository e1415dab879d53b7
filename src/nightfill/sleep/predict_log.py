"""Questions foreseen from those that were asked: of the context itself, and of others of its tenant. Pure."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from nightfill.sleep.predict import Candidate, normal, sensible
from nightfill.state.answers import Origin

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nightfill.state.answers import Asked

HALF_LIFE_S: Final = 7 * 86400.0
"""A question asked so long ago counts half."""
_COMMON_WORD: Final = 4
"""Words of so many letters and more tell what a question is about."""


def from_log(asked: Sequence[Asked], alike: Callable[[int, int], float], *, now_s: float) -> list[Candidate]:
    """One question for each cluster of those that were asked, expected as often as all of them, decayed.

    `alike(i, j)` is the similarity of `asked[i]` and `asked[j]`, 1 for equal ones and 0 for those that need answers of
    their own. A cluster is what is alike to its newest member. Its medoid, the one that is most alike to all the
    others, speaks for it: so what was often asked in the same words is asked in these.
    """
    order = sorted((i for i, one in enumerate(asked) if sensible(one.text)), key=lambda i: -asked[i].at_s)
    clusters: list[list[int]] = []
    for i in order:
        best = max(clusters, key=lambda cluster: alike(cluster[0], i), default=None)
        if best is not None and alike(best[0], i) > 0:
            best.append(i)
        else:
            clusters.append([i])
    weight = {i: 0.5 ** (max(0.0, now_s - asked[i].at_s) / HALF_LIFE_S) for i in order}
    return [
        Candidate(
            text=asked[max(cluster, key=lambda i: sum(weight[j] * alike(i, j) for j in cluster))].text,
            origin=Origin.LOG,
            expected=sum(weight[i] for i in cluster),
        )
        for cluster in clusters
    ]


def recurring(logs: Sequence[Sequence[Asked]], text: str) -> list[Candidate]:
    """Questions that other contexts were asked, expected as often as one of them is asked it in the same words.

    `logs`: those of the tenant's other contexts, one each. A question that only one of them was asked is taken where
    this `text` has all its long words: it may be about the same things.
    """
    about = set(normal(text).split())
    asked_in: Counter[str] = Counter()
    texts: dict[str, Counter[str]] = {}
    for log in logs:
        for words in {normal(one.text) for one in log}:
            asked_in[words] += 1
        for one in log:
            texts.setdefault(normal(one.text), Counter())[one.text] += 1
    known = sum(1 for log in logs if log)
    found = []
    for words, contexts in asked_in.items():
        question = texts[words].most_common(1)[0][0]
        telling = [word for word in words.split() if len(word) >= _COMMON_WORD]
        if sensible(question) and (contexts > 1 or (telling and about.issuperset(telling))):
            found.append(Candidate(text=question, origin=Origin.LOG, expected=contexts / known))
    return found
