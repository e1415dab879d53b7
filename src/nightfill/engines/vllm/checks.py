"""Whether a running vLLM server was started as nightfill needs it, as far as it shows over HTTP. Pure.

What does not show is checked by the plug-in when the server starts: it refuses to run with flags that do not fit.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from nightfill.errors import EngineUnfit

if TYPE_CHECKING:
    from nightfill.engines.vllm.api import Prefilled
    from nightfill.engines.vllm.wire import Report

_TESTED: Final = re.compile(r"0\.32\.\d+([^\d].*)?")
_HINT: Final = "`nightfill vllm-args` prints the flags to start it with"


def fitting(version: str, probe: Prefilled, *, block_tokens: int, engine: str) -> Report:
    """The plug-in's report in the answer to a probe that asked for it.

    Raises EngineUnfit for a version of vLLM that nightfill was not tested with, a server without the plug-in or without
    token counts, and for blocks of another length than `kv.block_tokens`.
    """
    if not _TESTED.fullmatch(version):
        raise EngineUnfit(f"vLLM {version} was not tested with nightfill; 0.32 was", engine=engine)
    if probe.cached is None:
        raise EngineUnfit(
            f"does not say what it reuses: start it with --enable-prompt-tokens-details ({_HINT})", engine=engine
        )
    if probe.report is None:
        raise EngineUnfit(
            f"runs without nightfill's plug-in: start it with --kv-transfer-config naming NightfillConnector ({_HINT})",
            engine=engine,
        )
    if probe.report.block_tokens != block_tokens:
        raise EngineUnfit(
            f"stores blocks of {probe.report.block_tokens} tokens, but kv.block_tokens is {block_tokens}: block_size "
            f"in its --kv-transfer-config must be the same ({_HINT})",
            engine=engine,
        )
    return probe.report
