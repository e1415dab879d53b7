"""What every book of contexts keeps."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from fakes.state import told
from nightfill.contexts.context import (
    Content,
    Context,
    ContextName,
    ContextOptions,
    Fill,
    FillKey,
    FillState,
    Fingerprint,
    FolderSource,
    Form,
    GitSource,
    Message,
    Messages,
    Signature,
    Source,
    Tenant,
    Text,
    TextSource,
)

if TYPE_CHECKING:
    from fakes.stores import HostClock, Store
    from nightfill.state.book import SourceBook

T, OTHER = Tenant("default"), Tenant("other")
REPO, MANUAL = ContextName("repo"), ContextName("manual")
SIGNATURE = Signature("5" * 64)


def fingerprint(text: str) -> Fingerprint:
    return Fingerprint(hashlib.sha256(text.encode()).hexdigest())


async def put(
    book: SourceBook,
    text: str,
    *,
    name: ContextName = REPO,
    tenant: Tenant = T,
    source: Source | None = None,
    pinned: bool = False,
    options: ContextOptions | None = None,
) -> Context:
    return await book.put(
        tenant=tenant,
        name=name,
        source=source or TextSource(),
        content=Text(text),
        fingerprint=fingerprint(text),
        forms=[Form.CHAT, Form.COMPLETION],
        pinned=pinned,
        options=options,
    )


def fill_of(text: str, *, tenant: Tenant = T, tokens: tuple[int, ...] = (1, 2, 70_000), stored: int = 2) -> Fill:
    return Fill(
        key=FillKey(tenant=tenant, fingerprint=fingerprint(text), form=Form.CHAT, signature=SIGNATURE),
        state=FillState.FILLING,
        tokens=tokens,
        stored_tokens=stored,
        filled_at_s=12.5,
        fill_seconds=0.25,
    )


async def test_a_context_belongs_to_the_user_that_it_was_last_put_for(book: SourceBook) -> None:
    async def put_for(user: str) -> Context:
        return await book.put(
            tenant=T,
            name=REPO,
            source=TextSource(),
            content=Text("x"),
            fingerprint=fingerprint("x"),
            forms=[Form.CHAT],
            user=user,
        )

    assert (await put_for("ann")).user == "ann"
    made = await put_for("bob")
    assert (await book.get(T, REPO)) == made
    assert made.user == "bob"
    replaced = await book.replace(made, content=Text("y"), fingerprint=fingerprint("y"))
    assert replaced is not None
    assert replaced.user == "bob"
    assert (await put(book, "y")).user == ""


async def test_what_was_put_is_read_back_by_another_handle(store: Store) -> None:
    source = FolderSource(path="/srv/code", include=("*.py",))
    made = await put(store.open().book, "hello", source=source, pinned=True)
    book = store.open().book
    assert await book.get(T, REPO) == made
    assert (made.source, made.pinned, made.content_bytes) == (source, True, 5)
    assert await book.content(T, made.current) == Text("hello")


@pytest.mark.parametrize(
    "content", [Text("naïve ☃\n"), Messages((Message("system", "be brief"), Message("user", "?")))]
)
async def test_contents_come_back_as_they_were(book: SourceBook, content: Content) -> None:
    await book.put(
        tenant=T, name=REPO, source=TextSource(), content=content, fingerprint=fingerprint("x"), forms=[Form.CHAT]
    )
    assert await book.content(T, fingerprint("x")) == content


async def test_unknown_things_are_none_or_false(book: SourceBook) -> None:
    assert await book.get(T, REPO) is None
    assert await book.content(T, fingerprint("x")) is None
    assert await book.fill(fill_of("x").key) is None
    assert not await book.delete(T, REPO)
    assert not await book.drop_fill(fill_of("x").key)
    assert not await book.mark_fill(fill_of("x").key, state=FillState.STALE, reason="")


async def test_a_new_version_takes_the_old_text_and_its_fills_with_it(book: SourceBook, clock: HostClock) -> None:
    await put(book, "old")
    assert await book.put_fill(fill_of("old"))
    clock.advance(5)
    now = await put(book, "new")
    assert (now.current, now.created_at_s, now.updated_at_s) == (fingerprint("new"), clock.wall_s - 5, clock.wall_s)
    assert await book.content(T, fingerprint("old")) is None
    assert await book.fills() == []


async def test_the_same_version_again_keeps_its_fills_and_age(book: SourceBook, clock: HostClock) -> None:
    before = await put(book, "same")
    await book.put_fill(fill_of("same"))
    clock.advance(5)
    after = await put(book, "same", pinned=True)
    assert after == replace(before, pinned=True, checked_at_s=clock.wall_s)
    assert len(await book.fills()) == 1


async def test_a_version_that_another_context_has_stays(book: SourceBook) -> None:
    await put(book, "shared", name=REPO)
    await put(book, "shared", name=MANUAL)
    await book.put_fill(fill_of("shared"))
    assert await book.delete(T, REPO)
    assert await book.content(T, fingerprint("shared")) == Text("shared")
    assert len(await book.fills()) == 1
    assert await book.delete(T, MANUAL)
    assert await book.content(T, fingerprint("shared")) is None
    assert await book.fills() == []


async def test_tenants_do_not_share_versions(book: SourceBook) -> None:
    await put(book, "both", tenant=T)
    await put(book, "both", tenant=OTHER)
    await book.put_fill(fill_of("both", tenant=OTHER))
    await book.delete(OTHER, REPO)
    assert await book.content(OTHER, fingerprint("both")) is None
    assert await book.content(T, fingerprint("both")) == Text("both")
    assert [context.tenant for context in await book.contexts()] == [T]


async def test_contexts_are_listed_by_name_and_tenant(book: SourceBook) -> None:
    await put(book, "a", name=REPO)
    await put(book, "b", name=MANUAL)
    await put(book, "c", name=MANUAL, tenant=OTHER)
    assert [(c.name, c.tenant) for c in await book.contexts()] == [(MANUAL, T), (MANUAL, OTHER), (REPO, T)]
    assert [c.name for c in await book.contexts(OTHER)] == [MANUAL]


async def test_a_fill_of_a_gone_version_is_refused(book: SourceBook) -> None:
    await put(book, "old")
    await put(book, "new")
    assert not await book.put_fill(fill_of("old"))
    assert await book.fill(fill_of("old").key) is None


async def test_a_fill_is_replaced_with_its_tokens(book: SourceBook) -> None:
    await put(book, "text")
    await book.put_fill(fill_of("text"))
    assert await book.fill(fill_of("text").key) == fill_of("text")
    longer = fill_of("text", tokens=(9, 8, 7, 6), stored=4)
    await book.put_fill(longer)
    assert await book.fills() == [longer]


async def test_marking_changes_only_what_it_names(book: SourceBook) -> None:
    await put(book, "text")
    await book.put_fill(fill_of("text"))
    key = fill_of("text").key
    assert await book.mark_fill(key, state=FillState.STALE, reason="broken promise")
    assert await book.fill(key) == replace(fill_of("text"), state=FillState.STALE, reason="broken promise")
    assert await book.mark_fill(key, state=FillState.EVICTED, reason="gone", stored_tokens=0)
    evicted = await book.fill(key)
    assert evicted is not None
    assert (evicted.state, evicted.stored_tokens) == (FillState.EVICTED, 0)
    assert await book.drop_fill(key)
    assert await book.fill(key) is None


async def test_a_look_at_the_source_is_noted(book: SourceBook, clock: HostClock) -> None:
    before = await put(book, "text")
    clock.advance(3)
    await book.checked(T, REPO)
    assert await book.get(T, REPO) == replace(before, checked_at_s=clock.wall_s)


async def test_a_refreshed_source_makes_a_new_version(book: SourceBook) -> None:
    before = await put(book, "old", source=GitSource(repository="/srv/r"), pinned=True)
    after = await book.replace(before, content=Text("new"), fingerprint=fingerprint("new"))
    assert after is not None
    assert (after.current, after.source, after.pinned) == (fingerprint("new"), before.source, True)
    assert await book.content(T, fingerprint("old")) is None


async def test_a_slow_look_at_a_source_brings_back_nothing_that_was_replaced_or_deleted(book: SourceBook) -> None:
    seen = await put(book, "old")
    await put(book, "newer")
    assert await book.replace(seen, content=Text("slow"), fingerprint=fingerprint("slow")) is None
    seen = await put(book, "old")
    await put(book, "old", source=FolderSource(path="/elsewhere"))
    assert await book.replace(seen, content=Text("slow"), fingerprint=fingerprint("slow")) is None
    await book.delete(T, REPO)
    assert await book.replace(seen, content=Text("slow"), fingerprint=fingerprint("slow")) is None
    assert await book.contexts() == []
    assert await book.content(T, fingerprint("slow")) is None


async def test_the_number_of_changes_differs_after_a_change_by_any_handle(store: Store) -> None:
    mine, theirs = store.open().book, store.open().book
    await put(mine, "before")
    seen: list[int] = [0]
    seen.append(await told(theirs, *seen))
    await put(mine, "text")
    seen.append(await told(theirs, *seen))
    await mine.put_fill(fill_of("text"))
    seen.append(await told(theirs, *seen))
    await mine.mark_fill(fill_of("text").key, state=FillState.READY, reason="")
    seen.append(await told(theirs, *seen))
    await mine.drop_fill(fill_of("text").key)
    seen.append(await told(theirs, *seen))
    await theirs.delete(T, REPO)
    assert theirs.changes() not in seen, "one's own change is seen at once"
    await told(mine, *seen)
    assert await told(mine) == await told(theirs)


async def test_options_stay_until_they_are_given_again(book: SourceBook) -> None:
    made = await put(book, "x")
    assert made.options == ContextOptions()
    near = ContextOptions(answers="near", foresee=True)
    assert (await put(book, "x", options=near)).options == near
    later = await put(book, "y")
    assert later.options == near
    replaced = await book.replace(later, content=Text("z"), fingerprint=fingerprint("z"))
    assert replaced is not None
    assert replaced.options == near
    assert await book.get(T, REPO) == replaced
    assert (await put(book, "z", options=ContextOptions())).options == ContextOptions()


async def test_a_distilled_version_has_text_and_fills_of_its_own_and_goes_with_what_it_was_made_of(
    book: SourceBook,
) -> None:
    before = await put(book, "long")
    assert not await book.put_fill(fill_of("short"))
    assert await book.put_distilled(before, content=Text("short"), fingerprint=fingerprint("short"))
    assert await book.get(T, REPO) == replace(before, distilled=fingerprint("short"))
    assert await book.content(T, fingerprint("short")) == Text("short")
    assert await book.content(T, fingerprint("long")) == Text("long")
    assert await book.put_fill(fill_of("short"))
    assert await book.put_fill(fill_of("long"))
    assert (await put(book, "long", pinned=True)).distilled == fingerprint("short")
    assert len(await book.fills()) == 2
    assert (await put(book, "new")).distilled is None
    assert await book.content(T, fingerprint("short")) is None
    assert await book.fills() == []


async def test_a_second_distilled_version_takes_the_place_of_the_first(book: SourceBook) -> None:
    context = await put(book, "long")
    assert await book.put_distilled(context, content=Text("short"), fingerprint=fingerprint("short"))
    assert await book.put_distilled(context, content=Text("short"), fingerprint=fingerprint("short"))
    assert await book.put_distilled(context, content=Text("shorter"), fingerprint=fingerprint("shorter"))
    assert await book.content(T, fingerprint("short")) is None
    assert await book.content(T, fingerprint("shorter")) == Text("shorter")
    assert await book.delete(T, REPO)
    assert await book.content(T, fingerprint("shorter")) is None
    assert await book.content(T, fingerprint("long")) is None


async def test_what_one_context_has_distilled_and_another_as_its_own_stays_for_either(book: SourceBook) -> None:
    context = await put(book, "long")
    await put(book, "short", name=MANUAL)
    assert await book.put_distilled(context, content=Text("short"), fingerprint=fingerprint("short"))
    await book.put_fill(fill_of("short"))
    assert await book.delete(T, MANUAL)
    assert await book.content(T, fingerprint("short")) == Text("short")
    assert len(await book.fills()) == 1
    await put(book, "short", name=MANUAL)
    replaced = await book.replace(context, content=Text("y"), fingerprint=fingerprint("y"))
    assert replaced is not None
    assert replaced.distilled is None
    assert await book.content(T, fingerprint("short")) == Text("short")


async def test_nothing_distilled_is_kept_of_a_version_that_is_gone(book: SourceBook) -> None:
    seen = await put(book, "old")
    await put(book, "new")
    assert not await book.put_distilled(seen, content=Text("short"), fingerprint=fingerprint("short"))
    await book.delete(T, REPO)
    assert not await book.put_distilled(seen, content=Text("short"), fingerprint=fingerprint("short"))
    assert await book.content(T, fingerprint("short")) is None
