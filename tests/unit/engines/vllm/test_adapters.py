from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from nightfill.config import AdapterSettings, EngineSettings
from nightfill.engines.adapted import AdaptedEngine
from nightfill.engines.engine import Call, Prefix
from nightfill.engines.vllm import adapters
from nightfill.engines.vllm.adapter_identity import adapter_digest, may_hold, name_of
from nightfill.engines.vllm.adapter_shapes import misfit, shapes_in
from nightfill.engines.vllm.adapters import rank_for, register
from nightfill.engines.vllm.engine import VllmEngine
from nightfill.errors import AdapterUnfit, BadSetting, Busy, EngineUnfit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from fakes.vllm import FakeVllm
    from nightfill.engines.vllm.adapter_identity import Mark
    from nightfill.kv.store import Store

BLOCK = 32
SALT = b"\x01" * 32


def made(folder: Path, *, content: bytes = b"a", rank: int = 8, kind: str = "LORA") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": kind, "r": rank, "more": [1]}))
    (folder / "adapter_model.safetensors").write_bytes(content)
    return folder


def settings_of(*folders: Path) -> tuple[AdapterSettings, ...]:
    return tuple(AdapterSettings(name=folder.name, path=str(folder)) for folder in folders)


@contextlib.asynccontextmanager
async def house(
    server: FakeVllm, store: Store, *folders: Path, most: int = 2
) -> AsyncIterator[tuple[VllmEngine, dict[str, AdaptedEngine]]]:
    wanted = EngineSettings(name="v1", kind="vllm", url=server.url, adapters=settings_of(*folders), max_adapters=most)
    engine = VllmEngine(wanted, store=store, block_tokens=BLOCK, adapters=register(wanted.adapters))
    yield engine, {one.name: AdaptedEngine(engine, one) for one in engine.adapters}
    await engine.aclose()


async def asked(engine: AdaptedEngine, path: str = "/v1/completions") -> int:
    body: dict[str, Any] = {"model": "legal", "prompt": "x" * 100, "max_tokens": 2}
    raw = {name: msgspec.Raw(msgspec.json.encode(value)) for name, value in body.items()}
    async with engine.open(Call(path=path, body=raw, stream=False, salt=SALT)) as reply:
        assert b"".join([piece async for piece in reply.chunks()])
        return reply.status


def model_asked(server: FakeVllm) -> str:
    return str(server.asked("/v1/completions")[-1]["model"])


async def test_an_adapter_is_loaded_at_its_first_use_under_a_name_that_says_what_it_is(
    server: FakeVllm, store: Store, tmp_path: Path
) -> None:
    folder = made(tmp_path / "a")
    async with house(server, store, folder) as (_, models):
        assert (await models["a"].describe()).model == "a"
        assert server.adapters == {}
        assert await asked(models["a"]) == 200
        called = f"a@{adapter_digest(folder)[:32]}"
        assert server.adapters == {called: str(folder)}
        assert model_asked(server) == called
        assert await asked(models["a"]) == 200
        assert server.moves == [called]


async def test_the_one_used_longest_ago_goes_and_none_that_is_in_use(
    server: FakeVllm, store: Store, tmp_path: Path
) -> None:
    folders = [made(tmp_path / name, content=name.encode()) for name in "abc"]
    async with house(server, store, *folders) as (_, models):
        for name in "aba":
            await asked(models[name])
        server.hold = asyncio.Event()
        using = asyncio.create_task(asked(models["b"]))
        await server.waiting.wait()
        server.hold = None
        await asked(models["c"])
        assert [move[:2] for move in server.moves] == ["a@", "b@", "-a", "c@"]
        using.cancel()
        await asyncio.wait({using})


async def test_where_all_stay_in_use_a_request_is_told_to_come_back(
    server: FakeVllm, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapters, "ROOM_S", 0.05)
    folders = [made(tmp_path / name, content=name.encode()) for name in "ab"]
    async with house(server, store, *folders, most=1) as (_, models):
        await asked(models["a"])
        server.hold = asyncio.Event()
        using = asyncio.create_task(asked(models["a"]))
        await server.waiting.wait()
        with pytest.raises(Busy, match="stay in use"):
            await asked(models["b"])
        server.hold.set()
        assert await using == 200
        assert await asked(models["b"]) == 200


async def test_an_adapter_that_the_server_has_lost_is_loaded_again(
    server: FakeVllm, store: Store, tmp_path: Path
) -> None:
    async with house(server, store, made(tmp_path / "a")) as (_, models):
        await asked(models["a"])
        server.adapters.clear()
        assert await asked(models["a"]) == 200
        assert len(server.moves) == 2


async def test_one_that_is_there_already_is_not_loaded_again(server: FakeVllm, store: Store, tmp_path: Path) -> None:
    folder = made(tmp_path / "a")
    server.adapters[name_of("a", adapter_digest(folder))] = str(folder)
    async with house(server, store, folder) as (engine, models):
        assert await asked(models["a"]) == 200, "though nobody had told us"
        assert server.moves == []
        await engine.describe()
        assert await asked(models["a"]) == 200


async def test_one_whose_files_are_gone_or_changed_is_refused_also_when_it_is_loaded(
    server: FakeVllm, store: Store, tmp_path: Path
) -> None:
    folders = [made(tmp_path / name, content=name.encode()) for name in "ab"]
    async with house(server, store, *folders) as (_, models):
        await asked(models["a"])
        made(folders[0], content=b"other")
        with pytest.raises(AdapterUnfit, match="have changed"):
            await asked(models["a"])
        (folders[1] / "adapter_model.safetensors").unlink()
        (folders[1] / "adapter_config.json").unlink()
        folders[1].rmdir()
        with pytest.raises(AdapterUnfit, match="cannot be read any more"):
            await asked(models["b"])


async def test_one_that_the_server_computes_otherwise_is_refused_and_unloaded(
    server: FakeVllm, store: Store, tmp_path: Path
) -> None:
    server.mistakes_adapters = True
    async with house(server, store, made(tmp_path / "a")) as (_, models):
        with pytest.raises(AdapterUnfit, match="another model, or the server finds other files"):
            await asked(models["a"])
        assert server.adapters == {}


async def test_what_the_server_says_against_an_adapter_is_told(server: FakeVllm, store: Store, tmp_path: Path) -> None:
    server.refuses_adapters = "LoRA rank 64 is greater than max_lora_rank 8."
    async with house(server, store, made(tmp_path / "a")) as (_, models):
        with pytest.raises(AdapterUnfit, match="rank 64 is greater"):
            await asked(models["a"])


@pytest.mark.parametrize("says", ["", "LoRA is not enabled. Use --enable-lora to enable LoRA."])
async def test_a_server_that_takes_no_adapters_is_told_apart_from_a_bad_adapter(
    server: FakeVllm, store: Store, tmp_path: Path, says: str
) -> None:
    server.refuses_adapters, server.takes_adapters = says, bool(says)
    async with house(server, store, made(tmp_path / "a")) as (_, models):
        with pytest.raises(EngineUnfit, match="--enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"):
            await asked(models["a"])


async def test_a_fill_under_an_adapter_is_found_under_its_signature_alone(
    server: FakeVllm, store: Store, tmp_path: Path
) -> None:
    prefix = Prefix(tokens=tuple(range(2 * BLOCK)), salt=SALT)
    async with house(server, store, made(tmp_path / "a")) as (engine, models):
        async with models["a"].fill(prefix) as fill:
            await fill.extend(len(prefix.tokens))
            assert await fill.keep() == await fill.resume() == len(prefix.tokens)
            assert await fill.prove() == len(prefix.tokens)
        async with engine.fill(prefix) as fill:
            assert await fill.resume() == 0


@pytest.mark.parametrize("spoil", ["config", "kind", "folder"])
def test_what_is_no_adapter_is_not_registered(tmp_path: Path, spoil: str) -> None:
    folder = made(tmp_path / "a", kind="IA3" if spoil == "kind" else "LORA")
    if spoil == "config":
        (folder / "adapter_config.json").write_text("{")
    if spoil == "folder":
        folder = tmp_path / "nowhere"
    with pytest.raises(BadSetting, match=r"(no LoRA adapter|No such file)"):
        register(settings_of(folder))


def test_the_rank_is_the_least_that_vllm_knows_and_all_fit(tmp_path: Path) -> None:
    small, large = made(tmp_path / "a", rank=4), made(tmp_path / "b", rank=20)
    assert rank_for(settings_of(small)) == 8
    assert rank_for(settings_of(small, large)) == 32
    assert rank_for(settings_of(tmp_path / "nowhere")) == 16


def test_a_digest_is_of_what_counts_and_files_are_read_once(tmp_path: Path) -> None:
    folder = made(tmp_path / "a")
    known: dict[Mark, str] = {}
    before = adapter_digest(folder, known)
    assert before == adapter_digest(made(tmp_path / "b")), "wherever it is"
    (folder / "README.md").write_text("notes")
    assert adapter_digest(folder, known) == before
    assert len(known) == 2
    made(folder, rank=16)
    assert adapter_digest(folder, known) != before


def test_a_name_says_what_is_in_an_adapter() -> None:
    ours, other = "ab" * 32, "ac" * 32
    assert may_hold(name_of("a", ours), ours)
    assert not may_hold(name_of("a", ours), other)
    assert may_hold("somebody's", other)


def test_shapes_tell_whether_an_adapter_is_for_a_model(tmp_path: Path) -> None:
    q = "model.layers.0.self_attn.q_proj"
    model = _shapes(tmp_path / "model", {f"{q}.weight": ("BF16", [64, 32]), "packed.weight": ("I32", [4, 1])})
    assert model == {f"{q}.weight": (64, 32)}
    a, b = f"base_model.model.{q}.lora_A.weight", f"base_model.model.{q}.lora_B.weight"
    assert misfit({a: (8, 32), b: (64, 8)}, model) == ""
    assert "is 33 wide, and not 32" in misfit({a: (8, 33), b: (64, 8)}, model)
    assert "is 65 wide, and not 64" in misfit({a: (8, 32), b: (65, 8)}, model)
    assert misfit({"base_model.model.packed.lora_A.weight": (8, 99)}, model) == "", "that does not show"


def _shapes(folder: Path, tensors: dict[str, tuple[str, list[int]]]) -> dict[str, tuple[int, ...]]:
    folder.mkdir()
    head: dict[str, Any] = {name: {"dtype": kind, "shape": shape} for name, (kind, shape) in tensors.items()}
    text = json.dumps({"__metadata__": {"format": "pt"}, **head}).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    return shapes_in(folder)
