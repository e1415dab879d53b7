"""Stored files are damaged, lost, swapped, or another's: every query is still answered, and never from wrong KV."""

from __future__ import annotations

import json
import os
import random
import shutil
from typing import TYPE_CHECKING, Any, Final

import pytest

from nightfill.config import KvSettings
from nightfill.contexts.context import Tenant
from nightfill.kv import open_store, salt_of
from nightfill.kv.key import BlockKey
from serving import Serve, distance, eventually, source_text

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from serving import Answer

pytestmark = pytest.mark.e2e

SAME: Final = 0.3
"""Nats; see `serving.distance`."""
DISK: Final[dict[str, Any]] = {"kind": "disk", "max_bytes": "1GB", "min_free_bytes": 0}
ON_DISK: Final[dict[str, Any]] = {
    # One slot, which any other question takes, and no copies in memory: each use of a context reads the disk.
    "engines": [{"model": "demo:tiny", "slots": 1}],
    "kv": {"tiers": [DISK]},
    "sleep": {"plan_every_s": 0.3},
}


def ask(serve: Serve, context: str = "c", **given: Any) -> Answer:
    """Ask for a context's distribution, after something else was in the slot."""
    assert serve.ask("Something else.").status == 200
    answer = serve.ask(context=context, logprobs=True, top_logprobs=10, **given)
    assert answer.status == 200, answer.body
    return answer


def blocks(serve: Serve) -> list[Path]:
    return sorted((serve.data_dir / "kv").rglob("*.kv"))


def ready_tokens(serve: Serve, name: str = "c") -> int:
    serve.wait_ready(name)
    (fill,) = [fill for fill in serve.fills(name) if fill["state"] == "ready"]
    assert fill["stored_tokens"] == fill["tokens"]
    return int(fill["tokens"])


def done_fills(serve: Serve) -> int:
    return sum((job["kind"], job["state"]) == ("fill", "done") for job in serve.jobs())


def flip(path: Path, at: int, *, length: int = 1) -> None:
    data = bytearray(path.read_bytes())
    for place in range(at, min(len(data), at + length)):
        data[place] ^= 0x20
    path.write_bytes(data)


# --- blocks ---


def _flip_header(path: Path, _other: Path, rng: random.Random) -> None:
    flip(path, rng.randrange(64))


def _flip_payload(path: Path, _other: Path, rng: random.Random) -> None:
    flip(path, 4096 + rng.randrange(path.stat().st_size - 8192))


def _flip_many(path: Path, _other: Path, rng: random.Random) -> None:
    flip(path, rng.randrange(path.stat().st_size // 2), length=5000)


def _halve(path: Path, _other: Path, _rng: random.Random) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _cut_one_page(path: Path, _other: Path, _rng: random.Random) -> None:
    os.truncate(path, path.stat().st_size - 4096)


def _empty(path: Path, _other: Path, _rng: random.Random) -> None:
    os.truncate(path, 0)


def _lengthen(path: Path, _other: Path, _rng: random.Random) -> None:
    os.truncate(path, path.stat().st_size + 4096)


def _zero(path: Path, _other: Path, _rng: random.Random) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def _delete(path: Path, _other: Path, _rng: random.Random) -> None:
    path.unlink()


def _replace(path: Path, other: Path, _rng: random.Random) -> None:
    shutil.copyfile(other, path)


BLOCK_DAMAGES: Final = (
    *(_flip_header, _flip_payload, _flip_many, _halve, _cut_one_page, _empty, _lengthen, _zero, _delete, _replace),
)


@pytest.mark.timeout(200)
def test_damaged_blocks_are_misses_and_are_filled_again_by_themselves(new_serve: Callable[..., Serve]) -> None:
    seed = random.randrange(10**6)
    print(f"seed {seed}")  # noqa: T201
    rng = random.Random(seed)
    serve = new_serve(settings=ON_DISK).start()
    serve.put("other", source_text(2, functions=50))
    serve.wait_ready("other")
    others = blocks(serve)
    serve.put("c", source_text(1, functions=50))
    tokens = ready_tokens(serve)
    whole = ask(serve)
    assert (whole.layer, whole.reused) == ("fill", tokens)
    assert distance(whole, ask(serve, skip=("fill",))) < SAME
    assert distance(whole, ask(serve, "other")) > SAME, "the measure could not tell wrong KV from right"
    for turn, damage in enumerate(BLOCK_DAMAGES, start=1):
        # Not the last one: it has a few tokens only, and no promise is broken by so little.
        ours = sorted(set(blocks(serve)) - set(others), key=lambda path: path.stat().st_size)[1:]
        before = serve.metrics()
        damage(rng.choice(ours), rng.choice(others), rng)
        answer = ask(serve)
        where = f"{damage.__name__}, seed {seed}"
        assert distance(answer, whole) < SAME, where
        assert answer.reused < tokens, where

        def grown(name: str, before: dict[str, float] = before) -> float:
            return serve.metrics()[name] - before.get(name, 0)

        missed = 'nightfill_kv_misses_total{tier="disk"}'
        corrupt = 'nightfill_kv_corrupt_total{tier="disk"}'
        assert (grown(missed), grown(corrupt)) == ((1, 0) if damage is _delete else (0, 1)), where
        # Judged when the answer is out.
        eventually(lambda: grown("nightfill_broken_promises_total") == 1, within_s=5, what=f"counted: {where}")
        eventually(lambda turn=turn: done_fills(serve) == 2 + turn, within_s=60, what=f"filled again: {where}")  # type: ignore[misc]
        assert ready_tokens(serve) == tokens, where
        again = ask(serve)
        assert (again.layer, again.reused) == ("fill", tokens), where
        assert distance(again, whole) < SAME, where


def test_a_store_that_is_gone_is_made_and_filled_again(new_serve: Callable[..., Serve]) -> None:
    serve = new_serve(settings=ON_DISK).start()
    serve.put("c", source_text(1, functions=50))
    tokens = ready_tokens(serve)
    whole = ask(serve)
    shutil.rmtree(serve.data_dir / "kv")
    answer = ask(serve)
    assert answer.reused < tokens / 2
    assert distance(answer, whole) < SAME
    eventually(lambda: done_fills(serve) == 2, within_s=60, what="filled again")
    assert ask(serve).reused == tokens


# --- scratch folders ---


def test_scratch_folders_removed_under_the_server_cost_nothing_but_a_prefill(new_serve: Callable[..., Serve]) -> None:
    settings = {**ON_DISK, "scratch_dir": ""}
    serve = new_serve()
    scratch = serve.data_dir.parent / "scratch"
    serve.config.write_text(json.dumps({**settings, "scratch_dir": str(scratch)}), encoding="utf-8")
    serve.start()
    serve.put("c", source_text(1, functions=50))
    tokens = ready_tokens(serve)
    whole = ask(serve)
    assert whole.reused == tokens
    shutil.rmtree(scratch)
    answer = ask(serve)
    assert distance(answer, whole) < SAME
    assert ask(serve).reused == tokens, "the folder is made again"
    serve.put("d", source_text(2, functions=50))
    serve.wait_ready("d")
    assert ask(serve, "d").layer == "fill"


# --- the state file, the load board, the note of the weights' digest ---


def test_a_lost_state_file_costs_the_names_but_not_the_kv(new_serve: Callable[..., Serve]) -> None:
    serve = new_serve(settings=ON_DISK).start()
    serve.put("c", source_text(1, functions=50))
    tokens = ready_tokens(serve)
    whole = ask(serve)
    serve.stop()
    for path in serve.data_dir.glob("state.db*"):
        path.unlink()
    serve.start()
    assert serve.ask().status == 200
    assert serve.ask(context="c").status == 404
    serve.put("c", source_text(1, functions=50))
    assert ready_tokens(serve) == tokens
    assert serve.logged(r"ready, \d+ tokens, (\d+) computed now")[-1] == "0"
    again = ask(serve)
    assert again.reused == tokens
    assert distance(again, whole) < SAME


@pytest.mark.parametrize("damage", ["header", "garbage", "cut"])
def test_a_damaged_state_file_is_refused_at_the_start_in_one_clear_line(
    new_serve: Callable[..., Serve], damage: str
) -> None:
    serve = new_serve(settings=ON_DISK).start()
    serve.put("c", source_text(1, functions=10))
    serve.wait_ready("c")
    serve.stop()
    state = serve.data_dir / "state.db"
    match damage:
        case "header":
            flip(state, 0, length=16)
        case "garbage":
            state.write_bytes(random.Random(1).randbytes(state.stat().st_size))
        case _:
            os.truncate(state, 5000)
    ran = serve.cli("serve", "--model", "demo:tiny", "--port", "0")
    assert ran.returncode == 1
    assert "Traceback" not in ran.stderr
    assert str(state) in ran.stderr
    assert "doctor" in ran.stderr


def test_a_state_file_that_is_damaged_under_the_server_harms_no_query_without_a_context(
    new_serve: Callable[..., Serve],
) -> None:
    serve = new_serve(settings=ON_DISK).start()
    serve.put("c", source_text(1, functions=10))
    serve.wait_ready("c")
    for path in serve.data_dir.glob("state.db*"):
        with path.open("r+b") as file:
            file.write(random.Random(2).randbytes(path.stat().st_size))
    for _ in range(5):
        assert serve.ask().status == 200
    named = serve.ask(context="gone")
    assert named.status in (404, 503)
    assert serve.request("GET", "/healthz").status == 200
    assert serve.metrics()


@pytest.mark.parametrize("damage", ["flipped", "cut", "deleted", "another's"])
def test_a_damaged_load_board_is_made_anew(new_serve: Callable[..., Serve], damage: str) -> None:
    serve = new_serve(settings=ON_DISK).start()
    serve.put("c", source_text(1, functions=10))
    tokens = ready_tokens(serve)
    serve.stop()
    board = serve.data_dir / "load.board"
    match damage:
        case "flipped":
            flip(board, 0, length=board.stat().st_size)
        case "cut":
            os.truncate(board, 100)
        case "deleted":
            board.unlink()
        case _:
            board.write_bytes(random.Random(3).randbytes(10_000))
    serve.start()
    assert ask(serve).reused == tokens
    serve.put("d", source_text(2, functions=10))
    serve.wait_ready("d")


def test_a_damaged_note_of_the_weights_digest_means_other_keys_or_the_same_never_wrong_kv(
    new_serve: Callable[..., Serve], tmp_path: Path
) -> None:
    home = tmp_path / "home"
    serve = Serve(tmp_path / "own", home=home, settings=ON_DISK)
    try:
        serve.start()
        serve.put("c", source_text(1, functions=20))
        tokens = ready_tokens(serve)
        whole = ask(serve)
        serve.stop()
        (note,) = (home / ".cache" / "nightfill").glob("sha256-*.json")
        content = note.read_bytes()
        known = json.loads(content)
        digits = known["sha256"]
        other = ("0" if digits[0] != "0" else "1") + digits[1:]
        for damaged, reused in (
            (content[: len(content) // 2], tokens),
            (b"", tokens),
            (content.replace(b'"size":', b'"sise":'), tokens),
            (json.dumps({**known, "inode": 1, "sha256": other}).encode(), tokens),
            (json.dumps({**known, "sha256": other}).encode(), 0),
            (None, tokens),
        ):
            if damaged is None:
                note.unlink()
            else:
                note.write_bytes(damaged)
            serve.start()
            answer = ask(serve)
            assert distance(answer, whole) < SAME
            assert (answer.reused >= tokens) is (reused > 0)
            serve.stop()
    finally:
        serve.close()


# --- another's KV ---


def other_weights(model: Path, target: Path) -> Path:
    """A model of the same shape with other weights: signs changed in the last tenth of the file."""
    data = bytearray(model.read_bytes())
    rng = random.Random(5)
    for _ in range(5000):
        # The high byte of some little-endian 16-bit floats.
        place = rng.randrange(len(data) * 9 // 10, len(data)) | 1
        data[place] ^= 0x80
    target.write_bytes(data)
    return target


@pytest.mark.timeout(200)
def test_another_model_on_the_same_folder_uses_nothing_of_the_first(
    new_serve: Callable[..., Serve], serve_home: Path, tmp_path: Path
) -> None:
    first = new_serve("first", settings=ON_DISK).start()
    first.put("c", source_text(1, functions=30))
    tokens = ready_tokens(first)
    mine = ask(first)
    first.stop()
    (model,) = (serve_home / ".cache" / "nightfill").rglob("*tiny*.gguf")
    twin = other_weights(model, tmp_path / "twin.gguf")
    settings = {**ON_DISK, "engines": [{"model": str(twin), "slots": 1}]}
    second = new_serve("second", settings=settings, model=str(twin), data_dir=first.data_dir, arguments=("--no-sleep",))
    second.start()
    answer = ask(second)
    assert (answer.layer, answer.headers["x-nightfill-promised-tokens"]) == ("cold", "0")
    assert answer.reused < 8, "what the question before has in common"
    assert distance(answer, mine) > SAME
    second.stop()
    filling = new_serve("filling", settings=settings, model=str(twin), data_dir=first.data_dir).start()
    eventually(
        lambda: [fill["state"] for fill in filling.fills("c")].count("ready") == 2, within_s=60, what="two fills"
    )
    filled = ask(filling)
    assert (filled.layer, filled.reused) == ("fill", tokens)
    assert distance(filled, answer) < SAME
    filling.stop()
    first.start()
    again = ask(first)
    assert (again.layer, again.reused) == ("fill", tokens)
    assert distance(again, mine) < SAME


def test_a_model_of_another_shape_on_the_same_folder_uses_nothing_of_the_first(
    new_serve: Callable[..., Serve],
) -> None:
    first = new_serve("first", settings=ON_DISK).start()
    first.put("c", source_text(1, functions=10))
    ready_tokens(first)
    first.stop()
    settings = {**ON_DISK, "engines": [{"model": "demo:small", "slots": 1}]}
    second = new_serve("second", settings=settings, model="demo:small", data_dir=first.data_dir).start()
    cold = ask(second, skip=("fill",))
    eventually(lambda: [fill["state"] for fill in second.fills("c")].count("ready") == 2, within_s=60, what="two fills")
    filled = ask(second)
    assert filled.layer == "fill"
    assert distance(filled, cold) < SAME
    assert second.metric("nightfill_broken_promises_total") == 0


def test_a_second_server_on_the_same_folder_is_refused(new_serve: Callable[..., Serve]) -> None:
    first = new_serve("first").start()
    second = new_serve("second", data_dir=first.data_dir)
    ran = second.cli("serve", "--model", "demo:tiny", "--port", "0")
    assert ran.returncode == 2
    assert f"process {first.pid} already serves" in ran.stderr
    assert first.ask().status == 200


def test_blocks_of_another_length_are_not_mixed(new_serve: Callable[..., Serve]) -> None:
    first = new_serve("first", settings=ON_DISK).start()
    first.put("c", source_text(1, functions=30))
    tokens = ready_tokens(first)
    whole = ask(first)
    first.stop()
    settings = {**ON_DISK, "kv": {**ON_DISK["kv"], "block_tokens": 128}}
    second = new_serve("second", settings=settings, data_dir=first.data_dir).start()
    answer = ask(second)
    assert distance(answer, whole) < SAME
    eventually(lambda: ask(second).reused == tokens, within_s=60, what="filled again in the new blocks")
    assert distance(ask(second), whole) < SAME


# --- encryption at rest ---


def rows_of(serve: Serve, settings: KvSettings) -> list[bytes]:
    """Some 64-byte pieces of the payload of each stored block."""
    store = open_store(settings, data_dir=serve.data_dir)
    pieces = []
    try:
        for path in blocks(serve):
            block = store.get(BlockKey(bytes.fromhex(path.stem)), salt=salt_of(Tenant("default")))
            assert block is not None
            payload = bytes(block.payload)
            pieces += [payload[at : at + 64] for at in range(0, len(payload) - 64, len(payload) // 20)]
    finally:
        store.close()
    return [piece for piece in pieces if len(set(piece)) > 16]


def on_disk(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def test_with_a_key_file_neither_kv_nor_text_lies_in_the_clear_and_another_key_is_a_miss(
    new_serve: Callable[..., Serve], tmp_path: Path
) -> None:
    key = tmp_path / "key"
    key.write_bytes(random.Random(7).randbytes(32))
    key.chmod(0o600)
    text = "xyzzy plugh " + source_text(1, functions=30)
    plain = new_serve("plain", settings=ON_DISK).start()
    plain.put("c", text)
    ready_tokens(plain)
    plain.stop()
    kv = ON_DISK["kv"]
    tier = {**DISK, "max_bytes": 10**9}
    rows = rows_of(plain, _kv_settings({"tiers": [tier]}))
    bytes_on_disk = on_disk(plain.data_dir)
    assert all(row in bytes_on_disk for row in rows), "the search finds what is there in the clear"
    assert b"xyzzy plugh" in bytes_on_disk

    sealed = new_serve("sealed", settings={**ON_DISK, "kv": {**kv, "key_file": str(key)}}).start()
    sealed.put("c", text)
    tokens = ready_tokens(sealed)
    whole = ask(sealed)
    assert whole.reused == tokens
    sealed.stop()
    rows = rows_of(sealed, _kv_settings({"tiers": [tier], "key_file": str(key)}))
    assert len(rows) > 20
    bytes_on_disk = on_disk(sealed.data_dir)
    assert not any(row in bytes_on_disk for row in rows)
    assert b"xyzzy plugh" not in bytes_on_disk

    # Another key: texts cannot be read, so a query that needs one is refused; KV is not touched.
    key.write_bytes(random.Random(8).randbytes(32))
    sealed.start()
    assert sealed.ask().status == 200
    named = sealed.ask(context="c")
    assert named.status == 503
    assert "sealed with another key" in named.error["message"]
    assert named.headers["retry-after"]
    other = source_text(2, functions=30)
    sealed.put("new", other)
    ready_tokens(sealed, "new")
    # The same text, put again: its KV lies there under the old key, is a miss, and is filled again.
    sealed.put("c", text)
    assert ready_tokens(sealed) == tokens
    again = ask(sealed)
    assert again.reused == tokens
    assert distance(again, whole) < SAME


def _kv_settings(given: dict[str, Any]) -> KvSettings:
    import msgspec

    from nightfill.cli.units import decode_unit

    return msgspec.convert(given, KvSettings, dec_hook=decode_unit)
