"""What a vLLM server needs beyond `args.launch` where nightfill starts it itself."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from nightfill.engines.vllm.adapters import rank_for
from nightfill.engines.vllm.args import API_KEY, Launch, Wanted, launch
from nightfill.errors import BadSetting

if TYPE_CHECKING:
    from nightfill.config import EngineSettings, Settings

DOOR: Final = "nightfill.engines.vllm.door.Door"
_QUIET: Final = (
    # What people ask does not go to the log, and neither does a line for each request.
    *("--no-enable-log-requests", "--no-enable-log-outputs", "--no-log-error-stack"),
    *("--disable-uvicorn-access-log", "--uvicorn-log-level", "warning"),
)
_OURS: Final = ("--host", "--port", "--uds", "--api-key", "--served-model-name", "--ssl-keyfile", "--ssl-certfile")
"""How it is reached and called is not for `launch.args`."""
_PRIVATE: Final = "NIGHTFILL_"
"""Variables of our own, keys among them, are not for the server."""


def called(engine: EngineSettings) -> str:
    """What requests call the model: as the settings say, else by its folder's name, else by its own."""
    local = re.match(r"[~./]", engine.model)
    return engine.served_model_name or (Path(engine.model).name if local else engine.model)


def launched(
    settings: Settings, engine: EngineSettings, *, data_dir: Path, port: int, api_key: str, settings_file: str
) -> Launch:
    """The start of a server at `port` of loopback that asks for `api_key`, with its whole environment but what it
    inherits. `settings_file` as in `Wanted`. Raises BadSetting.
    """
    own = engine.launch
    for word in own.args:
        if word.split("=", 1)[0] in _OURS:
            raise BadSetting(f"engine {engine.name}: launch.args: {word}: nightfill sets that itself", param="args")
    wanted = Wanted(
        data_dir=data_dir,
        model=str(Path(engine.model).expanduser()) if engine.model.startswith("~") else engine.model,
        tensor_parallel_size=own.tensor_parallel_size,
        host_bytes=own.host_bytes,
        kv_cache_bytes=own.kv_cache_bytes,
        cpu=own.cpu,
        settings_file=settings_file,
        lora_rank=rank_for(engine.adapters),
    )
    reached = msgspec.structs.replace(
        engine, url=f"http://127.0.0.1:{port}", api_key=api_key, model=called(engine), served_model_name=""
    )
    start = launch(settings, reached, wanted)
    argv = [*own.command, *start.argv[1:], "--middleware", DOOR, *_QUIET]
    if engine.device and not own.cpu:  # vLLM refuses it on a processor, where the calls are answered all the same
        argv.append("--enable-sleep-mode")
        if engine.speculation.method in ("draft", "eagle", "eagle3", "mtp"):
            # `reload_weights` brings back those of the model alone.
            argv += ["--sleep-preserve-parameter-names", "draft.*"]
    env = {"VLLM_NO_USAGE_STATS": "1", **start.env, **own.env, "VLLM_SERVER_DEV_MODE": "1", API_KEY: api_key}
    return Launch(argv=(*argv, *own.args), env=env, file=start.file, warnings=start.warnings)


def inherited(environ: dict[str, str]) -> dict[str, str]:
    """Of our environment, what a server gets to see."""
    return {name: value for name, value in environ.items() if not name.startswith(_PRIVATE)}
