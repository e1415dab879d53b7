"""From one master key to the next: old, then both, then the new one alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nightfill.cli import health
from nightfill.cli.workspace import Workspace, text_seal
from nightfill.config import ByteSize, KvSettings, Settings, TierSettings
from nightfill.contexts import DEFAULT_TENANT, ContextName, Form, Text
from nightfill.contexts.context import Fill, FillKey, FillState, Signature, TextSource
from nightfill.contexts.fingerprint import fingerprint_of
from nightfill.kv import BlockMeta, salt_of, spans
from nightfill.sleep.upkeep import StoreUpkeep

if TYPE_CHECKING:
    from pathlib import Path

SIGNATURE = Signature("5" * 64)
SALT = salt_of(DEFAULT_TENANT)
CONTENT = Text("a long text")
TOKENS = tuple(range(6000))


def workspace(folder: Path, key: str, *old: str) -> Workspace:
    for name in (key, *old):
        (folder / name).write_bytes(name.encode().ljust(32, b"."))
        (folder / name).chmod(0o600)
    disk = TierSettings(kind="disk", max_bytes=ByteSize(1 << 24), min_free_bytes=ByteSize(0))
    kv = KvSettings(tiers=(disk,), key_file=str(folder / key), old_key_files=tuple(str(folder / name) for name in old))
    return Workspace(settings=Settings(kv=kv), data_dir=folder)


def read(space: Workspace) -> int:
    """How many blocks of the fill can be opened."""
    store = space.open_store()
    try:
        keys = [span.key for span in spans(TOKENS, signature=SIGNATURE, salt=SALT)]
        return sum(block is not None for block in store.get_many(keys, salt=SALT))
    finally:
        store.close()


async def test_contexts_are_answered_from_their_fills_through_a_change_of_keys(tmp_path: Path) -> None:
    before = workspace(tmp_path, "old")
    store = before.open_store()
    for span in spans(TOKENS, signature=SIGNATURE, salt=SALT):
        meta = BlockMeta(kind="block", signature=SIGNATURE, start=span.start, stop=span.stop, layout=b"")
        store.put(span.key, [bytes(4096)], meta, salt=SALT)
    store.close()
    async with before.open_state() as state:
        context = await state.book.put(
            tenant=DEFAULT_TENANT,
            name=ContextName("repo"),
            source=TextSource(),
            content=CONTENT,
            fingerprint=fingerprint_of(CONTENT),
            forms=[Form.CHAT],
        )
        key = FillKey(tenant=DEFAULT_TENANT, fingerprint=context.current, form=Form.CHAT, signature=SIGNATURE)
        fill = Fill(
            key=key,
            state=FillState.READY,
            tokens=TOKENS,
            stored_tokens=len(TOKENS),
            filled_at_s=0.0,
            fill_seconds=1.0,
        )
        assert await state.book.put_fill(fill)

    both = workspace(tmp_path, "new", "old")
    findings = {finding.check: finding for finding in health.check_store(both)}
    assert findings["key change"].detail == "blocks under old keys: 24 in disk"
    async with both.open_state() as state:
        seal = text_seal(both.settings.kv)
        assert seal is not None
        assert await state.reseal_texts(seal) == 3, "the text, its source, the tokens"
        assert await state.reseal_texts(seal) == 0
    store = both.open_store()
    upkeep = StoreUpkeep(store, rotating=True)
    steps = 0
    while upkeep.renew_due():
        upkeep.renew([SALT])
        steps += 1
    store.close()
    assert steps == 2, "24 blocks, in bounded steps"
    assert {finding.check: finding.status for finding in health.check_store(both)}["key change"] == "OK"

    (tmp_path / "old").unlink()
    after = workspace(tmp_path, "new")
    async with after.open_state() as state:
        assert await state.book.content(DEFAULT_TENANT, context.current) == CONTENT
        assert await state.book.fill(key) == fill
    assert read(after) == 24


async def test_without_the_old_key_nothing_that_it_sealed_can_be_read(tmp_path: Path) -> None:
    """What the test above guards against: the old key file went too early."""
    before = workspace(tmp_path, "old")
    store = before.open_store()
    for span in spans(TOKENS, signature=SIGNATURE, salt=SALT):
        meta = BlockMeta(kind="block", signature=SIGNATURE, start=span.start, stop=span.stop, layout=b"")
        store.put(span.key, [bytes(4096)], meta, salt=SALT)
    store.close()
    assert read(workspace(tmp_path, "new")) == 0
