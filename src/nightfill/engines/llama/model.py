"""One configured model: its file, what it is called, and the signature of the KV that it makes."""

from __future__ import annotations

import importlib.metadata
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from nightfill.engines.llama import demo_model, scratch
from nightfill.engines.llama.adapters import register
from nightfill.engines.llama.child_config import ChildConfig
from nightfill.engines.llama.gguf_file import GgufHead, read_head, weights_digest
from nightfill.engines.llama.speculation import drafting
from nightfill.engines.signature import signature_of
from nightfill.errors import BadSetting

if TYPE_CHECKING:
    from nightfill.config import EngineSettings
    from nightfill.contexts.context import Signature
    from nightfill.engines.adapted import Adapter
    from nightfill.engines.llama.child_config import Drafting

DEFAULT_CONTEXT: Final = 32768
_DEMO: Final = "demo:"


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaModel:
    """A model, ready to be given to child processes."""

    settings: EngineSettings
    path: Path
    head: GgufHead
    signature: Signature
    scratch: Path
    """The folder that the slot files of one child pass through."""
    filling: bool
    """For a child that fills, at the lowest priority, instead of one that serves."""
    drafting: Drafting | None = None
    """How it guesses tokens; a child that fills writes none, and does not."""
    adapters: tuple[Adapter, ...] = ()

    @property
    def version(self) -> str:
        """Engine and version."""
        return f"llama.cpp xllamacpp-{engine_version()}"

    @property
    def served_name(self) -> str:
        """What requests call it."""
        return self.settings.served_model_name or self.head.name or self.path.stem

    @property
    def context_length(self) -> int:
        """Tokens that one request may have."""
        return context_length(self.settings, self.head)

    @property
    def slots(self) -> int:
        """Requests that one child computes at the same time."""
        return 1 if self.filling else self.settings.slots

    @property
    def windowed(self) -> bool:
        """Whether attention is limited to a sliding window."""
        return self.head.sliding_window > 0

    def child(self, *, unified: bool | None = None) -> ChildConfig:
        """How to start the child. `unified`: whether all slots share one run of KV cells; by default where we know
        that the model's slot files cannot be cut, so that they could not be changed to fit either.
        """
        return ChildConfig(
            model=str(self.path),
            alias=self.served_name,
            slot_save_path=f"{self.scratch}/",
            n_ctx=self.context_length * self.slots,
            n_parallel=self.slots,
            kv_unified=self.slots == 1 or self.windowed if unified is None else unified,
            n_batch=self.settings.batch_tokens,
            n_threads=self.settings.threads or len(os.sched_getaffinity(0)),
            n_gpu_layers=self.settings.gpu_layers,
            embeddings=self.settings.embeddings and not self.filling,
            background=self.filling,
            drafting=None if self.filling else self.drafting,
        )


def engine_version() -> str:
    """Version of the xllamacpp wheel. Raises BadSetting when it is not installed."""
    try:
        return importlib.metadata.version("xllamacpp")
    except importlib.metadata.PackageNotFoundError as exc:
        raise BadSetting(
            "the embedded engine is not installed: pip install 'nightfill[llama]'", param="engines.kind"
        ) from exc


def context_length(settings: EngineSettings, head: GgufHead) -> int:
    """Tokens per request. Raises BadSetting when more is asked for than the model was made for."""
    if not settings.context_length:
        return min(head.context_length, DEFAULT_CONTEXT)
    if settings.context_length > head.context_length:
        raise BadSetting(
            f"engines.context_length: {settings.context_length} is more than the {head.context_length} tokens that "
            f"{settings.model} was made for",
            param="engines.context_length",
        )
    return settings.context_length


def resolve(settings: EngineSettings, *, cache_dir: Path) -> tuple[Path, GgufHead, Signature]:
    """Find (or make) the model's file, read its head, and name the KV that it makes.

    Hashes the whole file the first time: a second per two gigabytes.
    """
    path = _path_of(settings.model, cache_dir)
    head = read_head(path)
    # The context length is not part of it: nothing in the KV depends on it while rope scaling is the file's own.
    signature = signature_of(
        {
            "engine": "llama.cpp",
            "version": engine_version(),
            "weights": weights_digest(path, cache_dir),
            "kv_type": "f16/f16",
            "flash_attention": True,
            "rope": "file",
            "adapters": "",
        }
    )
    return path, head, signature


def _path_of(model: str, cache_dir: Path) -> Path:
    """The file that settings name, made if it is of a demo model."""
    if model.startswith(_DEMO):
        return demo_model.ensure(model.removeprefix(_DEMO), cache_dir)
    return Path(model).expanduser().resolve()


def load(settings: EngineSettings, *, filling: bool, cache_dir: Path, scratch_dir: str, data_dir: Path) -> LlamaModel:
    """Everything that a child of this model needs, with a scratch folder of its own."""
    path, head, signature = resolve(settings, cache_dir=cache_dir)
    adapters = register(settings.adapters, architecture=head.architecture, cache_dir=cache_dir)
    guesses = drafting(settings.speculation, find=lambda model: _path_of(model, cache_dir))
    # One slot file at a time, in 16-bit KV of a model with grouped attention: a tenth of the weights is a good guess.
    need_bytes = max(256 << 20, head.file_bytes // 10)
    folder = scratch.make(scratch_dir, data_dir=data_dir, need_bytes=need_bytes)
    return LlamaModel(
        settings=settings,
        path=path,
        head=head,
        signature=signature,
        scratch=folder,
        filling=filling,
        drafting=guesses,
        adapters=adapters,
    )
