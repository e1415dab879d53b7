"""Passwords and keys in the settings are shown by no command, whatever is wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest

if TYPE_CHECKING:
    from fakes.cli import Cli

SECRETS = ("hunter2", "sk-engine", "sk-tenant")


@pytest.mark.parametrize(
    "command",
    [
        ("doctor",),
        ("doctor", "--json"),
        ("plan",),
        ("plan", "--json"),
        ("context", "ls"),
        ("jobs", "ls"),
        ("context", "rm", "none"),
        ("vllm-args",),
    ],
)
@pytest.mark.parametrize(
    ("redis", "vllm"),
    [
        ("redis://u:hunter2@127.0.0.1:1/0", "http://u:hunter2@127.0.0.1:bad"),
        ("redis://u:hunter2@127.0.0.1:bad/0", "http://u:hunter2@127.0.0.1:1"),
        ("http://u:hunter2@127.0.0.1/0", "http://u:hunter2@"),
    ],
)
def test_no_command_shows_a_secret(
    cli: Cli, command: tuple[str, ...], redis: str, vllm: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {
        "engines": [{"kind": "vllm", "name": "v", "url": vllm, "api_key": "sk-engine"}],
        "gateway": {"api_keys": {"default": "sk-tenant"}},
        "kv": {"tiers": [{"kind": "redis", "max_bytes": "1GiB", "url": redis, "timeout_s": 1}]},
    }
    file = cli.folder / "nightfill.yaml"
    file.write_bytes(msgspec.json.encode(settings))
    cli.data.mkdir(mode=0o700)
    result = cli("--config", file, *command)
    shown = result.output + repr(result.exception) + caplog.text
    assert not any(secret in shown for secret in SECRETS), shown


def test_doctor_tells_of_a_server_that_is_gone_and_goes_on(cli: Cli) -> None:
    tier = {"kind": "redis", "max_bytes": "1GiB", "url": "redis://u:hunter2@127.0.0.1:1/0", "timeout_s": 1}
    file = cli.folder / "nightfill.yaml"
    file.write_bytes(msgspec.json.encode({"kv": {"tiers": [{"kind": "disk", "max_bytes": "1MiB"}, tier]}}))
    cli.data.mkdir(mode=0o700)
    result = cli("--config", file, "doctor")
    assert "FAIL  tier redis:" in result.output
    assert "127.0.0.1:1/0: cannot connect" in result.output
    assert "OK    store:" in result.output
