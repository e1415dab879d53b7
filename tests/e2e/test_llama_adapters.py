"""LoRA adapters on a real llama.cpp: what one has computed serves no other and not the model itself, judged by content.

The reference for each answer is the same request computed anew from its first token on.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec
import pytest

from nightfill.config import AdapterSettings, ByteSize, EngineSettings, KvSettings, TierSettings
from nightfill.engines.adapted import AdaptedEngine
from nightfill.engines.engine import Call, Prefix, Way
from nightfill.engines.llama import demo_adapter
from nightfill.engines.llama.engine import LlamaEngine
from nightfill.engines.llama.model import load
from nightfill.engines.llama.process import LlamaProcess
from nightfill.engines.llama.sleeper import LlamaSleeper
from nightfill.errors import AdapterUnfit, BadRequest, Busy, EngineUnavailable
from nightfill.kv import open_store
from serving import eventually, source_text

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from nightfill.engines.engine import Engine
    from nightfill.kv import Store
    from serving import Serve

pytestmark = pytest.mark.e2e

BLOCK: Final = 64
SALT: Final = bytes(32)
IDS: Final = tuple(33 + n * n % 90 for n in range(1500))
OTHERS: Final = tuple(40 + n * n * n % 80 for n in range(700))


@dataclass(frozen=True)
class Answer:
    text: str
    reused: int
    promised: int
    """Tokens that the engine said it would load."""


@dataclass
class House:
    engine: LlamaEngine
    process: LlamaProcess
    models: dict[str, Engine]
    """The model itself under the empty name, and its adapters."""

    async def ask(
        self, model: str, ids: tuple[int, ...] = IDS, *, filled: int = 0, anew: bool = False, n: int = 6
    ) -> Answer:
        """A greedy completion. `filled`: so many tokens of it are said to be stored."""
        body = {"prompt": ids, "max_tokens": n, "temperature": 0}
        call = Call(
            path="/v1/completions",
            body={name: msgspec.Raw(msgspec.json.encode(value)) for name, value in body.items()},
            stream=False,
            salt=SALT,
            prefix=Prefix(tokens=ids[:filled], salt=SALT) if filled else None,
            affinity=bytes(str(ids), "ascii"),
            reuse=not anew,
        )
        async with self.models[model].open(call) as reply:
            whole = b"".join([chunk async for chunk in reply.chunks()])
            assert reply.status == 200, whole
            text = msgspec.json.decode(whole)["choices"][0]["text"]
            return Answer(text=text, reused=reply.tokens.reused or 0, promised=reply.loaded_tokens)

    async def fill(self, model: str, ids: tuple[int, ...]) -> int:
        """Fill and prove; the tokens that were reused."""
        async with self.models[model].fill(Prefix(tokens=ids, salt=SALT)) as fill:
            await fill.resume()
            await fill.extend(len(ids))
            assert await fill.keep() == len(ids)
            return await fill.prove()


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    tier = TierSettings(kind="disk", path=str(tmp_path / "kv"), max_bytes=ByteSize(1 << 30), min_free_bytes=ByteSize(0))
    store = open_store(KvSettings(tiers=(tier,), block_tokens=BLOCK), data_dir=tmp_path)
    yield store
    store.close()


@pytest.fixture
async def new_house(cache: Path, store: Store, tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    async with contextlib.AsyncExitStack() as stack:

        async def make(*paths: Path, filling: bool = False, slots: int = 1, most: int = 2, again: bool = True) -> House:
            adapters = tuple(AdapterSettings(name=path.stem, path=str(path)) for path in paths)
            settings = EngineSettings(
                model="demo:tiny", slots=slots, context_length=4096, adapters=adapters, max_adapters=most
            )
            model = load(settings, filling=filling, cache_dir=cache, scratch_dir=str(tmp_path), data_dir=tmp_path)
            process = LlamaProcess(model.child(), name="fill" if filling else "live", again=again)
            engine = LlamaEngine(model, process=process, store=store, block_tokens=BLOCK, restore="always")
            stack.push_async_callback(engine.aclose)
            models = {one.name: AdaptedEngine(engine, one) for one in model.adapters}
            return House(engine, process, {"": engine, **models})

        yield make


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Three adapters."""
    return [demo_adapter.write(tmp_path / f"{name}.gguf", "tiny", seed=n) for n, name in enumerate(("a", "b", "c"))]


async def test_a_slot_that_goes_from_one_adapter_to_another_is_computed_anew(
    new_house: Callable[..., Any], files: list[Path]
) -> None:
    house: House = await new_house(*files[:2])
    right = {model: (await house.ask(model, anew=True)).text for model in ("", "a", "b")}
    assert len(set(right.values())) == 3, "the adapters change the answer"
    for model in ("a", "", "b", "a", "b", ""):
        answer = await house.ask(model)
        assert (answer.text, answer.reused) == (right[model], 0), model
        again = await house.ask(model)
        assert (again.text, again.reused) == (right[model], len(IDS) - 1), model


async def test_what_is_no_longer_in_the_slot_does_not_come_back_from_elsewhere_under_another_adapter(
    new_house: Callable[..., Any], files: list[Path]
) -> None:
    # llama.cpp's cache in memory would give what a slot held to any adapter; it is off.
    house: House = await new_house(*files[:1])
    right = (await house.ask("", anew=True)).text
    await house.ask("a")
    await house.ask("a", OTHERS)
    await house.ask("", OTHERS)
    answer = await house.ask("")
    assert (answer.text, answer.reused) == (right, 0)


async def test_fills_are_loaded_under_the_adapter_that_computed_them_and_no_other(
    new_house: Callable[..., Any], files: list[Path]
) -> None:
    filler: House = await new_house(*files[:2], filling=True)
    live: House = await new_house(*files[:2], slots=2)
    n = 1200
    right = {model: (await live.ask(model, anew=True)).text for model in ("", "a", "b")}
    assert await filler.fill("a", IDS[:n]) >= n - 1
    for model in ("", "b"):
        answer = await live.ask(model, filled=n)
        assert (answer.text, answer.promised) == (right[model], 0), model
    for _ in range(2):
        # The slots were used under others before: the restore must survive the change.
        answer = await live.ask("a", filled=n)
        assert answer.text == right["a"]
        assert answer.promised == n
        assert answer.reused >= n - 1
    assert await filler.fill("", IDS[:n]) >= n - 1, "the model itself, after an adapter in the same slot"
    async with filler.models["a"].sampler(Prefix(tokens=IDS[:n], salt=SALT)) as sampler:
        assert (await sampler.sample((50,), Way.STORED, max_tokens=2)).reused >= n - 1
    for model in ("", "a", ""):
        answer = await live.ask(model, filled=n)
        assert (answer.text, answer.promised) == (right[model], n)
        assert answer.reused >= n - 1, model
    signatures = {(await engine.describe()).signature for engine in live.models.values()}
    assert len(signatures) == 3


async def test_the_route_of_anthropic_does_not_see_what_an_adapter_computed(
    new_house: Callable[..., Any], files: list[Path]
) -> None:
    # llama.cpp drops what a request there says of adapters.
    house: House = await new_house(files[0])
    body = {"messages": [{"role": "user", "content": "tell me more " * 40}], "max_tokens": 8, "temperature": 0}

    async def ask(model: str, path: str) -> tuple[object, int]:
        call = Call(
            path=path,
            body={name: msgspec.Raw(msgspec.json.encode(value)) for name, value in body.items()},
            stream=False,
        )
        async with house.models[model].open(call) as reply:
            whole = msgspec.json.decode(b"".join([chunk async for chunk in reply.chunks()]))
            return whole.get("content"), reply.tokens.reused or 0

    right = await ask("", "/v1/messages")
    await ask("a", "/v1/chat/completions")
    assert await ask("", "/v1/messages") == right
    for path in ("/v1/messages", "/v1/embeddings", "/v1/rerank"):
        with pytest.raises(BadRequest, match="adapter"):
            await ask("a", path)


async def test_adapters_are_loaded_at_their_first_use_and_the_one_used_longest_ago_goes(
    new_house: Callable[..., Any], files: list[Path]
) -> None:
    house: House = await new_house(*files, most=2)
    digest = {path.stem: path for path in files}
    by_digest = {adapter.digest: adapter.name for adapter in house.engine._model.adapters}
    right = {model: (await house.ask(model, anew=True)).text for model in ("", *digest)}
    assert len(set(right.values())) == 4

    def loaded() -> list[str]:
        return [by_digest[one] for one in house.process.adapters]

    assert loaded() == ["b", "c"]
    assert (await house.ask("b")).text == right["b"]
    generation = house.process.generation
    assert (await house.ask("a")).text == right["a"]
    assert (loaded(), house.process.generation) == (["b", "a"], generation + 1)
    assert [(await house.ask(model)).text for model in ("b", "", "a")] == [right[m] for m in ("b", "", "a")]
    assert house.process.generation == generation + 1, "two at once, and the model itself"


async def test_nothing_is_loaded_before_an_adapter_is_asked_for(
    new_house: Callable[..., Any], files: list[Path]
) -> None:
    house: House = await new_house(*files)
    await house.ask("")
    await house.models["a"].describe()
    assert house.process.adapters == ()


async def test_requests_under_way_end_before_an_adapter_is_loaded(
    new_house: Callable[..., Any], files: list[Path]
) -> None:
    house: House = await new_house(*files, slots=2)
    call = Call(
        path="/v1/completions", body=_body(prompt=IDS[:50], max_tokens=150, ignore_eos=True, stream=True), stream=True
    )
    async with house.engine.open(call) as reply:
        chunks = reply.chunks()
        await anext(chunks)
        first = asyncio.create_task(house.ask("a"))
        late = asyncio.create_task(house.ask("", OTHERS))
        async with asyncio.timeout(10):
            while not house.engine._rack.changing:  # noqa: ASYNC110
                await asyncio.sleep(0)
        generation = house.process.generation
        rest = [chunk async for chunk in chunks]
        assert rest[-1].endswith(b"data: [DONE]\n\n")
        assert not first.done()
        assert not late.done()
        assert await house.engine.healthy()
    await asyncio.gather(first, late)
    assert house.process.generation == generation + 1


async def test_who_waits_too_long_for_others_is_told_to_come_back(
    new_house: Callable[..., Any], files: list[Path]
) -> None:
    house: House = await new_house(*files, slots=2)
    house.engine._rack._drain_s = 0.05
    call = Call(
        path="/v1/completions", body=_body(prompt=IDS[:50], max_tokens=4000, ignore_eos=True, stream=True), stream=True
    )
    async with house.engine.open(call) as reply:
        await anext(reply.chunks())
        with pytest.raises(Busy, match="waits for 1 requests"):
            await house.ask("a")
        assert (await house.ask("", OTHERS)).text, "the others go on"
    assert (await house.ask("a")).text


async def test_who_leaves_while_an_adapter_is_loaded_leaves_a_working_engine(
    new_house: Callable[..., Any], files: list[Path]
) -> None:
    house: House = await new_house(*files)
    await house.ask("")
    generation = house.process.generation
    task = asyncio.create_task(house.ask("a"))
    await house.process.until(lambda: house.process.generation > generation, 30)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(house.process.adapters) == 1
    assert (await house.ask("")).text == (await house.ask("", anew=True)).text


async def test_an_adapter_that_cannot_be_used_is_refused_and_disturbs_nobody(
    new_house: Callable[..., Any], files: list[Path], tmp_path: Path
) -> None:
    small = demo_adapter.write(tmp_path / "small.gguf", "small", seed=7)
    short = tmp_path / "short.gguf"
    short.write_bytes(files[0].read_bytes()[:-3000])
    house: House = await new_house(*files, small, short, most=8)
    right = {model: (await house.ask(model)).text for model in ("", "a")}
    for model in ("small", "short"):
        with pytest.raises(AdapterUnfit, match="damaged, or made for another model"):
            await house.ask(model)
    generation = house.process.generation
    files[1].unlink()
    demo_adapter.write(files[2], "tiny", seed=99)
    with pytest.raises(AdapterUnfit, match="cannot be read"):
        await house.ask("b")
    with pytest.raises(AdapterUnfit, match="has changed"):
        await house.ask("c")
    with pytest.raises(AdapterUnfit, match="another model"):
        await house.ask("small")
    assert house.process.generation == generation, "nobody else had to wait for that"
    assert {model: (await house.ask(model)).text for model in ("", "a")} == right


async def test_a_child_that_comes_back_has_no_adapter_whose_file_changed(
    new_house: Callable[..., Any], files: list[Path]
) -> None:
    house: House = await new_house(*files[:2])
    right = {model: (await house.ask(model)).text for model in ("", "a", "b")}
    demo_adapter.write(files[0], "tiny", seed=99)
    assert (await house.ask("a")).text == right["a"], "what is loaded is what was registered"
    generation, pid = house.process.generation, house.process.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    await house.process.until(lambda: house.process.generation > generation, 30)
    # "b" has another place now than it had.
    assert {model: (await house.ask(model)).text for model in ("", "b")} == {m: right[m] for m in ("", "b")}
    with pytest.raises(AdapterUnfit, match="has changed"):
        await house.ask("a")


async def test_adapters_come_back_with_a_model_that_slept_but_for_those_whose_files_changed(
    new_house: Callable[..., Any], files: list[Path]
) -> None:
    house: House = await new_house(*files[:2], again=False)
    sleeper = LlamaSleeper(house.engine, house.process)
    await sleeper.wake()
    await sleeper.warm()
    right = {model: (await house.ask(model)).text for model in ("", "a", "b")}
    await sleeper.sleep(1)
    demo_adapter.write(files[0], "tiny", seed=99)
    await sleeper.wake()
    await sleeper.warm()
    assert {model: (await house.ask(model)).text for model in ("b", "")} == {m: right[m] for m in ("b", "")}
    with pytest.raises(AdapterUnfit, match="has changed"):
        await house.ask("a")


async def test_an_answer_of_a_child_that_came_back_meanwhile_does_not_count(
    new_house: Callable[..., Any], files: list[Path]
) -> None:
    house: House = await new_house(*files[:2])
    await house.ask("a")
    async with house.engine._rack.use("a") as lora:
        lora.check()
        generation, pid = house.process.generation, house.process.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await house.process.until(lambda: house.process.generation > generation, 30)
        with pytest.raises(EngineUnavailable, match="started again"):
            lora.check()


def test_adapters_are_models_of_the_gateway_with_fills_of_their_own(new_serve: Callable[..., Serve]) -> None:
    legal = {"name": "legal", "path": "demo:tiny:1", "system": "You are a lawyer.", "prompt_prefix": "Law: "}
    adapters = [legal, {"name": "tax", "path": "demo:tiny:2"}]
    settings = {
        "engines": [{"name": "v1", "model": "demo:tiny", "slots": 1, "adapters": adapters}],
        "sleep": {"plan_every_s": 0.3},
    }
    serve = new_serve("serve", settings=settings).start()
    listed = [model["id"] for model in serve.request("GET", "/v1/models").json()["data"]]
    assert listed == [serve.model, "legal", "tax"]
    serve.put("code", source_text(1, functions=25), forms=("chat", "completion"))
    serve.wait_ready("code", models=3)
    stored = {(fill["form"], fill["signature"]): fill["tokens"] for fill in serve.fills("code")}
    assert len(stored) == 6
    texts = set()
    for path in ("/v1/chat/completions", "/v1/completions"):
        for model in listed:
            cold = serve.ask(context="code", model=model, skip=("fill",), path=path)
            filled = serve.ask(context="code", model=model, path=path)
            assert (cold.layer, filled.layer) == ("cold", "fill"), (model, path)
            assert filled.reused >= min(stored.values())
            assert filled.text == cold.text, (model, path)
            texts.add(filled.text)
    assert len(texts) == 6
    assert serve.metric("nightfill_broken_promises_total") == 0
    assert serve.ask(context="code", model="nobody").status == 404
    folder = serve.data_dir / "kv"
    assert list(folder.rglob("*.kv"))
    serve.request("DELETE", "/v1/nightfill/contexts/code")
    eventually(lambda: not list(folder.rglob("*.kv")), within_s=20, what="KV of all adapters deleted")


def _body(**members: object) -> dict[str, msgspec.Raw]:
    return {name: msgspec.Raw(msgspec.json.encode(value)) for name, value in members.items()}
