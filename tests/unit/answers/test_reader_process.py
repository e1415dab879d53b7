"""The real process with the real model, and processes that misbehave."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest

from nightfill.answers import reader_process
from nightfill.answers.embed import load_embedder
from nightfill.answers.reader import Embed, Embedded, Judged, Ready, Said, Unfit, framed, unframed
from nightfill.answers.reader_process import ReaderProcess
from nightfill.errors import BadSetting, ReaderUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

TEXTS = ["How do I cancel my order?", "Wo ist der Hafen?", ""]


@pytest.fixture
def reader() -> Iterator[ReaderProcess]:
    reader = ReaderProcess.started()
    yield reader
    reader.close()


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader_process, "_FIRST_WAIT_S", 0.0)


def misbehaving(tmp_path: Path, body: str, *, reply_s: float = 5.0) -> ReaderProcess:
    """A process that says it is ready, then does `body` with what it hears."""
    program = tmp_path / "child.py"
    program.write_text(
        "import os, socket, sys, time\n"
        "from nightfill.answers.reader import *\n"
        "line = socket.socket(fileno=0)\n"
        f"{body}\n",
        encoding="utf-8",
    )
    return ReaderProcess("", command=[sys.executable, str(program)], reply_s=reply_s)


READY = "line.sendall(framed(Ready('x')))\n"


def test_it_reads_as_embedder_and_guard_do(reader: ReaderProcess) -> None:
    embedder = load_embedder()
    assert reader.identity == embedder.identity
    assert np.array_equal(reader.embed(TEXTS), embedder.embed(TEXTS))
    assert reader.embed([]).shape == (0, 384)
    asked = "How can I cancel my order?"
    assert reader.judge(asked, ["How can I not cancel my order?", "How do I cancel my order?"]) == (1, "")
    assert reader.judge(asked, ["How can I pay my order?", "What is it?"])[0] is None
    assert reader.judge(asked, ["How can I not cancel my order?"])[1] == "negation"
    assert reader.judge(asked, []) == (None, "")


def test_a_long_question_gets_there(reader: ReaderProcess) -> None:
    long = "a question of many words " * 100_000
    assert np.array_equal(reader.embed([long]), reader.embed([long[:5000]])), "only its beginning counts"
    assert reader.judge(long, ["short?"]) == (None, "length")


def test_it_has_little_weight_and_short_slices(reader: ReaderProcess) -> None:
    assert reader.pid is not None
    assert os.getpriority(os.PRIO_PROCESS, reader.pid) == min(os.getpriority(os.PRIO_PROCESS, 0) + 7, 19)
    told = Path(f"/proc/{reader.pid}/sched").read_text(encoding="ascii")
    slices = [int(line.split(":")[1]) for line in told.splitlines() if line.startswith("se.slice")]
    assert slices in ([], [100_000]), "not every kernel tells"


def test_one_of_a_gateway_that_is_nice_itself_is_nicer(tmp_path: Path) -> None:
    program = (
        "import os\n"
        "from nightfill.answers.reader_process import ReaderProcess\n"
        "reader = ReaderProcess.started()\n"
        "print(os.getpriority(os.PRIO_PROCESS, 0), os.getpriority(os.PRIO_PROCESS, reader.pid))\n"
        "reader.close()\n"
    )
    nice = ["nice", "-n", "10", sys.executable, "-c", program]
    said = subprocess.run(nice, capture_output=True, text=True, check=True, cwd=tmp_path, timeout=120).stdout
    own, its = map(int, said.split())
    assert own >= 10
    assert its == min(own + 7, 19), "19 is the nicest there is"


def test_several_threads_may_ask_at_once(reader: ReaderProcess) -> None:
    wanted = [reader.embed([text])[0] for text in TEXTS]
    wrong: list[object] = []

    def ask(n: int) -> None:
        for _ in range(20):
            if not np.array_equal(reader.embed([TEXTS[n]])[0], wanted[n]):
                wrong.append(n)
            if reader.judge(TEXTS[n], [TEXTS[n] + " not"])[0] is not None:
                wrong.append(n)

    threads = [threading.Thread(target=ask, args=(n % 2,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM])
def test_one_that_is_killed_is_noticed_and_mended(reader: ReaderProcess, sign: signal.Signals) -> None:
    first = reader.pid
    assert first is not None
    vectors = reader.embed(TEXTS)
    os.kill(first, sign)
    os.waitid(os.P_PID, first, os.WEXITED | os.WNOWAIT)
    with pytest.raises(ReaderUnavailable, match="the process that reads questions"):
        reader.embed(TEXTS)
    with pytest.raises(ReaderUnavailable, match="is gone"):
        reader.judge("a", ["b"])
    reader.mend()
    assert reader.pid not in (None, first)
    assert np.array_equal(reader.embed(TEXTS), vectors)
    second = reader.pid
    reader.mend()
    assert reader.pid == second, "nothing is to be mended"


def test_one_that_dies_while_nobody_asks_is_started_again_after_a_while(
    reader: ReaderProcess, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader_process, "_FIRST_WAIT_S", 3600.0)
    assert reader.pid is not None
    os.kill(reader.pid, signal.SIGKILL)
    os.waitid(os.P_PID, reader.pid, os.WEXITED | os.WNOWAIT)
    reader.mend()
    reader.mend()
    assert reader.pid is None
    assert caplog.text.count("the process that reads questions ended (status -9): no near answers for 60 s") == 1


def test_waits_between_starts_get_longer_and_say_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader_process, "_FIRST_WAIT_S", 0.01)
    reader = misbehaving(tmp_path, "sys.exit(7)")
    until_s = time.monotonic() + 60
    while caplog.text.count("cannot be started: ended") < 4:
        assert time.monotonic() < until_s
        reader.mend()
    waits = [record.args[-1] for record in caplog.records if isinstance(record.args, tuple)]
    assert waits[:4] == [0.01, 0.02, 0.04, 0.08]
    reader.close()


def test_one_that_hangs_is_ended(reader: ReaderProcess) -> None:
    reader._reply_s = 0.2
    assert reader.pid is not None
    pid = reader.pid
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(ReaderUnavailable, match=r"said nothing for 0\.2 s"):
        reader.embed(TEXTS)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("sys.exit(0)", "ended"),
        ("line.sendall(b'\\xff' * 100)", "cannot be understood: a message of 4294967295 bytes"),
        ("line.sendall(b'\\x04\\0\\0\\0\\xc1\\xc1\\xc1\\xc1')", "cannot be understood"),
        ("line.sendall(b'\\x04\\0\\0\\0\\xc1')", "cannot be understood: 3 of 4 bytes are missing"),
        ("line.sendall(b'\\x04\\0\\0\\0')", "cannot be understood: a message without its content"),
        ("line.sendall(b'\\x04')", "cannot be understood: 3 of 4 bytes are missing"),
        ("line.sendall(framed(Judged(0, '')))", "said Judged instead of Embedded"),
        ("line.sendall(framed(Embedded(b'1234' * 384)))", "said 1536 bytes of vectors for 3 texts"),
    ],
)
def test_nonsense_is_not_taken_for_an_answer_and_ends_it(
    tmp_path: Path, body: str, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    reader = misbehaving(tmp_path, f"{READY}unframed(line.recv)\n{body}")
    reader.mend()
    assert reader.identity == "x"
    with pytest.raises(ReaderUnavailable):
        reader.embed(TEXTS)
    assert why in caplog.text
    assert reader.pid is None
    reader.close()


def test_what_the_process_lacks_is_said_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match=r"answers\.embedding: .*model.*cannot be read") as caught:
        ReaderProcess.started(str(tmp_path / "model"))
    assert caught.value.param == "answers.embedding"


@pytest.mark.usefixtures("at_once")
def test_another_embedding_than_at_the_start_is_not_compared_with_the_first(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    seen = tmp_path / "seen"
    body = f"line.sendall(framed(Ready('second' if os.path.exists({str(seen)!r}) else 'first')))\nline.recv(1)"
    reader = misbehaving(tmp_path, body)
    reader.mend()
    seen.touch()
    with pytest.raises(ReaderUnavailable):
        reader.embed(TEXTS)
    reader.mend()
    assert "computes another embedding than before; start the gateway anew" in caplog.text
    assert (reader.identity, reader.pid) == ("first", None)


def test_who_waits_for_an_answer_hears_of_the_end(tmp_path: Path) -> None:
    reader = misbehaving(tmp_path, f"{READY}unframed(line.recv)\nline.recv(1)", reply_s=60)
    reader.mend()
    errors: list[ReaderUnavailable] = []

    def ask() -> None:
        try:
            reader.embed(TEXTS)
        except ReaderUnavailable as exc:
            errors.append(exc)

    thread = threading.Thread(target=ask)
    thread.start()
    time.sleep(0.2)
    began_s = time.monotonic()
    reader.close()
    thread.join(10)
    assert time.monotonic() - began_s < 10
    assert len(errors) == 1
    reader.mend()
    assert reader.pid is None, "closed is closed"


def test_it_ends_with_whoever_started_it() -> None:
    program = (
        "import os, sys, time\n"
        "from nightfill.answers.reader_process import ReaderProcess\n"
        "print(ReaderProcess.started().pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        pid = int(starter.stdout.readline())
        starter.kill()
    until_s = time.monotonic() + 30
    while Path(f"/proc/{pid}/cmdline").exists() and b"reader_child" in Path(f"/proc/{pid}/cmdline").read_bytes():
        assert time.monotonic() < until_s
        time.sleep(0.05)


@pytest.mark.parametrize(
    "message", [Ready("é"), Embed(("", "a" * 100_000)), Embedded(b"\0" * 3), Judged(None, "word"), Unfit("x", None)]
)
def test_messages_travel_in_pieces(message: Said | Embed) -> None:
    content = framed(message)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sender = threading.Thread(target=ours.sendall, args=(content,))
        sender.start()
        got = unframed(lambda count: theirs.recv(min(count, 777)))
        sender.join(10)
    assert got is not None
    assert msgspec.msgpack.decode(got, type=type(message)) == message


def test_a_message_that_is_too_long_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nightfill.answers.reader.MAX_BYTES", 10)
    with pytest.raises(ValueError, match=r"a message of \d+ bytes \(at most 10\)"):
        framed(Embed(("a" * 20,)))
