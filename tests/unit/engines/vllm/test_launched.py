from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from nightfill.config import ByteSize, EngineSettings, LaunchSettings, Settings, SpeculationSettings
from nightfill.engines.vllm.launched import called, inherited, launched
from nightfill.errors import BadSetting

if TYPE_CHECKING:
    from nightfill.engines.vllm.args import Launch

ENGINE = EngineSettings(name="v1", kind="vllm", model="/models/mine", device="gpu0")
CPU = LaunchSettings(cpu=True)


def start(engine: EngineSettings = ENGINE) -> Launch:
    return launched(
        Settings(engines=(engine,)), engine, data_dir=Path("/data"), port=4000, api_key="k1", settings_file="/data/f"
    )


def values(argv: tuple[str, ...], flag: str) -> list[str]:
    return [argv[place + 1] for place, word in enumerate(argv) if word == flag]


def test_it_listens_on_loopback_and_behind_the_door() -> None:
    found = start()
    assert found.argv[:3] == ("vllm", "serve", "/models/mine")
    assert values(found.argv, "--host") == ["127.0.0.1"]
    assert values(found.argv, "--port") == ["4000"]
    assert values(found.argv, "--served-model-name") == ["mine"]
    assert values(found.argv, "--middleware") == ["nightfill.engines.vllm.door.Door"]
    assert found.env["VLLM_API_KEY"] == "k1"
    assert "k1" not in found.argv


def test_what_people_ask_is_not_logged() -> None:
    assert {"--no-enable-log-requests", "--no-log-error-stack", "--disable-uvicorn-access-log"} <= set(start().argv)


def test_the_program_and_the_rest_of_its_arguments_and_environment_are_the_users() -> None:
    launch = LaunchSettings(
        command=("taskset", "--cpu-list", "0-7", "vllm"),
        args=("--max-num-seqs", "8"),
        env={"HF_HUB_OFFLINE": "1", "VLLM_API_KEY": "theirs", "VLLM_SERVER_DEV_MODE": "0"},
        tensor_parallel_size=2,
        kv_cache_bytes=ByteSize(1 << 30),
        host_bytes=ByteSize(1 << 20),
    )
    found = start(msgspec.structs.replace(ENGINE, launch=launch))
    assert found.argv[:5] == ("taskset", "--cpu-list", "0-7", "vllm", "serve")
    assert found.argv[-2:] == ("--max-num-seqs", "8")
    assert values(found.argv, "--tensor-parallel-size") == ["2"]
    assert values(found.argv, "--kv-cache-memory-bytes") == [str(1 << 30)]
    assert '"cpu_bytes_to_use":1048576' in values(found.argv, "--kv-transfer-config")[0]
    assert (found.env["HF_HUB_OFFLINE"], found.env["VLLM_API_KEY"]) == ("1", "k1")
    assert found.env["VLLM_SERVER_DEV_MODE"] == "1"


@pytest.mark.parametrize("word", ["--port", "--port=1", "--host", "--api-key", "--uds", "--served-model-name=x"])
def test_how_it_is_reached_is_not_for_the_user(word: str) -> None:
    engine = msgspec.structs.replace(ENGINE, launch=LaunchSettings(args=(word,)))
    with pytest.raises(BadSetting, match=f"launch.args: {word}: nightfill sets that itself"):
        start(engine)


@pytest.mark.parametrize(
    ("device", "launch", "method", "flags"),
    [
        ("gpu0", LaunchSettings(), "none", ["--enable-sleep-mode"]),
        ("gpu0", LaunchSettings(), "ngram", ["--enable-sleep-mode"]),
        ("gpu0", LaunchSettings(), "mtp", ["--enable-sleep-mode", "--sleep-preserve-parameter-names"]),
        ("", LaunchSettings(), "none", []),
        ("ram", CPU, "mtp", []),
    ],
)
def test_sleep_is_for_models_on_gpus_that_have_a_device(
    device: str, launch: LaunchSettings, method: str, flags: list[str]
) -> None:
    speculation = SpeculationSettings(method=method)  # type: ignore[arg-type]
    engine = msgspec.structs.replace(ENGINE, device=device, launch=launch, speculation=speculation)
    assert [word for word in start(engine).argv if "sleep" in word] == flags


def test_a_model_is_called_by_its_folder_unless_somebody_says_otherwise() -> None:
    names = {"/models/mine": "mine", "./mine": "mine", "~/models/mine": "mine", "org/model": "org/model"}
    assert {model: called(EngineSettings(model=model)) for model in names} == names
    assert called(EngineSettings(model="/models/mine", served_model_name="best")) == "best"


def test_a_folder_of_the_user_is_found() -> None:
    engine = msgspec.structs.replace(ENGINE, model="~/models/mine")
    assert start(engine).argv[2] == str(Path("~/models/mine").expanduser())


def test_our_own_settings_are_not_inherited() -> None:
    assert inherited({"NIGHTFILL_STATE": "redis://:secret@h", "PATH": "/bin"}) == {"PATH": "/bin"}
