"""Where KV lives: keys, sealed blocks, tiers and the store over them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from nightfill.errors import BadSetting
from nightfill.kv.block import Block, BlockMeta
from nightfill.kv.buffer import Buffers
from nightfill.kv.key import BLOCK_TOKENS, BlockKey, Span, salt_of, snapshot_key, spans
from nightfill.kv.report import StoreReport, TierReport
from nightfill.kv.roles import Policy, Roles
from nightfill.kv.rotation import Resealed
from nightfill.kv.seal import ChecksumSealer, PlainTexts, Sealer, TextSealer
from nightfill.kv.store import Store
from nightfill.kv.tier import Evictor
from nightfill.kv.tiers.arena import ArenaTier
from nightfill.kv.tiers.disk import DiskTier
from nightfill.kv.tiers.ram import RamTier

if TYPE_CHECKING:
    from collections.abc import Callable

    from nightfill.config import KvSettings, TierSettings
    from nightfill.kv.tier import Tier
    from nightfill.kv.tiers.redis import RedisTier
    from nightfill.kv.tiers.s3 import S3Tier

__all__ = [
    "BLOCK_TOKENS",
    "Block",
    "BlockKey",
    "BlockMeta",
    "Resealed",
    "Span",
    "Store",
    "StoreReport",
    "TextSealer",
    "TierReport",
    "derived_secret",
    "open_sealer",
    "open_store",
    "open_text_sealer",
    "salt_of",
    "snapshot_key",
    "spans",
]


LIST_EVERY_S: Final = {"redis": 600.0, "s3": 3600.0}
ASK_EVERY_S: Final = {"s3": 600.0}
"""How often sweeps ask tiers on servers, by kind; others each time."""


def open_store(settings: KvSettings, *, data_dir: Path, clock: Callable[[], float] = time.time) -> Store:
    """The store that `settings` describe. A relative or empty path of a disk tier lies under `data_dir`.

    Raises BadSetting: no tier, two tiers in one folder, a folder that may not be written, a key file that is missing
    or of another length. A device that fails is no bad setting: the store starts without it and says so.
    """
    if not settings.tiers:
        raise BadSetting("kv.tiers is empty: at least one tier is needed", param="kv.tiers")
    if settings.tiers[0].write == "back":
        raise BadSetting(
            "kv.tiers.0.write: 'back' takes what a tier above evicts, and none is above the first",
            param="kv.tiers.0.write",
        )
    buffers = Buffers()
    sealer = open_sealer(settings, buffers)
    tiers: list[Tier] = []
    folders: set[Path] = set()
    for place, wanted in enumerate(settings.tiers):
        earlier = sum(tier.kind == wanted.kind for tier in tiers)
        name = wanted.kind if earlier == 0 else f"{wanted.kind}-{earlier + 1}"
        if wanted.kind == "ram" and wanted.shared:
            if wanted.tenant_max_bytes:
                param = f"kv.tiers.{place}.tenant_max_bytes"
                raise BadSetting(f"{param}: a shared ram tier keeps no cap per tenant", param=param)
            tiers.append(
                ArenaTier(data_dir=data_dir, name=name, max_bytes=wanted.max_bytes, buffers=buffers, clock=clock)
            )
            continue
        if wanted.kind == "ram":
            tiers.append(
                RamTier(
                    name=name,
                    max_bytes=wanted.max_bytes,
                    tenant_max_bytes=wanted.tenant_max_bytes,
                    clock=clock,
                )
            )
            continue
        if wanted.kind in {"redis", "s3"}:
            tiers.append(_remote(wanted, name=name, place=place, buffers=buffers, clock=clock))
            continue
        folder = _folder(wanted, data_dir=data_dir, param=f"kv.tiers.{place}.path")
        if folder in folders:
            raise BadSetting(f"kv.tiers: two tiers in {folder}", param=f"kv.tiers.{place}.path")
        folders.add(folder)
        tiers.append(
            DiskTier(
                folder,
                name=name,
                max_bytes=wanted.max_bytes,
                tenant_max_bytes=wanted.tenant_max_bytes,
                min_free_bytes=wanted.min_free_bytes,
                write_bytes_per_day=wanted.write_bytes_per_day,
                direct=wanted.direct,
                buffers=buffers,
                clock=clock,
            )
        )
    policies = {
        tier.name: Policy(
            back=wanted.write == "back",
            ttl_s=wanted.ttl_s,
            list_every_s=LIST_EVERY_S.get(wanted.kind, 0.0),
            ask_every_s=ASK_EVERY_S.get(wanted.kind, 0.0),
        )
        for tier, wanted in zip(tiers, settings.tiers, strict=True)
    }
    _require_evictors(Roles(tiers, ttl_s=settings.ttl_s, policies=policies))
    return Store(tiers, sealer, ttl_s=settings.ttl_s, clock=clock, policies=policies)


def open_text_sealer(settings: KvSettings) -> TextSealer:
    """What seals texts at rest under the same key file; without one it changes nothing. Raises BadSetting."""
    if not settings.key_file:
        _refuse_old_keys(settings)
        return PlainTexts()
    from nightfill.kv.cipher import EncryptedTexts

    master, *old = _masters(settings)
    return EncryptedTexts(master, old=old)


def derived_secret(settings: KvSettings, purpose: bytes) -> bytes:
    """32 bytes that only who has the key file can know, others for each purpose; none without one. Raises BadSetting.

    Another key file has other secrets.
    """
    if not settings.key_file:
        return b""
    from nightfill.kv.cipher import derive

    return derive(_masters(settings)[0], b"", purpose)


def open_sealer(settings: KvSettings, buffers: Buffers) -> Sealer:
    """What seals blocks under these settings. Raises BadSetting."""
    if not settings.key_file:
        _refuse_old_keys(settings)
        return ChecksumSealer(buffers)
    # Imported here, since importing OpenSSL's bindings takes longer than all the rest of this package.
    from nightfill.kv.cipher import AesGcmSealer

    master, *old = _masters(settings)
    return AesGcmSealer(master, buffers, old=old)


def _require_evictors(roles: Roles) -> None:
    """Raises BadSetting where blocks that a tier is to hand down would be lost. Copies in a cache may be."""
    for place, tier in enumerate(roles.tiers):
        if tier in roles.keepers and roles.backs_below(tier) and not isinstance(tier, Evictor):
            param = f"kv.tiers.{place}.shared"
            raise BadSetting(
                f"{param}: a shared ram tier does not hand down what it evicts, so the tiers below cannot all be "
                "written 'back'",
                param=param,
            )


def _masters(settings: KvSettings) -> list[bytes]:
    """The current master key, then the old ones."""
    from nightfill.kv.cipher import read_master_key

    current = read_master_key(Path(settings.key_file).expanduser())
    old = [read_master_key(Path(path).expanduser(), param="kv.old_key_files") for path in settings.old_key_files]
    return [current, *(key for key in old if key != current)]


def _refuse_old_keys(settings: KvSettings) -> None:
    if settings.old_key_files:
        raise BadSetting(
            "kv.old_key_files: there is no kv.key_file to seal anew under; for no more encryption, clear the store",
            param="kv.old_key_files",
        )


def _remote(
    wanted: TierSettings, *, name: str, place: int, buffers: Buffers, clock: Callable[[], float]
) -> RedisTier | S3Tier:
    """A tier on a server; imported here, since few need one."""
    url = f"kv.tiers.{place}.url"
    if wanted.kind == "redis":
        from nightfill.kv.tiers.redis import open_redis_tier

        return open_redis_tier(wanted, name=name, param=url, buffers=buffers, clock=clock)
    try:
        from nightfill.kv.tiers.s3 import open_s3_tier
    except ImportError as error:
        kind = f"kv.tiers.{place}.kind"
        raise BadSetting(f"{kind}: s3 needs obstore: pip install 'nightfill[s3]'", param=kind) from error
    return open_s3_tier(wanted, name=name, param=url, buffers=buffers, clock=clock)


def _folder(wanted: TierSettings, *, data_dir: Path, param: str) -> Path:
    folder = (data_dir / (Path(wanted.path).expanduser() if wanted.path else "kv")).absolute()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (PermissionError, NotADirectoryError, FileExistsError) as error:
        raise BadSetting(f"{param}: cannot use {folder}: {error.strerror}", param=param) from error
    except OSError:
        # A device that fails today may be well tomorrow; the tier reports what ails it.
        return folder
    return folder
