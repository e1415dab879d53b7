from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from nightfill.cli.settings import cache_dir, data_dir, default_data_dir, load_settings
from nightfill.cli.settings_page import render_page
from nightfill.config import ByteSize, Duration, Settings, TierSettings
from nightfill.errors import BadSetting

PAGE = Path(__file__).parents[3] / "docs" / "settings.md"


Load = Callable[..., Settings]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Settings of a file's text, an environment and options, dots in their names written as two underscores."""

    def act(text: str = "", environ: dict[str, str] | None = None, **overrides: object) -> Settings:
        options = {key.replace("__", "."): value for key, value in overrides.items()}
        if not text:
            return load_settings(file=None, environ=environ or {}, overrides=options)
        file = tmp_path / "settings.yaml"
        file.write_text(text)
        return load_settings(file=file, environ=environ or {}, overrides=options)

    return act


def test_nothing_given_means_the_defaults(load: Load) -> None:
    assert load() == Settings()
    assert load("# nothing\n") == Settings()


def test_a_file_sets_keys_sizes_and_durations(load: Load) -> None:
    settings = load(
        "engines: [{model: m.gguf, slots: 4}]\n"
        "kv: {ttl_s: 4h, tiers: [{kind: ram, max_bytes: 64GiB}, {kind: disk, max_bytes: 1.5GB}]}\n"
        "sleep: {quiet_s: 250ms, max_slice_tokens: 8_192}\n"
    )
    assert (settings.engines[0].model, settings.engines[0].slots) == ("m.gguf", 4)
    assert settings.kv.ttl_s == Duration(14400)
    assert [tier.max_bytes for tier in settings.kv.tiers] == [64 << 30, 1_500_000_000]
    assert (settings.sleep.quiet_s, settings.sleep.max_slice_tokens) == (0.25, 8192)


def test_options_win_over_the_environment_which_wins_over_the_file(load: Load) -> None:
    text = "gateway: {port: 1, max_in_flight: 1, host: a}\n"
    environ = {"NIGHTFILL_GATEWAY__PORT": "2", "NIGHTFILL_GATEWAY__MAX_IN_FLIGHT": "2"}
    gateway = load(text, environ, gateway__port=3).gateway
    assert (gateway.host, gateway.max_in_flight, gateway.port) == ("a", 2, 3)


def test_lists_and_objects_come_from_the_environment_whole_or_by_item(load: Load) -> None:
    settings = load(
        environ={
            "NIGHTFILL_ENGINES__0__MODEL": "a.gguf",
            "NIGHTFILL_ENGINES__0__SLOTS": "3",
            "NIGHTFILL_ENGINES__1": '{"model": "b.gguf", "name": "b"}',
            "NIGHTFILL_CONTEXTS__ROOTS": '["/a", "/b"]',
            "NIGHTFILL_GATEWAY__API_KEYS__ACME": "0123",
            "NIGHTFILL_KV__TIERS": "[{kind: ram, max_bytes: 1GiB}]",
            "NIGHTFILL_SLEEP__ENABLED": "false",
        }
    )
    assert [(engine.model, engine.slots) for engine in settings.engines] == [("a.gguf", 3), ("b.gguf", 2)]
    assert settings.contexts.roots == ("/a", "/b")
    assert settings.gateway.api_keys == {"acme": "0123"}  # text stays text, though it looks like a number
    assert settings.kv.tiers == (TierSettings(kind="ram", max_bytes=ByteSize(1 << 30)),)
    assert settings.sleep.enabled is False


def test_the_environment_names_the_file_too(load: Load, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("log_level: debug")
    assert load(environ={"NIGHTFILL_CONFIG": str(tmp_path / "x.yaml")}).log_level == "debug"


REFUSED: list[tuple[str, str, str]] = [
    ("gatway: {port: 1}", "gatway", "unknown setting gatway; did you mean gateway?"),
    ("gateway: {prot: 1}", "gateway.prot", "unknown setting gateway.prot; did you mean gateway.port?"),
    ("max_in_flight: 1", "max_in_flight", "did you mean gateway.max_in_flight?"),
    ("zzz: 1", "zzz", "unknown setting zzz; allowed: data_dir, "),
    ("engines: [{model: m, slot: 1}]", "engines.0.slot", "did you mean engines.0.slots?"),
    ("kv: {tiers: [{kind: ram, max_byte: 1}]}", "kv.tiers.0.max_byte", "did you mean kv.tiers.0.max_bytes?"),
    ("gateway: {port: x}", "gateway.port", "gateway.port = 'x': must be a whole number"),
    ("gateway: {port: 70000}", "gateway.port", "gateway.port = 70000: must be 0 to 65_535"),
    ("gateway: 5", "gateway", "gateway = 5: must be keys and values"),
    ("sleep: {enabled: 3}", "sleep.enabled", "sleep.enabled = 3: must be true or false"),
    ("sleep: {enabled: yes}", "sleep.enabled", "sleep.enabled = 'yes': must be true or false"),
    ("answers: {tenants: {a: bad}}", "answers.tenants.*", "must be one of off, shadow, exact, near"),
    ("discovery: {requests: 1}", "discovery.requests", "discovery.requests = 1: must be 2 to 1_000_000"),
    ("log_level: loud", "log_level", "log_level = 'loud': must be one of debug, info, warning, error"),
    ("engines: [{slots: 2}]", "engines.0.model", "must be a path of a GGUF file"),
    ("engines: [{model: ''}]", "engines.0.model", "must be a path of a GGUF file"),
    ("engines: [{model: m}, {model: n}]", "engines.1.name", "engines.1.name = 'local': must be there, and unlike"),
    ("engines: [{model: m, slots: 17}]", "engines.0.slots", "engines.0.slots = 17: must be 1 to 16"),
    ("kv: {block_tokens: 100}", "kv.block_tokens", "kv.block_tokens = 100: must be a power of two"),
    ("kv: {ttl_s: 4x}", "kv.ttl_s", "kv.ttl_s = '4x': must be a duration such as"),
    ("kv: {ttl_s: true}", "kv.ttl_s", "kv.ttl_s = True: must be a duration such as"),
    ("kv: {tiers: []}", "kv.tiers", "at least one tier"),
    ("kv: {tiers: [{kind: ram, max_bytes: big}]}", "kv.tiers.0.max_bytes", "= 'big': must be a size such as"),
    ("kv: {tiers: [{kind: tape, max_bytes: 1GiB}]}", "kv.tiers.0.kind", "= 'tape': must be one of ram, disk"),
    ("sleep: {min_slice_tokens: 9, max_slice_tokens: 8}", "sleep.min_slice_tokens", "must not be above"),
    ("sleep: {retry_base_s: 9, retry_cap_s: 8}", "sleep.retry_base_s", "must not be above"),
    ("prices: {serving_per_hour: .nan}", "prices.serving_per_hour", "must be 0 to"),
    ("a: [", "--config", "line 1"),
    ("log_level: info\nlog_level: debug", "--config", "line 2, column 1: key 'log_level' is given twice"),
    ("- 1", "--config", "must hold keys and values"),
    ("a: !!python/object:os.system {}", "--config", "could not determine a constructor"),
]


def test_off_without_quotes_is_a_mode_and_not_false(load: Load) -> None:
    settings = load("answers: {mode: off, tenants: {a: off}, foresee: true}").answers
    assert (settings.mode, settings.tenants, settings.foresee) == ("off", {"a": "off"}, True)


@pytest.mark.parametrize(("text", "param", "message"), REFUSED)
def test_a_bad_file_is_refused_with_key_value_and_what_is_allowed(
    load: Load, text: str, param: str, message: str
) -> None:
    with pytest.raises(BadSetting) as caught:
        load(text)
    assert message in str(caught.value)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("NIGHTFILL_GATEWAY__PROT", "1", "did you mean gateway.port?"),
        ("NIGHTFILL_GATEWAY_PORT", "1", "unknown setting gateway_port"),
        ("NIGHTFILL_GATEWAY__PORT", "[", "NIGHTFILL_GATEWAY__PORT: not YAML or JSON"),
        ("NIGHTFILL_GATEWAY__PORT__X", "1", "gateway.port is not of a kind that has 'x'"),
        ("NIGHTFILL_ENGINES__1__MODEL", "m", "there is no item 0 before it"),
        ("NIGHTFILL_LOG_LEVEL__X", "1", "setting log_level"),
    ],
)
def test_a_bad_environment_variable_is_refused(load: Load, name: str, value: str, message: str) -> None:
    with pytest.raises(BadSetting) as caught:
        load("gateway: {port: 5}", {name: value})
    assert message in str(caught.value)


def test_keys_of_tenants_are_never_shown(load: Load) -> None:
    for text in ("gateway: {api_keys: {acme: [hunter2]}}", "gateway: {api_keys: hunter2}"):
        with pytest.raises(BadSetting) as caught:
            load(text)
        assert "hunter2" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match=r"gone\.yaml: No such file"):
        load_settings(file=tmp_path / "gone.yaml", environ={})
    (tmp_path / "large.yaml").write_bytes(b"#" * (1 << 20) + b"##")
    with pytest.raises(BadSetting, match="larger than 1 MiB"):
        load_settings(file=tmp_path / "large.yaml", environ={})


def test_folders_follow_the_xdg_specification() -> None:
    assert default_data_dir({"HOME": "/h"}) == Path("/h/.local/share/nightfill")
    assert default_data_dir({"HOME": "/h", "XDG_DATA_HOME": "/d"}) == Path("/d/nightfill")
    assert default_data_dir({"HOME": "/h", "XDG_DATA_HOME": "relative"}) == Path("/h/.local/share/nightfill")
    assert cache_dir({"HOME": "/h"}) == Path("/h/.cache/nightfill")
    assert data_dir(Settings(), {"HOME": "/h"}) == Path("/h/.local/share/nightfill")
    assert data_dir(Settings(data_dir="/x"), {}) == Path("/x")


def test_the_page_of_settings_is_up_to_date() -> None:
    assert PAGE.read_text() == render_page(), "run: python -m nightfill.cli.settings_page > docs/settings.md"


def test_every_setting_is_described() -> None:
    def rows(kind: Any) -> list[str]:
        return [field.name for field in msgspec.structs.fields(kind)]

    page = render_page()
    for line in page.splitlines():
        if line.startswith("| `"):
            assert len(line.split("|")[4].strip()) > 10, line
    assert all(f"`{name}`" in page or f".{name}`" in page for name in rows(Settings) if name not in ("engines", "kv"))
