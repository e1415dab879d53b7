"""LoRA on a real vLLM server: an adapter is what is in it, not its name or path, to keys of KV and to requests."""

from __future__ import annotations

import contextlib
import shutil
from typing import TYPE_CHECKING, Any, Final

import msgspec
import pytest

from adapters import make_adapter
from nightfill.config import AdapterSettings, EngineSettings
from nightfill.contexts.context import Signature
from nightfill.engines.adapted import AdaptedEngine
from nightfill.engines.engine import Call, Prefix
from nightfill.engines.signature import adapted
from nightfill.engines.vllm.adapter_identity import adapter_digest
from nightfill.engines.vllm.adapters import register
from nightfill.engines.vllm.engine import VllmEngine
from nightfill.engines.vllm.wire import Wish
from nightfill.errors import AdapterUnfit
from nightfill.kv import open_store
from vllm_server import VllmServer
from vllm_store import BLOCK, ask, disk, fill, flags_for, kv_of, prompt

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from nightfill.config import KvSettings
    from nightfill.engines.engine import Engine

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

WHOLE: Final = 2 * BLOCK
TAIL: Final = 20
SALT: Final = bytes.fromhex("cd" * 32)
NOBODYS: Final = bytes.fromhex("ce" * 32)


@pytest.fixture(scope="module")
def kv(tmp_path_factory: pytest.TempPathFactory) -> KvSettings:
    return kv_of(disk(tmp_path_factory.mktemp("kv")))


@pytest.fixture(scope="module")
def server(kv: KvSettings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    folder = tmp_path_factory.mktemp("vllm")
    many = ["--max-loras", "2", "--max-cpu-loras", "4"]
    server = VllmServer(
        folder / "server",
        flags=[*flags_for(kv, data_dir=folder), "--enable-lora", "--max-lora-rank", "8", *many],
        environment={"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", "VLLM_SERVER_DEV_MODE": "1"},
    )
    try:
        yield server.start()
    finally:
        server.close()


@pytest.fixture
def named(server: VllmServer) -> Iterator[VllmServer]:
    """The server, called as it was afterwards."""
    name = server.name
    yield server
    server.name = name


def load(server: VllmServer, name: str, path: Path, *, in_place: bool = False) -> None:
    body = {"lora_name": name, "lora_path": str(path), "load_inplace": in_place}
    answer = server.request("POST", "/v1/load_lora_adapter", body)
    assert answer.status == 200, answer.body


def loaded(server: VllmServer) -> list[str]:
    """Adapters that the server has, as gateways call them."""
    models = server.request("GET", "/v1/models").json()["data"]
    return sorted(one["id"].partition("@")[0] for one in models if one["parent"])


def test_keys_tell_adapters_apart_by_content(named: VllmServer, kv: KvSettings, tmp_path: Path) -> None:
    server = named
    ids = prompt(1, WHOLE + TAIL)
    digest = adapter_digest(make_adapter(tmp_path / "one", seed=1))
    load(server, "one", tmp_path / "one")

    base = fill(server, kv, ids)
    without, _ = ask(server, ids)
    server.name = "one"
    under, report = ask(server, ids, Wish(store=True))
    assert (report.found, report.loaded, report.cached) == (0, 0, 0), "KV of the base model is not the adapter's"
    assert (report.salt, report.signature) == (base.salt, adapted(Signature(base.signature), digest=digest))
    assert under.logprobs[0] != without.logprobs[0]
    fill(server, kv, ids)

    # The same content under another name and path: stored KV is found.
    shutil.copytree(tmp_path / "one", tmp_path / "copy")
    load(server, "copy", tmp_path / "copy")
    server.name = "copy"
    again, report = ask(server, ids)
    assert report.loaded == WHOLE
    assert again.tokens[0] == under.tokens[0]

    # Other content under the same name and path: vLLM's own caches would serve the KV of the adapter before.
    make_adapter(tmp_path / "one", seed=2)
    load(server, "one", tmp_path / "one", in_place=True)
    server.name = "one"
    changed, report = ask(server, ids)
    assert (report.found, report.loaded, changed.cached_tokens) == (0, 0, 0)
    make_adapter(tmp_path / "two", seed=2)
    load(server, "two", tmp_path / "two")
    server.name = "two"
    right, report = ask(server, ids)
    assert (report.loaded, right.cached_tokens) == (0, 0)
    assert changed.logprobs == right.logprobs
    for name in ("one", "copy", "two"):
        server.request("POST", "/v1/unload_lora_adapter", {"lora_name": name})


# --- as the gateway asks for them ---


class House:
    """An engine on the server, and its adapters: the model itself under the empty name."""

    def __init__(self, engine: VllmEngine) -> None:
        self.models: dict[str, Engine] = {
            "": engine,
            **{one.name: AdaptedEngine(engine, one) for one in engine.adapters},
        }

    async def ask(self, model: str, ids: list[int], *, anew: bool = False) -> tuple[str, int]:
        """The text of a greedy completion, and the tokens that were reused. `anew`: past all caches."""
        await self.models[model].describe()
        members: dict[str, Any] = {"model": "whatever", "prompt": ids, "max_tokens": 6, "temperature": 0}
        call = Call(
            path="/v1/completions",
            body={name: msgspec.Raw(msgspec.json.encode(value)) for name, value in members.items()},
            stream=False,
            salt=NOBODYS if anew else SALT,  # what is computed past all caches is cached all the same
            reuse=not anew,
        )
        async with self.models[model].open(call) as reply:
            whole = b"".join([chunk async for chunk in reply.chunks()])
            assert reply.status == 200, whole
            return msgspec.json.decode(whole)["choices"][0]["text"], reply.tokens.reused or 0

    async def fill(self, model: str, ids: list[int]) -> int:
        """Fill and prove; the tokens that were reused."""
        await self.models[model].describe()
        async with self.models[model].fill(Prefix(tokens=tuple(ids), salt=SALT)) as fill:
            assert await fill.resume() == 0
            await fill.extend(len(ids))
            assert await fill.keep() == len(ids)
            return await fill.prove()


@contextlib.asynccontextmanager
async def house_of(server: VllmServer, kv: KvSettings, *paths: Path, most: int = 2) -> AsyncIterator[House]:
    adapters = tuple(AdapterSettings(name=path.name, path=str(path)) for path in paths)
    settings = EngineSettings(name="v", kind="vllm", url=server.url, adapters=adapters, max_adapters=most)
    store = open_store(kv, data_dir=paths[0])
    engine = VllmEngine(settings, store=store, block_tokens=BLOCK, adapters=register(adapters))
    try:
        yield House(engine)
    finally:
        await engine.aclose()
        store.close()


async def test_adapters_share_no_kv_with_each_other_or_the_model_and_come_and_go(
    server: VllmServer, kv: KvSettings, tmp_path: Path
) -> None:
    paths = [make_adapter(tmp_path / name, seed=10 + n) for n, name in enumerate(("a", "b", "c"))]
    ids = prompt(2, WHOLE + TAIL)
    async with house_of(server, kv, *paths) as house:
        await house.models["a"].describe()
        assert loaded(server) == [], "at the first use"
        right = {model: (await house.ask(model, ids, anew=True))[0] for model in ("", "a", "b")}
        assert len(set(right.values())) == 3
        assert loaded(server) == ["a", "b"]
        assert await house.fill("a", ids[:WHOLE]) == WHOLE
        assert await house.ask("", ids) == (right[""], 0)
        assert await house.ask("b", ids) == (right["b"], 0)
        text, reused = await house.ask("a", ids)
        assert (text, reused >= WHOLE) == (right["a"], True)
        for model in ("", "b"):
            text, reused = await house.ask(model, ids)
            assert (text, reused >= WHOLE) == (right[model], True), "its own by now"

        await house.ask("c", ids)
        assert loaded(server) == ["b", "c"], "the one used longest ago has gone"
        text, reused = await house.ask("a", ids)
        assert (text, reused >= WHOLE, loaded(server)) == (right["a"], True, ["a", "c"])

        # Somebody else unloads it, or the server is started again.
        called = next(one for one in _ids(server) if one.startswith("a@"))
        server.request("POST", "/v1/unload_lora_adapter", {"lora_name": called})
        assert (await house.ask("a", ids))[0] == right["a"]

        # Another one in the same place is not served under the name of the first; registered anew, it has its own KV.
        make_adapter(paths[0], seed=20)
        with pytest.raises(AdapterUnfit, match="have changed"):
            await house.ask("a", ids)
        assert (await house.ask("", ids))[0] == right[""]
    async with house_of(server, kv, paths[0]) as house:
        changed = await house.ask("a", ids)
        assert changed[1] == 0
        assert changed[0] == (await house.ask("a", ids, anew=True))[0] != right["a"]


async def test_an_adapter_for_another_model_or_a_damaged_one_is_refused(
    server: VllmServer, kv: KvSettings, tmp_path: Path
) -> None:
    # vLLM itself takes one of another width, and answers with what fits.
    wide = make_adapter(tmp_path / "wide", seed=1, width=100)
    short = make_adapter(tmp_path / "short", seed=2)
    weights = short / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    rank = make_adapter(tmp_path / "rank", seed=3)
    config = rank / "adapter_config.json"
    config.write_text(config.read_text().replace('"r": 8', '"r": 64'))
    ids = prompt(3, 40)
    async with house_of(server, kv, wide, short, rank) as house:
        for model, why in (("wide", "another model"), ("short", "does not take it"), ("rank", "max_lora_rank")):
            with pytest.raises(AdapterUnfit, match=why):
                await house.ask(model, ids)
        assert (await house.ask("", ids))[0]
        assert not {"wide", "short", "rank"} & set(loaded(server))


def _ids(server: VllmServer) -> list[str]:
    return [one["id"] for one in server.request("GET", "/v1/models").json()["data"]]
