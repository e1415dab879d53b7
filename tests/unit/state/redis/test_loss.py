"""What happens to the state when its server is away, slow, lost or not what it should be."""

from __future__ import annotations

import asyncio
import time
from contextlib import closing
from typing import TYPE_CHECKING, TypeVar

import pytest

from fakes.certificate import certificate
from fakes.cutting_proxy import CuttingProxy
from fakes.redis_server import RedisServer, free_port, tls_options
from fakes.state import told
from fakes.stores import redis_server
from nightfill.contexts.context import ContextName, Form, Tenant, Text, TextSource
from nightfill.contexts.fingerprint import fingerprint_of
from nightfill.errors import BadSetting, LeaseLost, StateUnavailable
from nightfill.state.access import Access
from nightfill.state.jobs import JobKind, JobState, Work, WorkerId
from nightfill.state.redis import RedisState, open_redis_state
from nightfill.state.redis.changes import SETTLE_S

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from pathlib import Path

    from nightfill.state.jobs import Job, Lease

R = TypeVar("R")
A = WorkerId("worker-a")
T = Tenant("default")


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """One of the test's own, which may be killed."""
    made = RedisServer(tcp=True)
    yield made
    made.close()


@pytest.fixture
async def proxy() -> AsyncIterator[CuttingProxy]:
    shared = redis_server()
    shared.call([b"FLUSHALL"])
    async with CuttingProxy(path=shared.path) as made:
        yield made


@pytest.fixture
async def state(proxy: CuttingProxy) -> AsyncIterator[RedisState]:
    async with open_redis_state(proxy.url, timeout_s=0.3) as opened:
        yield opened


async def enqueue(state: RedisState, target: str = "t/1", tokens: int = 100) -> Job:
    return await state.jobs.enqueue(
        kind=JobKind.FILL,
        target=target,
        tenant="t",
        label="repo",
        priority=1.0,
        total_tokens=tokens,
        reserve_tokens=tokens,
    )


async def lease(state: RedisState) -> Lease | None:
    return await state.jobs.lease(A, kinds=[JobKind.FILL], lease_s=30)


async def leased(state: RedisState) -> Lease:
    held = await lease(state)
    assert held is not None
    return held


async def back(act: Callable[[], Awaitable[R]]) -> R:
    """What `act` gives once the server answers again."""
    async with asyncio.timeout(10):
        while True:
            try:
                return await act()
            except StateUnavailable:
                await asyncio.sleep(0.01)


def use(at_s: float) -> Access:
    return Access(
        at_s=at_s,
        tenant=T,
        context=ContextName("repo"),
        fingerprint=None,
        form=Form.CHAT,
        model="m",
        layer="fill",
        prompt_tokens=10,
        promised_tokens=8,
        reused_tokens=8,
        output_tokens=3,
        ttft_s=0.1,
        total_s=0.2,
        restore_s=0.01,
        status=200,
    )


async def spent(state: RedisState) -> tuple[int, int]:
    line = (await state.budgets.lines())[0]
    return line.spent, line.reserved


async def test_a_connection_that_was_cut_is_made_anew_and_nobody_notices(
    proxy: CuttingProxy, state: RedisState
) -> None:
    job = await enqueue(state)
    for _ in range(3):
        proxy.cut()
        assert await state.jobs.get(job.id) is not None
    assert proxy.accepted == 4


async def test_a_lease_whose_answer_was_lost_is_the_one_that_the_next_call_gives(
    proxy: CuttingProxy, state: RedisState
) -> None:
    await enqueue(state, "t/1")
    await enqueue(state, "t/2")
    proxy.drop_answer()
    first = await leased(state)
    assert (first.job.target, first.fence) == ("t/1", 1)
    assert len(await state.jobs.jobs(states=[JobState.LEASED])) == 1


async def test_a_lease_of_a_silent_server_is_found_again_when_it_speaks(proxy: CuttingProxy, state: RedisState) -> None:
    await enqueue(state, "t/1")
    await enqueue(state, "t/2")
    await state.jobs.depth()
    redis_server().pause()
    try:
        with pytest.raises(StateUnavailable, match="no answer within"):
            await lease(state)
    finally:
        redis_server().resume()
    held = await back(lambda: leased(state))
    assert (held.job.target, held.fence) == ("t/1", 1)
    assert held.expires_at_s == pytest.approx(held.job.updated_at_s + 30), "from the answer on, not from the question"
    assert len(await state.jobs.jobs(states=[JobState.LEASED])) == 1


async def test_nothing_is_charged_or_ended_twice_when_answers_are_lost(proxy: CuttingProxy, state: RedisState) -> None:
    await enqueue(state)
    held = await leased(state)
    proxy.drop_answer()
    held = await state.jobs.renew(
        held, lease_s=30, done_tokens=40, total_tokens=100, work=Work(tokens=40, seconds=0.5, machine="spot")
    )
    assert await spent(state) == (40, 60)
    proxy.drop_answer()
    await state.jobs.complete(held, outcome="fine", work=Work(tokens=90, seconds=1.0, machine="spot"))
    assert await spent(state) == (90, 0)
    assert await state.jobs.outcomes(JobKind.FILL) == {"fine": 1}
    today = held.job.created_at_s // 86400
    (line,) = await state.ledger.lines(since_day=int(today) - 1, until_day=int(today) + 1)
    assert (line.background_tokens, line.background_s, line.fills) == (90, 1.0, 1)
    with pytest.raises(LeaseLost):
        await state.jobs.complete(held)


async def test_an_outcome_that_may_have_been_counted_is_not_counted_again(
    proxy: CuttingProxy, state: RedisState
) -> None:
    await state.jobs.count(JobKind.VERIFY, "equal")
    proxy.drop_answer()
    with pytest.raises(StateUnavailable):
        await state.jobs.count(JobKind.VERIFY, "equal")
    assert await state.jobs.outcomes(JobKind.VERIFY) == {"equal": 2}


async def test_who_leaves_while_leasing_leaves_no_job_behind(proxy: CuttingProxy, state: RedisState) -> None:
    job = await enqueue(state)
    asking = asyncio.create_task(lease(state))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await state.aclose()
    async with open_redis_state(proxy.url) as other:
        found = await other.jobs.get(job.id)
    assert found is not None
    assert (found.state, found.worker, found.lost) == (JobState.QUEUED, None, 0)


async def test_a_server_that_is_away_is_said_to_be_so_at_once_and_found_when_it_is_back(
    proxy: CuttingProxy, state: RedisState
) -> None:
    job = await enqueue(state)
    proxy.cut(refuse=True)
    loop = asyncio.get_running_loop()
    for _ in range(50):
        begun_s = loop.time()
        with pytest.raises(StateUnavailable):
            await state.jobs.get(job.id)
        assert loop.time() - begun_s < 0.2
    assert proxy.accepted < 20, "it is left alone meanwhile"
    proxy.heal()
    assert await back(lambda: state.jobs.get(job.id)) is not None


async def test_the_book_says_that_it_does_not_know_of_changes_once_its_server_has_been_away_for_long(
    proxy: CuttingProxy, state: RedisState
) -> None:
    content = Text("hello")
    await state.book.put(
        tenant=T,
        name=ContextName("repo"),
        source=TextSource(),
        content=content,
        fingerprint=fingerprint_of(content),
        forms=[Form.CHAT],
    )
    known = await told(state.book)
    proxy.cut(refuse=True)
    with pytest.raises(StateUnavailable):
        await state.book.get(T, ContextName("repo"))
    cut_at_s = time.monotonic()
    said: list[int] = []
    async with asyncio.timeout(5):
        while not said or said[-1] == known:
            await asyncio.sleep(0.002)
            asked_at_s = time.monotonic()
            said.append(state.book.changes())
            assert said[-1] != known or asked_at_s <= cut_at_s + SETTLE_S
    assert 0 > said[-1] != state.book.changes() < 0, "each time another"
    proxy.heal()
    assert await back(lambda: state.book.get(T, ContextName("repo"))) is not None
    assert await told(state.book) == known


async def test_a_server_that_starts_again_with_nothing_is_filled_anew(server: RedisServer) -> None:
    async with open_redis_state(server.url) as state:
        await enqueue(state)
        before = await told(state.book)
        server.kill()
        with pytest.raises(StateUnavailable):
            await state.jobs.depth()
        server.start()
        assert await back(lambda: lease(state)) is None
        await back(lambda: enqueue(state))  # its scripts are gone as well
        assert (await leased(state)).job.target == "t/1"
        assert await told(state.book) >= before


async def test_a_server_that_is_full_does_nothing_by_halves(server: RedisServer) -> None:
    work = Work(tokens=40, seconds=0.5, machine="spot")
    async with open_redis_state(server.url) as state:
        await enqueue(state)
        server.call([b"CONFIG", b"SET", b"maxmemory", b"1"])
        with pytest.raises(StateUnavailable, match="OOM"):
            await enqueue(state, "t/2")
        held = await leased(state)
        with pytest.raises(StateUnavailable, match="OOM"):
            await state.jobs.complete(held, work=work)
        assert await spent(state) == (0, 100)
        server.call([b"CONFIG", b"SET", b"maxmemory", b"0"])
        await state.jobs.complete(held, work=work)
        assert await spent(state) == (40, 0)
        assert (await state.jobs.depth()).due == 0


async def test_a_key_of_another_program_is_an_error_not_a_crash(proxy: CuttingProxy, state: RedisState) -> None:
    redis_server().call([b"SET", b"{nightfill}:jobs", b"mine"])
    with pytest.raises(StateUnavailable, match="WRONGTYPE"):
        await enqueue(state)


async def test_the_password_is_needed_and_never_told() -> None:
    server = RedisServer(tcp=True, password="open sesame")
    try:
        where = f"127.0.0.1:{server.port}/0"
        async with open_redis_state(f"redis://:open%20sesame@{where}") as state:
            assert (await state.jobs.depth()).due == 0
        async with open_redis_state(f"redis://:another-word@{where}") as state:
            with pytest.raises(StateUnavailable, match="WRONGPASS") as refused:
                await state.jobs.depth()
        assert "another-word" not in str(refused.value)
        async with open_redis_state(f"redis://{where}") as state:
            with pytest.raises(StateUnavailable, match="NOAUTH"):
                await state.jobs.depth()
    finally:
        server.close()


async def test_tls_is_checked_against_the_authorities(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cert, key = certificate(tmp_path)
    port = free_port()
    with closing(RedisServer(*tls_options(port, cert, key))):
        async with open_redis_state(f"rediss://localhost:{port}") as state:
            with pytest.raises(StateUnavailable, match=r"cannot connect: .*CERTIFICATE_VERIFY_FAILED"):
                await state.jobs.depth()
        monkeypatch.setenv("SSL_CERT_FILE", str(cert))
        async with open_redis_state(f"rediss://localhost:{port}") as state:
            job = await enqueue(state)
            assert (await leased(state)).job.id == job.id
        async with open_redis_state(f"rediss://127.0.0.1:{port}") as state:
            with pytest.raises(StateUnavailable, match=r"not valid for '127\.0\.0\.1'"):
                await state.jobs.depth()


def test_an_address_that_is_none_is_refused_without_showing_its_password() -> None:
    with pytest.raises(BadSetting, match="state: expected redis://") as refused:
        open_redis_state("redis://user:hidden@/0")
    assert "hidden" not in str(refused.value)


async def test_a_row_of_the_access_log_whose_answer_was_lost_is_counted_once(
    proxy: CuttingProxy, state: RedisState
) -> None:
    rows = [use(1e9), use(1e9)]
    await state.jobs.depth()
    redis_server().pause()
    try:
        with pytest.raises(StateUnavailable):
            await state.access.append(rows)
    finally:
        redis_server().resume()
    rows.append(use(1e9 + 1))
    await back(lambda: state.access.append(rows))
    assert len(await state.access.recent()) == 3
    (line,) = await state.ledger.lines(since_day=0, until_day=1 << 20)
    assert line.requests == 3


async def test_too_many_waiting_calls_are_refused(proxy: CuttingProxy, state: RedisState) -> None:
    await state.jobs.depth()
    proxy.stall()
    calls = [asyncio.ensure_future(state.server.call("PING")) for _ in range(10_001)]
    await asyncio.wait(calls, timeout=5)
    failures = {str(call.exception()) for call in calls}
    assert any("wait for an answer already" in failure for failure in failures)
    assert any("no answer within" in failure for failure in failures)
    proxy.heal()
    assert await back(lambda: state.server.call("PING")) == b"PONG"


async def test_of_a_cluster_the_server_that_has_our_slot_is_found() -> None:
    bus = free_port()
    with (
        closing(RedisServer("--cluster-enabled", "yes", "--cluster-port", str(bus), tcp=True)) as ours,
        closing(RedisServer("--cluster-enabled", "yes", "--cluster-port", str(free_port()), tcp=True)) as other,
    ):
        slot = ours.call([b"CLUSTER", b"KEYSLOT", b"{nightfill}"])[0]
        assert isinstance(slot, int)
        for server in (ours, other):
            server.call([b"CONFIG", b"SET", b"cluster-require-full-coverage", b"no"])
        ours.call([b"CLUSTER", b"ADDSLOTS", b"%d" % slot])
        other.call([b"CLUSTER", b"MEET", b"127.0.0.1", b"%d" % ours.port, b"%d" % bus])
        async with open_redis_state(other.url) as state:
            job = await back(lambda: enqueue(state))
        async with open_redis_state(ours.url) as state:
            assert await state.jobs.get(job.id) == job
