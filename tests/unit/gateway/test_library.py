"""What a gateway knows of the book while the book is away."""

from __future__ import annotations

import asyncio

import pytest

from fakes.state import FakeBook
from nightfill.contexts import (
    DEFAULT_TENANT,
    Context,
    ContextName,
    Fill,
    FillKey,
    FillState,
    Form,
    Signature,
    Text,
    fingerprint_of,
)
from nightfill.contexts.context import TextSource
from nightfill.errors import NotFound, StateUnavailable
from nightfill.gateway.library import Library

T, REPO, MANUAL = DEFAULT_TENANT, ContextName("repo"), ContextName("manual")


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


async def put(book: FakeBook, text: str, name: ContextName = REPO) -> Context:
    content = Text(text)
    return await book.put(
        tenant=T,
        name=name,
        source=TextSource(),
        content=content,
        fingerprint=fingerprint_of(content),
        forms=[Form.CHAT],
    )


def ready(context: Context) -> Fill:
    key = FillKey(tenant=T, fingerprint=context.current, form=Form.CHAT, signature=Signature("5" * 64))
    return Fill(key=key, state=FillState.READY, tokens=(1, 2), stored_tokens=2, filled_at_s=1.0, fill_seconds=0.1)


async def test_what_was_read_is_used_on_though_it_may_have_changed_when_the_book_is_away() -> None:
    book = FakeBook()
    library = Library(book, patience_s=0)
    context = await put(book, "one")
    fill = ready(context)
    await book.put_fill(fill)
    assert await library.context(T, REPO) == context
    assert await library.fill(fill.key) == fill
    await put(book, "another", MANUAL)  # the book has changed, and nobody has looked since
    book.down = True
    assert await library.context(T, REPO) == context
    assert await library.fill(fill.key) == fill
    with pytest.raises(StateUnavailable):
        await library.context(T, MANUAL)


async def test_what_was_never_read_is_asked_for_again_until_the_book_is_back() -> None:
    book = FakeBook()
    library = Library(book, patience_s=30)
    context = await put(book, "one")
    book.down = True
    asked = asyncio.create_task(library.context(T, REPO))
    await asyncio.sleep(0)
    assert not asked.done()
    book.down = False
    assert await asked == context
    book.down = True
    front = asyncio.create_task(library.front(T, context.current))
    await asyncio.sleep(0)
    book.down = False
    assert await front is not None


async def test_a_change_is_seen_at_once_while_the_book_answers() -> None:
    book = FakeBook()
    library = Library(book, patience_s=0)
    await put(book, "one")
    await library.context(T, REPO)
    newer = await put(book, "two")
    assert (await library.context(T, REPO)).current == newer.current
    await book.delete(T, REPO)
    with pytest.raises(NotFound):
        await library.context(T, REPO)
    book.down = True
    with pytest.raises(StateUnavailable):
        await library.context(T, REPO)


async def test_a_change_that_the_book_does_not_tell_of_yet_is_found_by_asking_anew() -> None:
    """Another host's change is in the book before this host's count of changes has it; the old text is gone then."""
    book = FakeBook()
    library = Library(book)
    old = await put(book, "old")
    assert await library.context(T, REPO) == old
    told = book.changes()
    new = await put(book, "new")
    book._changes = told
    assert await library.context(T, REPO) == old
    assert await library.front(T, old.current) is None
    assert await library.context(T, REPO, anew=True) == new
    assert await library.context(T, REPO) == new


async def test_while_the_book_cannot_tell_of_changes_it_is_asked_each_time() -> None:
    book = FakeBook()
    library = Library(book, patience_s=0)
    old = await put(book, "old")
    assert await library.context(T, REPO) == old
    fill = ready(old)
    await book.put_fill(fill)
    assert await library.fill(fill.key) == fill
    book.blind = True
    assert await library.context(T, REPO) == old
    new = await put(book, "new")
    assert await library.context(T, REPO) == new
    assert await library.fill(fill.key) is None
    newer = await put(book, "newer")
    assert await library.context(T, REPO) == newer
    book.down = True
    assert await library.context(T, REPO) == newer


async def test_prompts_are_recognised_by_the_last_index_while_the_book_cannot_tell_of_changes() -> None:
    """All contexts are read for it, which nobody could do for each request."""
    book, clock = FakeBook(blind=True), Clock()
    library = Library(book, patience_s=0, clock=clock)
    await put(book, "one")
    index = await library.index(T)
    assert index
    await put(book, "two", MANUAL)
    clock.now_s += 10
    assert await library.index(T) is index
    book.blind = False
    clock.now_s += 10
    assert await library.index(T) is not index


async def test_prompts_are_recognised_by_the_last_index_and_what_it_listed_is_known() -> None:
    book, clock = FakeBook(), Clock()
    library = Library(book, patience_s=0, clock=clock)
    context = await put(book, "one")
    index = await library.index(T)
    await put(book, "another", MANUAL)
    book.down = True
    clock.now_s += 10
    assert await library.index(T) is index
    assert await library.context(T, REPO) == context


async def test_a_gateway_that_never_saw_the_book_says_so() -> None:
    book = FakeBook()
    book.down = True
    with pytest.raises(StateUnavailable):
        await Library(book).index(T)
