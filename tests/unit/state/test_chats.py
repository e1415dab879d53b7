"""Chats under way in every book of contexts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nightfill.contexts.chats import chat_name, whole_content
from nightfill.contexts.context import (
    Chat,
    ContextName,
    Form,
    Message,
    Messages,
    MessagesSource,
    Tenant,
    Text,
    TextSource,
)
from nightfill.contexts.fingerprint import fingerprint_of

if TYPE_CHECKING:
    from nightfill.state.book import SourceBook

T = Tenant("default")
SAID = (Message("user", "hm"), Message("assistant", "yes"))


async def test_a_chat_reads_back_with_and_without_what_stands_before_it(book: SourceBook) -> None:
    text = Text("long")
    notes = await book.put(
        tenant=T,
        name=ContextName("notes"),
        source=TextSource(),
        content=text,
        fingerprint=fingerprint_of(text),
        forms=[Form.CHAT],
    )
    content = Messages(SAID, behind=notes.current)
    mark = fingerprint_of(content)
    source = MessagesSource(Chat(context="notes", version=notes.current, before=("a" * 64,)))
    chat = await book.put(
        tenant=T, name=chat_name(mark), source=source, content=content, fingerprint=mark, forms=[Form.CHAT]
    )
    assert (chat.source, chat.chat) == (source, source.chat)
    assert await book.content(T, mark) == content
    assert await whole_content(book, T, mark) == Messages((Message("system", "long"), *SAID))
    assert await whole_content(book, T, notes.current) == text
    assert await book.delete(T, ContextName("notes"))
    assert await whole_content(book, T, mark) is None
