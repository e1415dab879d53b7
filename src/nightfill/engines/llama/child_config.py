"""What a llama.cpp child process is told, and what it says. Light: parent and child both import it."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

ENVIRONMENT: Final = {
    # libgomp's waiting threads spin by default, which starves them all as soon as a core is contended.
    "GOMP_SPINCOUNT": "1000",
    # After a failed assertion ggml would start a debugger on itself, whose output may hold text.
    "GGML_NO_BACKTRACE": "1",
    # Memory in large pages where the kernel has them: an empty KV cache is there in a third of the time.
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
"""Must be set before the child starts: libraries read it when they load."""


class Drafting(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How tokens are guessed, to be checked several at a time."""

    method: Literal["ngram", "draft", "eagle3", "mtp"]
    model: str = ""
    """Path of the GGUF file that guesses; empty for none of its own."""
    tokens: int = 0
    """Guessed at once, at most; 0 for llama.cpp's default."""


class AdapterFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A LoRA adapter to load."""

    path: str
    """Of a GGUF file."""
    sha256: str
    """Of its content, in hex; a file of other content is not loaded."""


class ChildConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One llama.cpp server; names as llama.cpp has them. Sent as one line of JSON on the child's standard input."""

    model: str
    """Path of a GGUF file."""
    alias: str = ""
    """The model's name in answers; empty for the file's."""
    api_key: str = ""
    """Asked of every request; `LlamaProcess` makes one."""
    parent_pid: int = 0
    """The child ends if this is not its parent; `LlamaProcess` fills it in."""
    slot_save_path: str
    """Existing folder that slot files are saved to and restored from."""
    n_ctx: int
    """KV cells of all slots together, one per token held; a request may have `n_ctx // n_parallel` tokens."""
    n_parallel: int = 1
    """Slots."""
    kv_unified: bool = True
    """All slots share one run of KV cells, and attention looks at all of them; else each slot has its own."""
    n_batch: int = 512
    """Tokens computed at once: a prefill that is cancelled stops within one batch."""
    n_threads: int = 0
    """0 for as many as the process has cores."""
    n_threads_http: int = 32
    """Each open connection takes one of them."""
    slot_prompt_similarity: float = 0.1
    """A request without a slot goes to one with at least this part of its prompt, else to the one idle longest."""
    background: bool = False
    """Run at SCHED_IDLE, or nice 19 where that is refused."""
    n_gpu_layers: int = 0
    embeddings: bool = False
    """Also serve embeddings, with mean pooling."""
    drafting: Drafting | None = None
    adapters: tuple[AdapterFile, ...] = ()
    """Loaded, and not applied: each request says which it is under."""


class Armed(msgspec.Struct, frozen=True, tag="armed"):
    """First line: the child dies with its parent from now on, so SIGSTOP cannot leave it behind."""

    scheduling: Literal["normal", "idle", "nice"]


class Listening(msgspec.Struct, frozen=True, tag="listening"):
    """Second line, and the answer to `Load`: the model is loaded, and 127.0.0.1 answers on `port`."""

    port: int
    adapters: tuple[str, ...] = ()
    """SHA-256 of those that it has, by their ids; fewer than it was told where one is gone, changed or not for it."""


class Release(msgspec.Struct, frozen=True, tag="release"):
    """Told to let go of the model: weights and KV are given back, the process stays."""


class Released(msgspec.Struct, frozen=True, tag="released"):
    """Its answer: the memory is with the system again, and nothing listens any more."""


class Load(msgspec.Struct, frozen=True, tag="load"):
    """Told to load the model again, as it was, but without llama.cpp's own warm-up: whoever wakes it warms it."""


Order = Release | Load
"""One line each on the child's standard input, after its configuration."""

START_FAILED: Final = 3
"""Exit status of a child whose server could not start; the reason is on its standard error."""
