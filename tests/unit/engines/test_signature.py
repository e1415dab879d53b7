from __future__ import annotations

import pytest

from nightfill.engines.signature import adapted, signature_of

PARTS: dict[str, str | int | bool] = {"engine": "e", "weights": "w", "kv_type": "f16/f16", "flash_attention": True}


def test_the_order_of_parts_does_not_matter() -> None:
    assert signature_of(PARTS) == signature_of(dict(reversed(PARTS.items())))


def test_a_signature_is_a_digest_in_hex() -> None:
    assert len(bytes.fromhex(signature_of(PARTS))) == 32


@pytest.mark.parametrize(
    "change",
    [{"weights": "v"}, {"flash_attention": False}, {"flash_attention": "True"}, {"adapters": ""}, {"engine": ""}],
)
def test_any_other_value_or_part_is_another_signature(change: dict[str, str | int | bool]) -> None:
    assert signature_of({**PARTS, **change}) != signature_of(PARTS)


def test_a_part_left_out_is_another_signature() -> None:
    assert signature_of({"engine": "e"}) != signature_of({"engine": "e", "weights": ""})


def test_an_adapter_is_part_of_it_by_content_and_scale() -> None:
    base, digest = signature_of(PARTS), "ab" * 32
    others = [adapted(base, digest="ac" * 32), adapted(base, digest=digest, scale=0.5), adapted(base, digest=digest)]
    assert len({base, *others}) == 4
    assert adapted(base, digest=digest) == adapted(base, digest=digest, scale=1.0)
    assert adapted(signature_of({"engine": "e"}), digest=digest) not in others
