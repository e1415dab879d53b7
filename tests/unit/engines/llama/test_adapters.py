from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import pytest

from fakes.virtual_time import virtual
from nightfill.config import AdapterSettings
from nightfill.engines.adapted import Adapter
from nightfill.engines.llama import demo_adapter
from nightfill.engines.llama.adapter_file import intact, intact_since
from nightfill.engines.llama.adapters import Rack, register
from nightfill.engines.llama.child_config import AdapterFile
from nightfill.engines.llama.lora import NO_LORA, Lora
from nightfill.errors import AdapterUnfit, BadSetting, EngineStart, EngineUnavailable

if TYPE_CHECKING:
    from pathlib import Path

    from nightfill.engines.llama.process import LlamaProcess


@dataclass
class FakeProcess:
    """A child that has the adapters that it is told to load, but for those in `refuses`; it cannot start with others in
    `fatal`.
    """

    name: str = "v1"
    adapters: tuple[str, ...] = ()
    generation: int = 1
    refuses: set[str] = field(default_factory=set)
    fatal: set[str] = field(default_factory=set)
    starts: list[tuple[str, ...]] = field(default_factory=list)
    start_s: float = 1.0
    _broken: bool = False

    async def ready(self, _timeout_s: float) -> None:
        if self._broken:
            raise EngineStart("no memory", engine=self.name)

    async def adapt(self, files: tuple[AdapterFile, ...]) -> None:
        await asyncio.sleep(self.start_s)
        told = tuple(file.sha256 for file in files)
        self.starts.append(told)
        self.generation += 1
        self._broken = bool(self.fatal & set(told))
        self.adapters = tuple(one for one in told if one not in self.refuses)


def adapters_in(folder: Path, *names: str) -> tuple[Adapter, ...]:
    """Files that say their name."""
    found = []
    for name in names:
        path = folder / name
        path.write_text(name)
        found.append(Adapter(name=name, path=path, digest=digest(name)))
    return tuple(found)


def digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def rack_of(adapters: tuple[Adapter, ...], process: FakeProcess, *, most: int = 2) -> Rack:
    return Rack(adapters, process=cast("LlamaProcess", process), most=most, start_timeout_s=60)


def called(starts: list[tuple[str, ...]], *names: str) -> list[list[str]]:
    known = {digest(name): name for name in names}
    return [[known[one] for one in start] for start in starts]


@virtual
async def test_requests_name_all_adapters_that_are_there_and_only_their_own_counts(tmp_path: Path) -> None:
    process = FakeProcess()
    rack = rack_of(adapters_in(tmp_path, "a", "b"), process)
    async with rack.use("") as lora:
        assert lora.members == {}
    async with rack.use("a") as lora:
        assert lora.members == {"lora": [{"id": 0, "scale": 1.0}]}
    async with rack.use("b") as lora:
        assert lora.members == {"lora": [{"id": 0, "scale": 0.0}, {"id": 1, "scale": 1.0}]}
    async with rack.use("") as lora:
        assert lora.members == {"lora": [{"id": 0, "scale": 0.0}, {"id": 1, "scale": 0.0}]}


@virtual
@pytest.mark.parametrize("most", [1, 2])
async def test_the_adapter_used_longest_ago_makes_room(tmp_path: Path, most: int) -> None:
    process = FakeProcess()
    rack = rack_of(adapters_in(tmp_path, "a", "b", "c"), process, most=most)
    for name in ("a", "b", "a", "c"):
        async with rack.use(name):
            pass
    expected = {1: [["a"], ["b"], ["a"], ["c"]], 2: [["a"], ["a", "b"], ["a", "c"]]}
    assert called(process.starts, "a", "b", "c") == expected[most]


@virtual
async def test_many_who_ask_for_the_same_one_wait_for_one_start(tmp_path: Path) -> None:
    process = FakeProcess()
    rack = rack_of(adapters_in(tmp_path, "a"), process)

    async def ask() -> int:
        async with rack.use("a") as lora:
            return len(lora.scales)

    assert await asyncio.gather(*(ask() for _ in range(20))) == [1] * 20
    assert len(process.starts) == 1


@virtual
async def test_a_child_that_cannot_start_with_an_adapter_starts_with_what_it_had(tmp_path: Path) -> None:
    process = FakeProcess(fatal={digest("b")})
    rack = rack_of(adapters_in(tmp_path, "a", "b"), process)
    async with rack.use("a"):
        pass
    with pytest.raises(EngineStart, match="no memory"):
        async with rack.use("b"):
            pass
    assert called(process.starts, "a", "b") == [["a"], ["a", "b"], ["a"]]
    async with rack.use("a") as lora:
        assert lora.scales == (1.0,)


@virtual
async def test_one_that_llama_cpp_does_not_take_is_not_tried_again(tmp_path: Path) -> None:
    process = FakeProcess(refuses={digest("a")})
    rack = rack_of(adapters_in(tmp_path, "a"), process)
    for _ in range(2):
        with pytest.raises(AdapterUnfit, match="another model"):
            async with rack.use("a"):
                pass
    assert len(process.starts) == 1


@virtual
async def test_an_answer_of_another_child_does_not_count(tmp_path: Path) -> None:
    process = FakeProcess()
    rack = rack_of(adapters_in(tmp_path, "a"), process)
    async with rack.use("a") as lora:
        lora.check()
        process.generation += 1
        with pytest.raises(EngineUnavailable):
            lora.check()


@virtual
async def test_once_closed_nothing_is_loaded_and_what_is_being_loaded_is_waited_for(tmp_path: Path) -> None:
    process = FakeProcess()
    rack = rack_of(adapters_in(tmp_path, "a", "b"), process)

    async def ask(name: str) -> None:
        async with rack.use(name):
            pass

    first = asyncio.create_task(ask("a"))
    while rack._starting is None:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    await rack.aclose()
    assert len(process.starts) == 1
    await first
    with pytest.raises(EngineUnavailable, match="closed"):
        await ask("b")


@virtual
async def test_an_engine_without_adapters_has_nothing_to_say_of_them() -> None:
    async with rack_of((), FakeProcess()).use("") as lora:
        assert lora is NO_LORA
        assert Lora().members == {}


def test_files_are_registered_by_their_content(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 2), ("copy", 1)):
        demo_adapter.write(tmp_path / name, "tiny", seed=seed)
    settings = [AdapterSettings(name=name, path=str(tmp_path / name), scale=0.5) for name in ("a", "b", "copy")]
    one, two, copy = register(settings, architecture="qwen3", cache_dir=tmp_path / "cache")
    assert (one.digest, one.scale, one.path) == (copy.digest, 0.5, tmp_path / "a")
    assert one.digest != two.digest
    with pytest.raises(BadSetting, match=r"a: .* is for models of architecture qwen3, not llama"):
        register(settings, architecture="llama", cache_dir=tmp_path / "cache")
    with pytest.raises(BadSetting, match=r"gone: .*no such file"):
        register([AdapterSettings(name="gone", path="/nowhere")], architecture="qwen3", cache_dir=tmp_path)


def test_a_demo_adapter_is_made_once_under_its_name(tmp_path: Path) -> None:
    (one,) = register(
        [AdapterSettings(name="a", path="demo:tiny:3")], architecture="qwen3", cache_dir=tmp_path / "cache"
    )
    assert one.path == demo_adapter.ensure("tiny:3", tmp_path / "cache")
    with pytest.raises(BadSetting, match="huge"):
        register([AdapterSettings(name="a", path="demo:huge")], architecture="qwen3", cache_dir=tmp_path)


def test_only_files_of_the_right_content_are_intact_and_only_while_nobody_touches_them(tmp_path: Path) -> None:
    files = [AdapterFile(path=str(one.path), sha256=one.digest) for one in adapters_in(tmp_path, "a", "b", "c")]
    (tmp_path / "b").write_text("other")
    (tmp_path / "c").unlink()
    marks, right = intact(files)
    assert right == (files[0],)
    assert intact_since(marks)
    (tmp_path / "a").write_text("a")
    assert not intact_since(marks), "the same content, but it may have been another in between"
