from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest

from fakes.kv import SIGNATURE
from nightfill.engines.engine import Call, Description, Prefix, Reuse, Tokens
from nightfill.engines.llama.lora import NO_LORA
from nightfill.engines.llama.slots import Slot
from nightfill.engines.llama.stay import Stay
from nightfill.engines.restores import Restores

if TYPE_CHECKING:
    from collections.abc import Callable

    from fakes.llama import FakeLlama
    from nightfill.engines.llama.reply import LlamaReply
    from nightfill.engines.llama.transfer import Transfer

    Make = Callable[..., tuple[FakeLlama, Transfer]]


class _Reply:
    """An answer that came to its end."""

    prefill = (0, 0.0)

    def __init__(self, *, prompt: int, reused: int, kept: bool = True) -> None:
        self.tokens = Tokens(prompt=prompt, reused=reused, output=5)
        self._kept = kept

    def kept(self) -> bool:
        return self._kept


def ended(stay: Stay, slot: Slot, *, prompt: int, reused: int, kept: bool = True) -> None:
    stay.end(slot, cast("LlamaReply", _Reply(prompt=prompt, reused=reused, kept=kept)))


def stay_of(
    llama: FakeLlama, transfer: Transfer, prefix: Prefix, *, reuse: Reuse = Reuse.TRIM, always: bool = True
) -> Stay:
    description = Description(
        engine="demo",
        model="demo",
        signature=SIGNATURE,
        context_length=4096,
        kv_bytes_per_token=64,
        slots=2,
        reuse=reuse,
        embeddings=False,
        version="demo",
    )
    call = Call(path="/v1/completions", body={}, stream=False, prefix=prefix)
    return Stay(call, description, NO_LORA, api=llama.api, transfer=transfer, restores=Restores(always=always))


async def fill(llama: FakeLlama, transfer: Transfer, prefix: Prefix) -> None:
    llama.slots[0] = tuple(prefix.tokens)
    await transfer.save(0, prefix, reached=len(prefix.tokens))
    llama.slots[0] = ()


async def test_an_empty_slot_is_given_the_fill_and_holds_it_until_a_reply_says_otherwise(
    make_transfer: Make, prefix: Prefix
) -> None:
    llama, transfer = make_transfer()
    await fill(llama, transfer, prefix)
    stay, slot = stay_of(llama, transfer, prefix), Slot(id=1)
    await stay.begin(slot)
    assert stay.held == slot.holds(stay.spans) == len(prefix.tokens)
    assert llama.slots[1] == prefix.tokens
    ended(stay, slot, prompt=len(prefix.tokens) + 9, reused=len(prefix.tokens))
    assert slot.holds(stay.spans) == len(prefix.tokens)
    assert (slot.tokens, slot.reply_tokens) == (len(prefix.tokens) + 14, 5)
    ended(stay, slot, prompt=len(prefix.tokens) + 9, reused=0, kept=False)
    assert slot.holds(stay.spans) == 0


async def test_a_slot_that_has_the_prefix_already_is_loaded_nothing(make_transfer: Make, prefix: Prefix) -> None:
    llama, transfer = make_transfer()
    await fill(llama, transfer, prefix)
    slot = Slot(id=1)
    await stay_of(llama, transfer, prefix).begin(slot)
    again = stay_of(llama, transfer, prefix)
    await again.begin(slot)
    assert (again.held, again.restore_s, again.weighed, llama.restores) == (len(prefix.tokens), 0.0, None, 1)


async def test_another_fill_of_the_same_tokens_is_taken_out_before_its_own_is_loaded(
    make_transfer: Make, prefix: Prefix
) -> None:
    llama, transfer = make_transfer()
    await fill(llama, transfer, prefix)
    slot = Slot(id=1)
    await stay_of(llama, transfer, prefix).begin(slot)
    slot.stamp = prefix.stamp + 1.0
    await stay_of(llama, transfer, prefix).begin(slot)
    assert llama.restores == 2
    assert slot.stamp == prefix.stamp


@pytest.mark.parametrize("reuse", [Reuse.NONE, Reuse.TRIM])
async def test_what_a_request_computes_itself_counts_as_held_once_it_is_answered(
    make_transfer: Make, prefix: Prefix, reuse: Reuse
) -> None:
    llama, transfer = make_transfer()
    stay, slot = stay_of(llama, transfer, prefix, reuse=reuse, always=False), Slot(id=1)
    if reuse is Reuse.TRIM:
        slot.said = (b"", "chat")
        stay.said.append(slot.said)  # hardly anything is missing, so nothing is loaded
    await stay.begin(slot)
    assert (stay.held, llama.restores, slot.spans) == (0, 0, ())
    ended(stay, slot, prompt=len(prefix.tokens) + 9, reused=0)
    assert slot.spans == stay.spans != ()
