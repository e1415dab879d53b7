"""The signature of a vLLM server: everything that must match for its KV to be reusable elsewhere."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import vllm
from vllm.platforms import current_platform

from nightfill.engines.signature import signature_of
from nightfill.engines.vllm.weights import digest_of, model_files
from nightfill.errors import BadSetting

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig

    from nightfill.contexts.context import Signature


def signature_parts(vllm_config: VllmConfig, kv_cache_config: KVCacheConfig, *, cache: Path) -> dict[str, str | int]:
    """The named parts of the signature. `cache` keeps digests of weights. Raises BadSetting, OSError."""
    model, kv, parallel = vllm_config.model_config, vllm_config.cache_config, vllm_config.parallel_config
    (group,) = kv_cache_config.kv_cache_groups
    spec: Any = group.kv_cache_spec
    kv_dtype = model.dtype if kv.cache_dtype == "auto" else kv.cache_dtype
    return {
        "engine": "vllm",
        "version": vllm.__version__,
        "device": _device(vllm_config),
        "weights": digest_of(model_files(folder_of(model.model, model.revision)), cache=cache),
        "dtype": str(model.dtype),
        "quantization": str(model.quantization),
        "kv_dtype": str(kv_dtype),
        "kv_block_tokens": spec.block_size,
        "kv_heads": spec.num_kv_heads,
        "head_size": spec.head_size,
        "kv_layers": ",".join(group.layer_names),
        "kv_page_bytes": spec.page_size_bytes,
        "kv_layout": str(kv.kv_cache_layout),
        "tensor_parallel": parallel.tensor_parallel_size,
        "pipeline_parallel": parallel.pipeline_parallel_size,
        "context_parallel": f"{parallel.prefill_context_parallel_size}/{parallel.decode_context_parallel_size}",
        "rope": str(sorted((getattr(model.hf_config, "rope_parameters", None) or {}).items(), key=str)),
        "overrides": str(sorted(model.hf_overrides.items()) if isinstance(model.hf_overrides, dict) else "callable"),
        "speculation": _speculation(vllm_config, cache),
    }


def signature(vllm_config: VllmConfig, kv_cache_config: KVCacheConfig, *, cache: Path) -> Signature:
    """One digest of the parts. Raises BadSetting, OSError."""
    return signature_of(signature_parts(vllm_config, kv_cache_config, cache=cache))


def folder_of(model: str, revision: str | None) -> Path:
    """Where a model's files lie: the folder itself, or the snapshot of a hub's model that was downloaded.

    Raises BadSetting when it is neither.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_file():
        return folder.parent
    from huggingface_hub import snapshot_download  # comes with vLLM
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, ValueError) as error:
        raise BadSetting(f"model {model!r} is neither a folder nor a downloaded snapshot", param="model") from error


def _device(vllm_config: VllmConfig) -> str:
    """On CPUs the instruction set decides how KV lies in memory."""
    if not current_platform.is_cpu():
        return str(current_platform.get_device_name())
    from vllm.v1.attention.backends.cpu_attn import _get_attn_isa

    model, kv = vllm_config.model_config, vllm_config.cache_config
    isa = _get_attn_isa(model.dtype, kv.block_size, model.get_head_size(), kv.cache_dtype)
    return f"cpu {platform.machine()} {isa} torch-{torch.__version__}"


def _speculation(vllm_config: VllmConfig, cache: Path) -> str:
    """Drafting models have layers in the KV cache too."""
    speculative = vllm_config.speculative_config
    if speculative is None:
        return ""
    draft = getattr(speculative, "draft_model_config", None)
    digest = ""
    if draft is not None and draft.model != vllm_config.model_config.model:
        digest = digest_of(model_files(folder_of(draft.model, draft.revision)), cache=cache)
    return f"{speculative.method}/{speculative.num_speculative_tokens}/{digest}"
