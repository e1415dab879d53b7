from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from fakes.background import T, house
from fakes.virtual_time import now_s, virtual
from nightfill.contexts.context import Content, Context, ContextName, FolderSource, GitSource, Text
from nightfill.errors import BadSource, StateUnavailable
from nightfill.sleep.sources import SourceWatch

if TYPE_CHECKING:
    from pathlib import Path

FOLDER = FolderSource(path="/srv/code")
REPO = ContextName("repo")


class Reader:
    """Tells each new text once, as `refresh` is meant to."""

    def __init__(self) -> None:
        self.text: str | None = None
        self.calls = 0
        self.error: BadSource | None = None

    def __call__(self, context: Context) -> Content | None:
        self.calls += 1
        if self.error:
            raise self.error
        text, self.text = self.text, None
        return None if text is None else Text(text)


class Stumbling:
    """A book that fails to replace for a while."""

    def __init__(self, book: Any) -> None:
        self._book = book
        self.fails = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._book, name)

    async def replace(self, *args: Any, **kwargs: Any) -> Any:
        if self.fails:
            raise StateUnavailable("locked")
        return await self._book.replace(*args, **kwargs)


async def text_of(book: Any) -> str:
    context = await book.get(T, REPO)
    content = await book.content(T, context.current)
    assert isinstance(content, Text)
    return content.text


@virtual
async def test_sources_are_looked_at_no_more_often_than_asked_for(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        contexts = [await h.put("a", source=FOLDER), await h.put("b", name="given")]
        reader, at_s = Reader(), [0.0]
        watch = SourceWatch(h.state.book, reader, every_s=10, clock=lambda: at_s[0])
        for at_s[0] in (0.0, 5.0, 9.9, 10.0, 15.0, 20.0):
            await watch.look(contexts)
        assert reader.calls == 3


@virtual
async def test_a_source_that_cannot_be_read_keeps_its_last_version(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        context = await h.put("a", source=FOLDER)
        reader = Reader()
        reader.error = BadSource("no such folder")
        watch = SourceWatch(h.state.book, reader, every_s=0, clock=now_s)
        assert await watch.look([context]) == 0
        assert await text_of(h.state.book) == "a"


@virtual
async def test_what_could_not_be_written_is_not_forgotten(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        context = await h.put("a", source=FOLDER)
        reader, book = Reader(), Stumbling(h.state.book)
        watch = SourceWatch(book, reader, every_s=0, clock=now_s)
        reader.text = "b"
        with pytest.raises(StateUnavailable):
            await watch.look([context])
        book.fails = False
        assert await watch.look([context]) == 1
        assert await text_of(book) == "b"
        assert await watch.look(await book.contexts()) == 0


@virtual
async def test_what_was_found_at_a_former_source_is_forgotten(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        context = await h.put("a", source=FOLDER)
        reader = Reader()
        watch = SourceWatch(h.state.book, reader, every_s=0, clock=now_s)
        reader.text = "b"
        other = await h.put("c", source=GitSource(repository="/srv/git"))
        assert await watch.look([context]) == 0
        assert await watch.look([other]) == 0
        assert await text_of(h.state.book) == "c"
