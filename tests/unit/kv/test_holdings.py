from __future__ import annotations

from dataclasses import replace

from nightfill.contexts.context import Fill, FillKey, FillState, Fingerprint, Form, Signature, Tenant
from nightfill.kv.holdings import keys_of, unshared, values_of
from nightfill.kv.key import salt_of, snapshot_key, spans

T, SIGNATURE = Tenant("t"), Signature("ab" * 32)


def fill(*tokens: int, stored: int | None = None, tenant: Tenant = T, mark: str = "f") -> Fill:
    key = FillKey(tenant=tenant, fingerprint=Fingerprint(mark * 64), form=Form.CHAT, signature=SIGNATURE)
    return Fill(
        key=key,
        state=FillState.FILLING,
        tokens=tokens,
        stored_tokens=len(tokens) if stored is None else stored,
        filled_at_s=0.0,
        fill_seconds=0.0,
    )


def keys(one: Fill) -> frozenset[bytes]:
    return frozenset(keys_of(one, block_tokens=2))


def test_blocks_and_snapshots_of_the_whole_and_of_what_is_stored_are_named() -> None:
    one = fill(1, 2, 3, 4, 5, stored=4)
    salt = salt_of(T)
    cut = {span.key for span in spans(one.tokens, signature=SIGNATURE, salt=salt, block_tokens=2)}
    wholes = {snapshot_key(one.tokens[:n], signature=SIGNATURE, salt=salt) for n in (4, 5)}
    assert keys(one) == cut | wholes


def test_what_another_fill_also_has_is_shared() -> None:
    one, two = fill(1, 2, 3, 4, mark="a"), fill(1, 2, 9, 9, mark="b")
    left = unshared(one, [two], block_tokens=2)
    assert left < keys(one)
    assert keys(one) - left == keys(one) & keys(two)
    assert len(keys(one) - left) == 1


def test_a_fill_shares_nothing_with_itself_or_another_tenant() -> None:
    one = fill(1, 2, 3, 4)
    stranger = fill(1, 2, 3, 4, tenant=Tenant("u"))
    assert unshared(one, [one, replace(one, stored_tokens=0), stranger], block_tokens=2) == keys(one)
    assert not keys(one) & keys(stranger)


def test_a_block_is_worth_what_the_dearest_fill_that_shares_it_is() -> None:
    one, two = fill(1, 2, 3, 4, mark="a"), fill(1, 2, 9, 9, mark="b")
    values = values_of([(one, 1.0), (two, 3.0)], block_tokens=2)
    assert set(values) == keys(one) | keys(two)
    assert {key for key, value in values.items() if value == 3.0} == keys(two)
    assert {values[key] for key in keys_of(one, block_tokens=2) - keys(two)} == {1.0}
