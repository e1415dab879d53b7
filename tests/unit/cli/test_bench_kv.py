"""`nightfill bench kv` as it is typed: on tiers with something in them, which it must leave alone."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from fakes.cli import Cli
from fakes.kv import SALT, Sample
from fakes.redis_server import RedisServer
from nightfill.cli.settings import load_settings
from nightfill.cli.workspace import Workspace
from nightfill.kv.trial import Need, open_trial, tier_names

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SMALL = ("--block-bytes", "64KiB", "--total-bytes", "640KiB", "--rounds", "1")


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    server = RedisServer()
    yield server
    server.close()


class Bench:
    def __init__(self, folder: Path, url: str) -> None:
        self.config = folder / "settings.yaml"
        self.config.write_text(
            "kv:\n  tiers:\n"
            "    - {kind: ram, max_bytes: 16MiB}\n"
            "    - {kind: disk, max_bytes: 64MiB, min_free_bytes: 1MiB, write_bytes_per_day: 1GiB}\n"
            f"    - {{kind: redis, max_bytes: 64MiB, url: '{url}'}}\n"
        )
        self.cli = Cli(folder)
        settings = load_settings(file=self.config, environ={}, overrides={})
        self.workspace = Workspace(settings=settings, data_dir=self.cli.data)

    def __call__(self, *arguments: str | Path) -> object:
        return self.cli.json("--config", self.config, "bench", "kv", *arguments)

    def files(self) -> set[str]:
        return {path.name for path in (self.cli.data / "kv").rglob("*") if path.is_file() and path.name != "written"}


def names(redis: RedisServer) -> set[bytes]:
    (found,) = redis.call([b"KEYS", b"*"])
    assert isinstance(found, list)
    return {name for name in found if isinstance(name, bytes)}


@pytest.fixture
def bench(tmp_path: Path, redis: RedisServer) -> Bench:
    return Bench(tmp_path, redis.url)


def test_each_tier_has_its_figures_and_what_is_stored_stays_as_it_is(bench: Bench, redis: RedisServer) -> None:
    store = bench.workspace.open_store()
    one = Sample(1, 8192)
    store.put(one.key, [one.payload], one.meta, salt=SALT)
    store.close()
    files, keys = bench.files(), names(redis)
    shown = bench(*SMALL)
    assert isinstance(shown, dict)
    assert list(shown["tiers"]) == ["ram", "disk", "redis"]
    for tier in shown["tiers"].values():
        assert tier["blocks"] == 10
        assert min(tier[key] for key in ("load_bps", "save_bps", "raw_bps", "raw_save_bps", "lookup_s")) > 0
        assert min(tier[key] for key in ("load_ratio", "save_ratio", "store_load_bps", "store_save_bps")) > 0
    assert bench.files() == files
    assert names(redis) == keys
    assert not list((bench.cli.data / "kv").glob("trial-*"))


def test_one_tier_and_a_table_and_a_chart(bench: Bench, tmp_path: Path) -> None:
    chart = tmp_path / "kv.png"
    said = bench.cli.ok("--config", bench.config, "bench", "kv", "--tier", "disk", *SMALL, "--chart", chart)
    assert "disk: files" in said
    assert "redis" not in said
    assert chart.stat().st_size


def test_a_tier_that_is_not_there_is_named(bench: Bench) -> None:
    said = bench.cli.refused("--config", bench.config, "bench", "kv", "--tier", "tape", *SMALL)
    assert "'tape'" in said
    assert "ram, disk, redis" in said


def test_a_floor_of_free_space_holds_and_nothing_is_written(bench: Bench) -> None:
    bench.config.write_text(bench.config.read_text().replace("min_free_bytes: 1MiB", "min_free_bytes: 1000TiB"))
    said = bench.cli.refused("--config", bench.config, "bench", "kv", "--tier", "disk", *SMALL, status=1)
    assert "above the floor" in said
    assert not list((bench.cli.data / "kv").iterdir())


def test_a_write_budget_holds(bench: Bench) -> None:
    bench.config.write_text(bench.config.read_text().replace("per_day: 1GiB", "per_day: 1MiB"))
    said = bench.cli.refused("--config", bench.config, "bench", "kv", "--tier", "disk", *SMALL, status=1)
    assert "write budget" in said


def test_the_servers_own_limit_is_not_reached(bench: Bench, redis: RedisServer) -> None:
    redis.call([b"CONFIG", b"SET", b"maxmemory", b"2mb"])
    said = bench.cli.refused("--config", bench.config, "bench", "kv", "--tier", "redis", *SMALL, status=1)
    assert "maxmemory" in said


def test_what_is_interrupted_leaves_nothing_behind(bench: Bench, redis: RedisServer) -> None:
    need = Need(block_bytes=8192, blocks=4, beside=4, written=8)
    bench.cli.data.mkdir()

    def interrupted(place: int) -> None:
        with open_trial(bench.workspace.settings.kv, place, need, data_dir=bench.cli.data) as trial:
            one = Sample(1, 4096)
            trial.store.put(one.key, [one.payload], one.meta, salt=SALT)
            if trial.prefix:
                redis.call([b"SET", trial.prefix + b":raw:3", b"x"])
            signal.raise_signal(signal.SIGINT)

    for place in range(3):
        with pytest.raises(KeyboardInterrupt):
            interrupted(place)
    assert bench.files() == set()
    assert redis.call([b"DBSIZE"]) == [0]


def test_a_killed_ones_folder_goes_with_the_next_and_a_living_ones_stays(bench: Bench) -> None:
    need = Need(block_bytes=8192, blocks=1, beside=1, written=2)
    settings, folder = bench.workspace.settings.kv, bench.cli.data / "kv"
    (folder / "trial-of-a-dead-one" / "v1").mkdir(parents=True)
    with open_trial(settings, 1, need, data_dir=bench.cli.data) as first:
        assert first.folder is not None
        with open_trial(settings, 1, need, data_dir=bench.cli.data):
            assert first.folder.exists()
        assert {path.name for path in folder.glob("trial-*")} == {first.folder.name}


def test_tiers_of_one_kind_are_numbered(bench: Bench) -> None:
    ram, disk, redis = bench.workspace.settings.kv.tiers
    assert tier_names([ram, disk, disk, redis, disk]) == ["ram", "disk", "disk-2", "redis", "disk-3"]
