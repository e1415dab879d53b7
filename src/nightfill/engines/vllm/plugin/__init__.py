"""nightfill's store inside a vLLM server: loaded by vLLM through `module_path`, never by the rest of nightfill.

Nothing outside this package imports torch or vllm, and this package needs no more of nightfill than `kv` and `config`.
"""

from nightfill.engines.vllm.plugin.connector import NightfillConnector
from nightfill.engines.vllm.plugin.tier import NightfillTier

__all__ = ["NightfillConnector", "NightfillTier"]
