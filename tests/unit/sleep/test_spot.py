from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from fakes.virtual_time import now_s, virtual
from nightfill.errors import EngineUnavailable
from nightfill.sleep.spot import CLOUDS, POLL_S, SpotWatch, notice

if TYPE_CHECKING:
    from collections.abc import Mapping

AWS = b'{"action": "terminate", "time": "2026-09-18T08:22:00Z"}'
AZURE = b"""{"DocumentIncarnation": 1, "Events": [
    {"EventId": "1", "EventType": "Reboot", "Resources": ["spot_1"], "NotBefore": ""},
    {"EventId": "2", "EventType": "Preempt", "Resources": ["spot_1"], "NotBefore": "Mon, 19 Sep 2026 18:29:47 GMT"}]}"""


@pytest.mark.parametrize(
    ("cloud", "status", "body", "machine", "said"),
    [
        ("aws", 404, b"Not Found", "", None),
        ("aws", 200, AWS, "", "terminate at 2026-09-18T08:22:00Z"),
        ("gcp", 200, b"FALSE", "", None),
        ("gcp", 200, b"TRUE\n", "", "preempted"),
        ("azure", 200, b'{"DocumentIncarnation": 0, "Events": []}', "spot_1", None),
        ("azure", 200, AZURE, "spot_1", "preempted, not before Mon, 19 Sep 2026 18:29:47 GMT"),
        ("azure", 200, AZURE, "spot_2", None),
        ("azure", 200, AZURE, "", "preempted, not before Mon, 19 Sep 2026 18:29:47 GMT"),
    ],
)
def test_each_cloud_says_it_in_its_own_way(
    cloud: str, status: int, body: bytes, machine: str, said: str | None
) -> None:
    assert notice(cloud, status, body, machine=machine) == said


@pytest.mark.parametrize(
    ("cloud", "status", "body"),
    [
        ("aws", 200, b"<html>"),
        ("aws", 200, b"[]"),
        ("aws", 401, b""),
        ("gcp", 200, b"maybe"),
        ("gcp", 404, b"FALSE"),
        ("azure", 200, b'{"Events": 3}'),
        ("azure", 200, b'{"Events": [{"EventType": "Preempt", "Resources": 3}]}'),
        ("azure", 500, b"{}"),
    ],
)
def test_what_is_no_such_answer_is_no_notice(cloud: str, status: int, body: bytes) -> None:
    with pytest.raises(ValueError, match=r"status|neither|JSON"):
        notice(cloud, status, body, machine="spot_1")


@dataclass
class Metadata:
    """A metadata address that answers by script; the last answer stays."""

    answers: list[tuple[int, bytes] | Exception]
    asked: list[tuple[str, str, Mapping[str, str]]] = field(default_factory=list)

    async def ask(self, method: str, path: str, headers: Mapping[str, str]) -> tuple[int, bytes]:
        self.asked.append((method, path, headers))
        if method == "PUT":
            return 200, b"a-token"
        if path.startswith("/metadata/instance/"):
            return 200, b"spot_1"
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


@virtual
async def test_aws_is_asked_with_a_token_every_few_seconds_until_there_is_a_notice() -> None:
    metadata = Metadata([(404, b""), (404, b""), (200, AWS)])
    began_s = now_s()
    assert await SpotWatch("aws", metadata.ask).noticed() == "terminate at 2026-09-18T08:22:00Z"
    assert now_s() - began_s == pytest.approx(2 * POLL_S)
    assert [(method, path) for method, path, _ in metadata.asked[:2]] == [
        ("PUT", "/latest/api/token"),
        ("GET", "/latest/meta-data/spot/instance-action"),
    ]
    assert metadata.asked[0][2]["x-aws-ec2-metadata-token-ttl-seconds"].isdigit()
    assert metadata.asked[1][2] == {"x-aws-ec2-metadata-token": "a-token"}


@virtual
async def test_gcp_is_asked_with_its_header() -> None:
    metadata = Metadata([(200, b"TRUE")])
    assert await SpotWatch("gcp", metadata.ask).noticed() == "preempted"
    assert metadata.asked == [("GET", CLOUDS["gcp"].path, {"metadata-flavor": "Google"})]


@virtual
async def test_azure_tells_its_machine_by_its_name_and_is_asked_for_that_once() -> None:
    other = AZURE.replace(b"spot_1", b"spot_2")
    metadata = Metadata([(200, other), (200, AZURE)])
    assert (await SpotWatch("azure", metadata.ask).noticed()).startswith("preempted")
    assert [path.partition("?")[0] for _, path, _ in metadata.asked] == [
        "/metadata/instance/compute/name",
        "/metadata/scheduledevents",
        "/metadata/scheduledevents",
    ]
    assert all(headers == {"metadata": "true"} for _, _, headers in metadata.asked)


@virtual
async def test_an_address_that_fails_is_logged_once_and_asked_again(caplog: pytest.LogCaptureFixture) -> None:
    gone = EngineUnavailable("cannot be reached", engine="aws")
    metadata = Metadata([gone, gone, (500, b""), (404, b""), gone, (200, AWS)])
    with caplog.at_level(logging.INFO):
        await SpotWatch("aws", metadata.ask).noticed()
    levels = [record.levelname for record in caplog.records]
    assert levels == ["WARNING", "INFO", "WARNING", "INFO"]


@virtual
async def test_without_a_notice_it_asks_for_ever() -> None:
    metadata = Metadata([(404, b"")])
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(3600):
            await SpotWatch("aws", metadata.ask).noticed()
    assert len(metadata.asked) == 2 * (3600 / POLL_S)


@virtual
async def test_a_token_that_would_be_more_than_one_header_is_not_sent_on() -> None:
    class Evil(Metadata):
        async def ask(self, method: str, path: str, headers: Mapping[str, str]) -> tuple[int, bytes]:
            if method == "PUT":
                return 200, b"a\r\nhost: b"
            return await super().ask(method, path, headers)

    metadata = Evil([(200, AWS)])
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(60):
            await SpotWatch("aws", metadata.ask).noticed()
    assert metadata.asked == []
