from __future__ import annotations

from nightfill.kv.deletion import Deletions
from nightfill.kv.key import BlockKey

A, B = BlockKey(b"a" * 32), BlockKey(b"b" * 32)


def test_a_deletion_cancels_copies_of_its_keys_that_began_before_or_begin_meanwhile() -> None:
    deletions = Deletions()
    with deletions.copy(A) as before, deletions.copy(A) as twin, deletions.copy(B) as other:
        with deletions.of([A]), deletions.copy(A) as meanwhile:
            assert meanwhile.cancelled
        assert (before.cancelled, twin.cancelled, other.cancelled) == (True, True, False)
    with deletions.copy(A) as after:
        assert not after.cancelled


def test_of_two_deletions_the_later_one_to_end_counts() -> None:
    deletions = Deletions()
    with deletions.of([A]):
        with deletions.of([A, B]):
            pass
        with deletions.copy(A) as copy, deletions.copy(B) as other:
            assert (copy.cancelled, other.cancelled) == (True, False)
