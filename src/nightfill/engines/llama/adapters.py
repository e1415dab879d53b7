"""LoRA adapters of a llama.cpp model: what they are, and which of them the child has.

llama.cpp takes adapters when its server starts, and no others afterwards. So one that is asked for the first time means
another start, between requests: those under way end first, new ones wait. A start takes a fraction of a second with the
weights in the page cache; KV in slots is gone then, and comes back from the store.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Final

from nightfill.engines.adapted import Adapter
from nightfill.engines.llama import demo_adapter
from nightfill.engines.llama.adapter_file import sha256_of
from nightfill.engines.llama.child_config import AdapterFile
from nightfill.engines.llama.gguf_file import adapted_architecture, weights_digest
from nightfill.engines.llama.lora import NO_LORA, Lora
from nightfill.errors import AdapterUnfit, BadSetting, Busy, EngineError, EngineTimeout, EngineUnavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from nightfill.config import AdapterSettings
    from nightfill.engines.llama.process import LlamaProcess

_LOG: Final = logging.getLogger(__name__)
DRAIN_S: Final = 60.0
"""For the requests under way to end, before an adapter can be loaded."""
_DEMO: Final = "demo:"
_REFUSED: Final = "llama.cpp does not take it: it is damaged, or made for another model"


def register(settings: Sequence[AdapterSettings], *, architecture: str, cache_dir: Path) -> tuple[Adapter, ...]:
    """Read and hash the adapters' files. Raises BadSetting for one that is no adapter, or for another architecture."""
    found = []
    for one in settings:
        try:
            path = _path_of(one.path, cache_dir)
            made_for = adapted_architecture(path)
        except BadSetting as exc:
            raise BadSetting(f"engines.adapters: {one.name}: {exc}", param="engines.adapters") from exc
        if made_for != architecture:
            raise BadSetting(
                f"engines.adapters: {one.name}: {path} is for models of architecture {made_for}, not {architecture}",
                param="engines.adapters",
            )
        found.append(
            Adapter(
                name=one.name,
                path=path,
                digest=weights_digest(path, cache_dir),
                scale=one.scale,
                system=one.system,
                prompt_prefix=one.prompt_prefix,
                prompt_suffix=one.prompt_suffix,
            )
        )
    return tuple(found)


def _path_of(path: str, cache_dir: Path) -> Path:
    """The file that a setting names, made if it is of a demo adapter."""
    if path.startswith(_DEMO):
        return demo_adapter.ensure(path.removeprefix(_DEMO), cache_dir)
    return Path(path).expanduser().resolve()


class Rack:
    """Sees to it that the child has the adapter that a request is for, at most `most` of them at a time. For one event
    loop.
    """

    def __init__(
        self,
        adapters: Sequence[Adapter],
        *,
        process: LlamaProcess,
        most: int,
        start_timeout_s: float,
        drain_s: float = DRAIN_S,
    ) -> None:
        self._adapters = {adapter.name: adapter for adapter in adapters}
        self._process = process
        self._most = most
        self._start_timeout_s = start_timeout_s
        self._drain_s = drain_s
        self._users = 0
        self._changing = False
        self._starting: asyncio.Task[None] | None = None
        self._closed = False
        self._news = asyncio.Event()
        self._used: dict[str, int] = {}
        """Digests, by when they were used last."""
        self._uses = itertools.count(1)
        self._refused: set[str] = set()
        """Digests of those that llama.cpp does not take."""

    @property
    def changing(self) -> bool:
        """Whether the child is about to be started with other adapters."""
        return self._changing

    @contextlib.asynccontextmanager
    async def use(self, name: str) -> AsyncIterator[Lora]:
        """Have the adapter of that name, or none for the empty one, while inside; what a request says to be under it.

        Raises AdapterUnfit, EngineStart, EngineTimeout, EngineUnavailable, and Busy when the requests under way do not
        end in time.
        """
        if not self._adapters:
            yield NO_LORA
            return
        lora = await self._entered(name)
        try:
            yield lora
        finally:
            self._users -= 1
            self._tell()

    async def _entered(self, name: str) -> Lora:
        wait_s = self._drain_s + self._start_timeout_s
        try:
            async with asyncio.timeout(wait_s):
                while True:
                    while self._changing:
                        await self._news.wait()
                    await self._process.ready(self._start_timeout_s)
                    if self._changing:
                        continue
                    if not name or self._adapters[name].digest in self._process.adapters:
                        break
                    await self._load(self._adapters[name])
        except TimeoutError as exc:
            raise EngineTimeout(f"has no room for adapters for over {wait_s:g} s", engine=self._process.name) from exc
        self._users += 1
        return self._lora(name)

    async def aclose(self) -> None:
        """Load no more; what is being loaded is, before this returns. Idempotent."""
        self._closed = True
        if self._starting is not None:
            await asyncio.wait({self._starting})

    def _lora(self, name: str) -> Lora:
        process, generation = self._process, self._process.generation
        chosen = self._adapters.get(name)
        if chosen is not None:
            self._used[chosen.digest] = next(self._uses)

        def check() -> None:
            if process.generation != generation:
                raise EngineUnavailable("was started again meanwhile, perhaps with other adapters", engine=process.name)

        scales = (
            chosen.scale if chosen is not None and digest == chosen.digest else 0.0 for digest in process.adapters
        )
        return Lora(scales=tuple(scales), check=check)

    async def _load(self, adapter: Adapter) -> None:
        """Start the child anew, with this adapter. Whoever is cancelled meanwhile waits until it is up again."""
        self._changing = True
        try:
            await self._check(adapter)
            await self._drained(adapter)
            if self._closed:
                raise EngineUnavailable("is closed", engine=self._process.name)
            self._starting = asyncio.create_task(self._start_with(adapter), name=f"load adapter {adapter.name}")
            try:
                await asyncio.shield(self._starting)
            except asyncio.CancelledError:
                await asyncio.wait({self._starting})
                raise
        finally:
            self._changing = False
            self._tell()

    async def _check(self, adapter: Adapter) -> None:
        """Before anybody has to wait for it. Raises AdapterUnfit."""
        if adapter.digest in self._refused:
            raise self._unfit(adapter, _REFUSED)
        digest = await asyncio.to_thread(sha256_of, adapter.path)
        if digest is None:
            raise self._unfit(adapter, "its file cannot be read any more")
        if digest != adapter.digest:
            raise self._unfit(adapter, "its file has changed; start nightfill again to serve what it is now")

    async def _drained(self, adapter: Adapter) -> None:
        try:
            async with asyncio.timeout(self._drain_s):
                while self._users:
                    await self._news.wait()
        except TimeoutError as exc:
            raise Busy(
                f"adapter {adapter.name} waits for {self._users} requests under way, for over {self._drain_s:g} s"
            ) from exc

    async def _start_with(self, adapter: Adapter) -> None:
        process = self._process
        before = self._files(process.adapters)
        newest = sorted(process.adapters, key=lambda digest: self._used.get(digest, 0), reverse=True)
        kept = set(newest[: self._most - 1])
        loaded = [digest for digest in process.adapters if digest in kept]
        _LOG.info("engine %s: loads adapter %s", process.name, adapter.name)
        try:
            await process.adapt(self._files([*loaded, adapter.digest]))
            await process.ready(self._start_timeout_s)
        except EngineError:
            await process.adapt(before)
            await process.ready(self._start_timeout_s)
            raise
        if adapter.digest not in process.adapters:
            await self._check(adapter)  # it may have changed in this very moment
            self._refused.add(adapter.digest)
            raise self._unfit(adapter, _REFUSED)

    def _files(self, digests: Sequence[str]) -> tuple[AdapterFile, ...]:
        paths = {adapter.digest: str(adapter.path) for adapter in self._adapters.values()}
        return tuple(AdapterFile(path=paths[digest], sha256=digest) for digest in digests)

    def _unfit(self, adapter: Adapter, reason: str) -> AdapterUnfit:
        return AdapterUnfit(f"adapter {adapter.name} cannot be used: {reason}", engine=self._process.name)

    def _tell(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()
