"""LoRA adapters of a vLLM server: what they are, and which of them it has."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from nightfill.engines.adapted import Adapter
from nightfill.engines.vllm.adapter_identity import adapter_digest, marks_of, name_of
from nightfill.errors import AdapterUnfit, BadSetting, Busy, EngineRefused, EngineUnfit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence

    from nightfill.config import AdapterSettings
    from nightfill.engines.vllm.adapter_identity import Mark
    from nightfill.engines.vllm.api import Model, VllmApi

_LOG: Final = logging.getLogger(__name__)
ROOM_S: Final = 60.0
"""For a request under another adapter to end, where there are as many adapters in use as may be loaded."""
_RANKS: Final = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""That vLLM can be made for."""
_HINT: Final = (
    "start it with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 in its environment "
    "(`nightfill vllm-args` prints what else it needs)"
)
_THERE: Final = "has already been loaded"


class _Config(msgspec.Struct):
    """Of `adapter_config.json`, as PEFT writes it."""

    peft_type: str
    r: int


def register(settings: Sequence[AdapterSettings]) -> tuple[Adapter, ...]:
    """Read and hash the adapters' folders. Raises BadSetting for one that is no adapter."""
    found = []
    for one in settings:
        path = Path(one.path).expanduser().resolve()
        try:
            _config_of(path)
            digest = adapter_digest(path)
        except (OSError, msgspec.DecodeError, ValueError) as exc:
            reason = exc.strerror if isinstance(exc, OSError) else "is no LoRA adapter as PEFT writes it"
            raise BadSetting(f"engines.adapters: {one.name}: {path}: {reason}", param="engines.adapters") from exc
        found.append(
            Adapter(
                name=one.name,
                path=path,
                digest=digest,
                system=one.system,
                prompt_prefix=one.prompt_prefix,
                prompt_suffix=one.prompt_suffix,
            )
        )
    return tuple(found)


def rank_for(settings: Iterable[AdapterSettings]) -> int:
    """The rank that a server must be made for to take them all; of folders that cannot be read here, vLLM's default."""
    most = 0
    for one in settings:
        with contextlib.suppress(OSError, msgspec.DecodeError, ValueError):
            most = max(most, _config_of(Path(one.path).expanduser()).r)
    return next((rank for rank in _RANKS if rank >= (most or 16)), _RANKS[-1])


def _config_of(folder: Path) -> _Config:
    config = msgspec.json.decode((folder / "adapter_config.json").read_bytes(), type=_Config)
    if config.peft_type != "LORA":
        raise ValueError(config.peft_type)
    return config


class Shelf:
    """Sees to it that a server has the adapter that a request is for, at most `most` of them at a time. For one event
    loop. Other gateways may load and unload adapters on the same server as they need them.
    """

    def __init__(
        self,
        adapters: Sequence[Adapter],
        *,
        api: VllmApi,
        engine: str,
        most: int,
        proves: Callable[[str, Adapter], Awaitable[bool]],
    ) -> None:
        """`proves`: whether what the server calls so is that adapter, as far as that can be told."""
        self._adapters = {adapter.name: adapter for adapter in adapters}
        self._api = api
        self._engine = engine
        self._most = most
        self._proves = proves
        self._there: set[str] = set()
        """Of ours, the names at the server of those that it has."""
        self._users: dict[str, int] = {}
        self._used: dict[str, int] = {}
        self._uses = itertools.count(1)
        self._known: dict[Mark, str] = {}
        self._loading = asyncio.Lock()
        self._news = asyncio.Event()

    @property
    def adapters(self) -> tuple[Adapter, ...]:
        """All that it may be asked for."""
        return tuple(self._adapters.values())

    def digest_of(self, name: str) -> str:
        """Of the adapter of that name."""
        return self._adapters[name].digest

    def told(self, models: Iterable[Model]) -> None:
        """What the server says that it has."""
        ours = {(name_of(one.name, one.digest), str(one.path)) for one in self._adapters.values()}
        self._there = {model.id for model in models if (model.id, model.root) in ours}

    @contextlib.asynccontextmanager
    async def use(self, name: str) -> AsyncIterator[str]:
        """Have the adapter of that name at the server while inside; what to ask for there.

        Raises AdapterUnfit, EngineUnfit where the server takes no adapters, and Busy when all that may be loaded stay
        in use.
        """
        adapter = self._adapters[name]
        called = name_of(adapter.name, adapter.digest)
        self._users[called] = self._users.get(called, 0) + 1
        try:
            await self._check(adapter)
            if called not in self._there:
                async with self._loading:
                    if called not in self._there:
                        await self._make_room()
                        await self._load(adapter, called)
            self._used[called] = next(self._uses)
            yield called
        except EngineRefused as exc:
            if exc.status == 404:
                self.gone(name)
            raise
        finally:
            self._users[called] -= 1
            news, self._news = self._news, asyncio.Event()
            news.set()

    def gone(self, name: str) -> None:
        """The server says that it does not have it: it was started again, or somebody else has unloaded it."""
        adapter = self._adapters[name]
        self._there.discard(name_of(adapter.name, adapter.digest))

    async def _load(self, adapter: Adapter, called: str) -> None:
        _LOG.info("engine %s: loads adapter %s", self._engine, adapter.name)
        before = await asyncio.to_thread(_marks, adapter.path)
        await self._check(adapter)
        try:
            await self._api.load_adapter(called, str(adapter.path))
        except EngineRefused as exc:
            if _THERE not in str(exc):
                raise self._translated(adapter, exc) from exc
        if await asyncio.to_thread(_marks, adapter.path) != before:
            await self._unload(called)
            raise self._unfit(adapter, "its files were changed while they were read")
        if not await self._proves(called, adapter):
            await self._unload(called)
            raise self._unfit(adapter, "it is made for another model, or the server finds other files at its path")
        self._there.add(called)

    async def _check(self, adapter: Adapter) -> None:
        """Nothing but a few looks at the file system while all is as it was. Raises AdapterUnfit."""
        try:
            digest = await asyncio.to_thread(adapter_digest, adapter.path, self._known)
        except OSError as exc:
            raise self._unfit(adapter, f"its files cannot be read any more ({exc.strerror})") from exc
        if digest != adapter.digest:
            raise self._unfit(adapter, "its files have changed; start nightfill again to serve what they are now")

    async def _make_room(self) -> None:
        try:
            async with asyncio.timeout(ROOM_S):
                while len(self._there) >= self._most:
                    idle = [called for called in self._there if not self._users.get(called)]
                    if idle:
                        await self._unload(min(idle, key=lambda called: self._used.get(called, 0)))
                    else:
                        await self._news.wait()
        except TimeoutError as exc:
            raise Busy(f"all {self._most} adapters that may be loaded stay in use for over {ROOM_S:g} s") from exc

    async def _unload(self, called: str) -> None:
        self._there.discard(called)
        try:
            await self._api.unload_adapter(called)
        except EngineRefused as exc:
            _LOG.info("engine %s: adapter %s was not there any more: %s", self._engine, called, exc)

    def _translated(self, adapter: Adapter, refusal: EngineRefused) -> Exception:
        if _no_adapters(refusal):
            return EngineUnfit(f"takes no LoRA adapters: {_HINT}", engine=self._engine)
        return self._unfit(adapter, f"vLLM does not take it: {refusal}")

    def _unfit(self, adapter: Adapter, reason: str) -> AdapterUnfit:
        return AdapterUnfit(f"adapter {adapter.name} cannot be used: {reason}", engine=self._engine)


def _marks(folder: Path) -> tuple[Mark, ...]:
    try:
        return marks_of(folder)
    except OSError:
        return ()


def _no_adapters(refusal: EngineRefused) -> bool:
    """Whether the server has no route for adapters, or has it and takes none all the same."""
    return "no reason given" in str(refusal) or "LoRA is not enabled" in str(refusal)
