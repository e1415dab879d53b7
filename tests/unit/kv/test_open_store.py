from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from fakes.kv import MASTER, SALT, MakeSample
from nightfill.config import ByteSize, KvSettings, TierSettings
from nightfill.errors import BadSetting, BlockCorrupt
from nightfill.kv import open_store, open_text_sealer
from nightfill.kv.tiers.arena import SHARED_MEMORY
from nightfill.kv.tiers.arena_file import arena_path

if TYPE_CHECKING:
    from pathlib import Path


def tier(kind: str = "disk", path: str = "", *, max_bytes: int = 1 << 30) -> TierSettings:
    assert kind in {"ram", "disk"}
    return TierSettings(
        kind="ram" if kind == "ram" else "disk", max_bytes=ByteSize(max_bytes), path=path, min_free_bytes=ByteSize(0)
    )


def key_file(tmp_path: Path) -> str:
    path = tmp_path / "kv.key"
    path.write_bytes(MASTER)
    path.chmod(0o600)
    return str(path)


def test_the_default_settings_open_ram_and_disk_under_the_data_folder(tmp_path: Path, sample: MakeSample) -> None:
    store = open_store(KvSettings(), data_dir=tmp_path)
    try:
        report = store.report()
        assert [(t.name, t.kind, t.durable) for t in report.tiers] == [("ram", "ram", False), ("disk", "disk", True)]
        assert not report.encrypted
        store.put(sample(1).key, [b"x"], sample(1).meta, salt=SALT)
        assert len(list((tmp_path / "kv" / "v1").glob("??/*.kv"))) == 1
    finally:
        store.close()


def test_a_key_file_encrypts_blocks_and_texts(tmp_path: Path, sample: MakeSample) -> None:
    settings = KvSettings(key_file=key_file(tmp_path), tiers=(tier(),))
    store = open_store(settings, data_dir=tmp_path)
    try:
        store.put(sample(1).key, [b"plain text" * 10], sample(1).meta, salt=SALT)
        assert store.report().encrypted
    finally:
        store.close()
    (stored,) = (tmp_path / "kv" / "v1").glob("??/*.kv")
    assert b"plain text" not in stored.read_bytes()
    sealed = open_text_sealer(settings).seal_text(b"plain text")
    assert b"plain" not in sealed
    assert open_text_sealer(settings).open_text(sealed) == b"plain text"
    with pytest.raises(BlockCorrupt):
        open_text_sealer(KvSettings()).open_text(sealed)


def test_two_disks_have_two_names_and_two_folders(tmp_path: Path) -> None:
    store = open_store(KvSettings(tiers=(tier(path="a"), tier(path=str(tmp_path / "b")))), data_dir=tmp_path)
    try:
        assert [t.name for t in store.report().tiers] == ["disk", "disk-2"]
        assert (tmp_path / "a" / "v1").is_dir()
        assert (tmp_path / "b" / "v1").is_dir()
    finally:
        store.close()


def test_two_tiers_in_one_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match="two tiers in") as caught:
        open_store(KvSettings(tiers=(tier(), tier(path="kv"))), data_dir=tmp_path)
    assert caught.value.param == "kv.tiers.1.path"


def test_no_tier_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match=r"kv\.tiers is empty"):
        open_store(KvSettings(tiers=()), data_dir=tmp_path)


def test_a_file_where_the_folder_should_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "kv").write_text("in the way")
    with pytest.raises(BadSetting, match="cannot use") as caught:
        open_store(KvSettings(tiers=(tier(),)), data_dir=tmp_path)
    assert caught.value.param == "kv.tiers.0.path"


@pytest.mark.parametrize("content", [None, b"short"])
def test_a_missing_or_short_key_file_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "kv.key"
    if content is not None:
        path.write_bytes(content)
        path.chmod(0o600)
    settings = KvSettings(key_file=str(path), tiers=(tier("ram"),))
    for opens in (lambda: open_store(settings, data_dir=tmp_path), lambda: open_text_sealer(settings)):
        with pytest.raises(BadSetting, match=r"kv\.key_file") as caught:
            opens()
        assert caught.value.param == "kv.key_file"


def test_without_a_key_file_openssl_is_not_loaded() -> None:
    code = "import sys, nightfill.kv; sys.exit('cryptography' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_replaced_key_file_opens_what_the_old_one_sealed(tmp_path: Path, sample: MakeSample) -> None:
    first = KvSettings(key_file=key_file(tmp_path), tiers=(tier(),))
    store = open_store(first, data_dir=tmp_path)
    store.put(sample(1).key, [b"x"], sample(1).meta, salt=SALT)
    store.close()
    text = open_text_sealer(first).seal_text(b"text")
    new = tmp_path / "new.key"
    new.write_bytes(bytes(32))
    new.chmod(0o600)
    second = KvSettings(key_file=str(new), old_key_files=(first.key_file,), tiers=(tier(),))
    store = open_store(second, data_dir=tmp_path)
    try:
        assert store.get(sample(1).key, salt=SALT) is not None
    finally:
        store.close()
    assert store.report().tiers[0].resealed == 1
    assert open_text_sealer(second).open_text(text) == b"text"
    third = open_store(KvSettings(key_file=str(new), tiers=(tier(),)), data_dir=tmp_path)
    try:
        assert third.get(sample(1).key, salt=SALT) is not None
    finally:
        third.close()


def test_old_key_files_without_a_current_one_are_refused(tmp_path: Path) -> None:
    settings = KvSettings(old_key_files=(key_file(tmp_path),), tiers=(tier(),))
    for opened in (lambda: open_store(settings, data_dir=tmp_path), lambda: open_text_sealer(settings)):
        with pytest.raises(BadSetting) as caught:
            opened()
        assert caught.value.param == "kv.old_key_files"


def test_an_old_key_file_that_is_missing_is_named(tmp_path: Path) -> None:
    settings = KvSettings(key_file=key_file(tmp_path), old_key_files=(str(tmp_path / "none"),), tiers=(tier(),))
    with pytest.raises(BadSetting, match="none") as caught:
        open_store(settings, data_dir=tmp_path)
    assert caught.value.param == "kv.old_key_files"


def test_a_first_tier_that_is_written_back_to_is_refused(tmp_path: Path) -> None:
    back = TierSettings(kind="disk", max_bytes=ByteSize(1 << 20), write="back")
    with pytest.raises(BadSetting, match="none is above"):
        open_store(KvSettings(tiers=(back,)), data_dir=tmp_path)


def test_a_shared_ram_that_would_lose_what_it_evicts_is_refused(tmp_path: Path) -> None:
    arena = TierSettings(kind="ram", max_bytes=ByteSize(1 << 20), shared=True)
    back = TierSettings(kind="disk", max_bytes=ByteSize(1 << 20), path="back", write="back")
    try:
        with pytest.raises(BadSetting, match="hand down") as caught:
            open_store(KvSettings(tiers=(arena, back)), data_dir=tmp_path)
        assert caught.value.param == "kv.tiers.0.shared"
        open_store(KvSettings(tiers=(arena, tier(), back)), data_dir=tmp_path).close()
    finally:
        arena_path(SHARED_MEMORY, tmp_path, 1 << 20).unlink(missing_ok=True)


def test_policy_caps_and_budget_come_from_the_settings(tmp_path: Path, sample: MakeSample) -> None:
    block = ByteSize(3 * 4096)
    settings = KvSettings(
        tiers=(
            TierSettings(kind="disk", path="a", max_bytes=block, min_free_bytes=ByteSize(0)),
            TierSettings(
                kind="disk",
                path="b",
                max_bytes=ByteSize(1 << 30),
                min_free_bytes=ByteSize(0),
                write="back",
                tenant_max_bytes=ByteSize(2 * block),
                write_bytes_per_day=ByteSize(3 * block),
            ),
        )
    )
    store = open_store(settings, data_dir=tmp_path)
    try:
        for number in range(6):
            one = sample(number)
            store.put(one.key, [one.payload], one.meta, salt=SALT)
        above, below = store.report().tiers
        assert (above.blocks, below.blocks, below.demoted) == (1, 2, 3), "capped per tenant"
        assert above.undemoted == 2
        assert "write budget" in (below.last_error or "")
    finally:
        store.close()
