from __future__ import annotations

import shlex
import stat
from typing import TYPE_CHECKING

import msgspec
import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from fakes.cli import Cli

ENGINES = '[{name: a, kind: vllm, url: "http://127.0.0.1:8001", model: m, api_key: "it\'s secret"}]'
TWO = '[{name: a, kind: vllm, url: "http://127.0.0.1:1"}, {name: b, kind: vllm, url: "http://127.0.0.1:2", model: m}]'
PASSWORD = '[{kind: redis, max_bytes: 1GiB, url: "redis://:s3cret@10.0.0.7"}]'


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTFILL_ENGINES", ENGINES)


def test_a_model_is_enough(cli: Cli) -> None:
    argv = shlex.split(cli.ok("vllm-args", "--model", "/a model"))
    assert argv[:3] == ["vllm", "serve", "/a model"]
    assert argv[argv.index("--port") + 1] == "8000"


def test_people_get_one_flag_per_line(cli: Cli) -> None:
    lines = cli.ok("vllm-args", "--model", "m").splitlines()
    assert lines[0] == "vllm serve m \\"
    assert all(line.startswith("  --") for line in lines[1:])
    assert all(line.endswith(" \\") for line in lines[:-1])


@pytest.mark.usefixtures("engines")
def test_all_forms_say_the_same(cli: Cli) -> None:
    found = cli.json("vllm-args")
    assert found["env"] == {"VLLM_API_KEY": "it's secret"}
    assert shlex.split(cli.ok("vllm-args", "--shell")) == ["VLLM_API_KEY=it's secret", *found["argv"]]
    key, *words = shlex.split(cli.ok("vllm-args").replace("\\\n", ""))
    assert key == "VLLM_API_KEY=${VLLM_API_KEY:?the api_key of the engine}"
    assert words == found["argv"]


@pytest.mark.usefixtures("engines")
def test_people_do_not_see_the_api_key(cli: Cli) -> None:
    assert "secret" not in cli.ok("vllm-args")


def test_options_reach_the_command_line(cli: Cli) -> None:
    argv = cli.json(
        "vllm-args",
        "--model",
        "m",
        "--tensor-parallel-size",
        "2",
        "--kv-cache-dtype",
        "fp8_e5m2",
        "--host-bytes",
        "3GiB",
    )["argv"]
    transfer = msgspec.json.decode(argv[argv.index("--kv-transfer-config") + 1])
    assert transfer["kv_connector_extra_config"]["cpu_bytes_to_use"] == 3 << 30
    assert argv[argv.index("--kv-cache-dtype") + 1] == "fp8_e5m2"
    assert argv[argv.index("--tensor-parallel-size") + 1] == "2"


def test_an_engine_is_chosen_by_its_name(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTFILL_ENGINES", TWO)
    assert "choose with --engine: a, b" in cli.refused("vllm-args", "--model", "m")
    argv = cli.json("vllm-args", "--engine", "b")["argv"]
    assert argv[argv.index("--port") + 1] == "2"
    assert "there are: a, b" in cli.refused("vllm-args", "--engine", "c")


def test_a_password_needs_a_file_that_only_its_owner_reads(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIGHTFILL_KV__TIERS", PASSWORD)
    said = cli.refused("vllm-args", "--model", "m")
    assert "--settings-file" in said
    assert "s3cret" not in said
    path = tmp_path / "store.json"
    path.write_text("old")
    path.chmod(0o644)
    assert "s3cret" not in cli.ok("vllm-args", "--model", "m", "--settings-file", path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert msgspec.json.decode(path.read_bytes())["kv"]["tiers"][0]["url"] == "redis://:s3cret@10.0.0.7"
    assert [left.name for left in tmp_path.glob("store.json*")] == ["store.json"]


def test_a_file_that_cannot_be_written_is_an_error_of_one_line(cli: Cli, tmp_path: Path) -> None:
    said = cli.refused("vllm-args", "--model", "m", "--settings-file", tmp_path / "missing" / "store.json")
    assert "No such file or directory" in said


def test_warnings_stand_apart_from_the_command_line(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTFILL_KV_BACKEND", "native")
    result = cli("vllm-args", "--model", "m")
    assert result.exit_code == 0
    assert "warning: kv.tiers.1.max_bytes" in result.stderr
    assert result.stdout.startswith("vllm serve m")
    assert "does not carry it out" not in result.stdout
    assert any("kv.tiers.1.max_bytes" in warning for warning in cli.json("vllm-args", "--model", "m")["warnings"])


@pytest.mark.parametrize("option", ["--host-bytes", "--kv-cache-bytes"])
def test_a_size_that_is_none_is_refused(cli: Cli, option: str) -> None:
    assert f"{option} lots: must be a size" in cli.refused("vllm-args", "--model", "m", option, "lots")
