from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nightfill.kv.eviction import Record
from nightfill.kv.index import Index
from nightfill.kv.key import BlockKey


def key(number: int) -> BlockKey:
    return BlockKey(bytes([number]) * 32)


STEPS = st.lists(
    st.tuples(st.sampled_from(["put", "update", "touch", "remove"]), st.integers(0, 5), st.integers(0, 99))
)


@given(STEPS)
def test_an_index_keeps_the_order_of_use_and_the_total(steps: list[tuple[str, int, int]]) -> None:
    index, model = Index(), dict[BlockKey, int]()
    for now_s, (step, number, size) in enumerate(steps):
        if step == "put":
            index.put(Record(key(number), size, now_s))
            model.pop(key(number), None)
            model[key(number)] = size
        elif step == "update":
            old = index.get(key(number))
            index.update(Record(key(number), size, old.used_s if old else now_s))
            model[key(number)] = size
        elif step == "touch":
            assert index.touch(key(number), now_s) == (key(number) in model)
            if key(number) in model:
                model[key(number)] = model.pop(key(number))
        else:
            assert index.remove(key(number)) == (model.pop(key(number), None) is not None)
    assert [record.key for record in index] == list(model)
    assert index.total_bytes == sum(model.values())
    assert len(index) == len(model)
    index.sort()
    assert [record.key for record in index] == list(model)


def test_a_use_in_the_past_does_not_make_a_block_older() -> None:
    index = Index()
    index.put(Record(key(1), 10, 100.0))
    index.touch(key(1), 50.0)
    assert [record.used_s for record in index] == [100.0]
