from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

import pytest

from nightfill.cli.distil import NEEDED, distil_duty
from nightfill.config import DistilSettings, EngineSettings, Settings
from nightfill.contexts import (
    DEFAULT_TENANT,
    ContextName,
    Fill,
    FillKey,
    FillState,
    Form,
    Signature,
    Text,
    fingerprint_of,
)
from nightfill.contexts.context import ContextOptions
from nightfill.errors import BadSetting
from nightfill.state.sqlite import SqliteState, open_state

if TYPE_CHECKING:
    from pathlib import Path

    from fakes.cli import Cli


@pytest.mark.parametrize(
    ("settings", "installed", "by_model"),
    [
        (DistilSettings(), True, False),
        (DistilSettings(), False, True),
        (DistilSettings(engine="small"), True, True),
        (DistilSettings(engine="small", method="extractive"), True, False),
        (DistilSettings(method="model"), True, True),
        (DistilSettings(method="extractive"), False, False),
    ],
)
async def test_an_engine_writes_where_one_is_named_or_nothing_else_can(
    settings: DistilSettings, installed: bool, by_model: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not installed:
        found = importlib.util.find_spec
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name, *rest: None if name in NEEDED else found(name, *rest)
        )
    engines = (EngineSettings(name="small"),)
    async with open_state(tmp_path / "state.db") as state:
        assert distil_duty(state, Settings(engines=engines, distil=settings)).by_model is by_model


async def test_an_engine_that_there_is_not_is_refused(tmp_path: Path) -> None:
    settings: Any = Settings(engines=(EngineSettings(name="small"),), distil=DistilSettings(engine="smal"))
    async with open_state(tmp_path / "state.db") as state:
        with pytest.raises(BadSetting, match="'smal' is not one of the engines: small"):
            distil_duty(state, settings)


def test_a_context_tells_of_its_distilled_version_and_takes_it_along(cli: Cli, folder: Path) -> None:
    short = Text("short")
    cli.ok("context", "add", "repo", folder, "--distil")

    async def act(state: SqliteState) -> None:
        context = await state.book.get(DEFAULT_TENANT, ContextName("repo"))
        assert context is not None
        assert context.options == ContextOptions(distil=True)
        assert await state.book.put_distilled(context, content=short, fingerprint=fingerprint_of(short))
        for version in (context.current, fingerprint_of(short)):
            key = FillKey(tenant=DEFAULT_TENANT, fingerprint=version, form=Form.CHAT, signature=Signature("5" * 64))
            tokens = tuple(range(300))
            fill = Fill(
                key=key, state=FillState.READY, tokens=tokens, stored_tokens=300, filled_at_s=1.0, fill_seconds=2.5
            )
            assert await state.book.put_fill(fill)

    cli.state(act)
    shown = cli.ok("context", "show", "repo")
    assert f"distilled:     {fingerprint_of(short)}" in shown
    assert "distil:        on" in shown
    assert "fill:          distilled chat ready, 300 of 300 tokens" in shown
    assert "chat ready 300; distilled chat ready 300" in cli.ok("context", "ls")
    cli.ok("context", "add", "repo", folder, "--answers", "exact")
    assert cli.json("context", "show", "repo")["options"] == {"answers": "exact", "distil": True}, "as before"
    cli.ok("context", "add", "repo", folder, "--no-distil")
    assert cli.json("context", "show", "repo")["options"] == {"answers": "exact", "distil": False}
    cli.ok("context", "rm", "repo")
    assert cli.state(lambda state: state.book.fills()) == []
    assert cli.state(lambda state: state.book.content(DEFAULT_TENANT, fingerprint_of(short))) is None
