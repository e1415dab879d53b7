"""One llama.cpp server as a child process: `python -m nightfill.engines.llama.child`. The only importer of xllamacpp.

It reads a `ChildConfig` from standard input, says `Armed` and `Listening` on standard output, does as it is told by
further lines, and ends when its standard input does. llama.cpp's own words go to standard error.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import TYPE_CHECKING, Any, Final, Literal
from urllib.parse import urlsplit

import msgspec

from nightfill.engines.llama.adapter_file import intact, intact_since
from nightfill.engines.llama.child_config import (
    ENVIRONMENT,
    START_FAILED,
    Armed,
    ChildConfig,
    Drafting,
    Listening,
    Load,
    Order,
    Release,
    Released,
)

if TYPE_CHECKING:
    from typing import NoReturn

_PR_SET_PDEATHSIG: Final = 1
_ERRORS_ONLY: Final = 1
"""llama.cpp's verbosity. From 2 on it logs pieces of refused requests."""
_EMBEDDING_BATCH: Final = 2048
"""An input for embedding must fit one physical batch."""


def main() -> NoReturn:
    """Run until standard input ends. Leaves by `os._exit`: the server's destructor waits for connected clients."""
    # A group of its own, so that Ctrl-C in a terminal reaches the parent alone, which stops us in order. Not a session
    # of its own: Linux's autogroups weigh sessions against each other, and our low priority would count for nothing.
    os.setpgid(0, 0)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _die_with_parent()
    lines = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # whatever a library prints must not get between our lines
    told = sys.stdin.buffer
    line = told.readline()
    if not line:
        os._exit(0)
    config = msgspec.json.decode(line, type=ChildConfig)
    if os.getppid() != config.parent_pid:  # it ended before the signal was asked for
        os._exit(0)
    scheduling = _go_behind() if config.background else "normal"
    _say(lines.fileno(), Armed(scheduling=scheduling))
    _say(lines.fileno(), _serve(config, warmup=True))
    while line := told.readline():
        match msgspec.json.decode(line, type=Order):
            case Release():
                _release()
                _say(lines.fileno(), Released())
            case Load():
                _say(lines.fileno(), _serve(config, warmup=False))
    os._exit(0)


def _die_with_parent() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        sys.stderr.write(f"PR_SET_PDEATHSIG refused: {os.strerror(ctypes.get_errno())}\n")


def _go_behind() -> Literal["idle", "nice"]:
    try:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    except OSError:  # some sandboxes refuse it
        os.nice(19)
        return "nice"
    return "idle"


def _say(fd: int, line: Armed | Listening | Released) -> None:
    os.write(fd, msgspec.json.encode(line) + b"\n")


_server: Any = None
"""Keeps the running server from being collected."""


def _release() -> None:
    """Waits for connected clients: our parent has closed its connections, and ends us if it takes long all the same."""
    global _server
    _server = None
    ctypes.CDLL(None).malloc_trim(0)


def _serve(config: ChildConfig, *, warmup: bool) -> Listening:
    global _server
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import xllamacpp

    marks, adapters = intact(config.adapters)
    while True:
        try:
            params = parameters(msgspec.structs.replace(config, adapters=adapters))
            params.warmup = warmup
            _server = xllamacpp.Server(params)
            break
        except (RuntimeError, ValueError) as error:
            sys.stderr.write(f"{error}\n")
            sys.stderr.flush()
            if not adapters:
                os._exit(START_FAILED)
            # Most likely it is the newest: the others were loaded before. The model serves in any case.
            adapters = adapters[:-1]
    if intact_since(marks):
        port = urlsplit(_server.listening_address).port
        assert port is not None
        return Listening(port=int(port), adapters=tuple(one.sha256 for one in adapters))
    sys.stderr.write("an adapter's file was changed while it was read\n")
    sys.stderr.flush()
    os._exit(START_FAILED)


def parameters(config: ChildConfig) -> Any:
    """llama.cpp's parameters for `config`: all that it does by itself and we do not want is off."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.verbosity = _ERRORS_ONLY
    params.offline = True

    params.model.path = config.model
    if config.alias:
        params.model_alias = {config.alias}
    params.n_gpu_layers = config.n_gpu_layers
    params.fit_params = False  # it would shrink our context to what it thinks fits
    params.warmup = True

    # With one KV stream a slot file fits any of our servers. With one for each slot, what a slot answers and how fast
    # does not depend on what the others hold; files must then say for how many streams they are.
    params.kv_unified = config.kv_unified
    params.n_parallel = config.n_parallel
    params.n_ctx = config.n_ctx
    params.kv_unified_per_slot = config.n_ctx // config.n_parallel
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F16
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_ENABLED
    params.ctx_shift = False  # it would change KV that we restore by
    params.cache_ram_mib = 0  # up to 8 GiB otherwise, and it does not tell adapters apart
    params.cache_idle_slots = False  # it would empty slots that we count on
    params.n_cache_reuse = 0  # reuses KV at other positions: not the same answer
    params.cache_prompt = True
    params.slot_prompt_similarity = config.slot_prompt_similarity
    params.slot_save_path = config.slot_save_path.rstrip("/") + "/"  # llama.cpp joins by plain concatenation
    # At every message, not every 8192 tokens: lets a sliding-window model reuse a part of a restored prompt.
    params.checkpoint_min_step = 0
    params.sleep_idle_seconds = -1

    params.n_batch = params.n_ubatch = config.n_batch
    if config.embeddings:
        params.embedding = True
        params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
        params.n_batch = params.n_ubatch = max(config.n_batch, _EMBEDDING_BATCH)
    threads = config.n_threads or len(os.sched_getaffinity(0))
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    if config.drafting is not None:
        _speculate(params.speculative, config.drafting, threads=threads, n_gpu_layers=config.n_gpu_layers)

    # Not applied but where a request says so; llama.cpp's own switch for that does nothing here.
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(one.path, 0.0) for one in config.adapters]

    params.hostnames = ["127.0.0.1"]
    params.port = 0  # the kernel gives a free one when the server binds it: no race
    params.reuse_port = False
    params.n_threads_http = config.n_threads_http
    params.api_keys = [config.api_key]
    # The default echoes any origin, with credentials. No browser is to come here; an empty list would echo too.
    params.cors_origins = "http://127.0.0.1"
    params.cors_origins_explicit = True
    params.cors_credentials = False
    params.endpoint_slots = True
    params.endpoint_metrics = True
    params.endpoint_props = False
    params.ui = False
    params.log_json = False
    return params


def _speculate(speculative: Any, drafting: Drafting, *, threads: int, n_gpu_layers: int) -> None:
    from xllamacpp import common_speculative_type as kinds

    kind = {
        "ngram": kinds.COMMON_SPECULATIVE_TYPE_NGRAM_MOD,
        "draft": kinds.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE,
        "eagle3": kinds.COMMON_SPECULATIVE_TYPE_DRAFT_EAGLE3,
        "mtp": kinds.COMMON_SPECULATIVE_TYPE_DRAFT_MTP,
    }[drafting.method]
    speculative.types = [kind]
    guess = speculative.ngram_mod if drafting.method == "ngram" else speculative.draft
    if drafting.tokens:
        guess.n_max = drafting.tokens
        guess.n_min = min(guess.n_min, drafting.tokens)
    draft = speculative.draft
    draft.mparams.path = drafting.model
    draft.n_gpu_layers = n_gpu_layers
    draft.cpuparams.n_threads = draft.cpuparams_batch.n_threads = threads


if __name__ == "__main__":
    main()
