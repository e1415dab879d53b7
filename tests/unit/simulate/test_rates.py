from __future__ import annotations

import gzip
import math
import random
from typing import TYPE_CHECKING

import pytest

from fakes.fleets import MACHINES, client
from nightfill.errors import BadInput
from nightfill.simulate.fleet import DAY, fleet_of, wished
from nightfill.simulate.rates import read_rates, scaled
from nightfill.simulate.trace import Kind, kind_of

if TYPE_CHECKING:
    from pathlib import Path

HEAD = "model,client,t_s,rate_rps,cv,pattern,p1,p2\n"


def written(path: Path, text: str) -> Path:
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize("name", ["rates.csv", "rates.csv.gz"])
def test_rates_are_requests_per_window(tmp_path: Path, name: str) -> None:
    path = written(tmp_path / name, HEAD + "m,10,600,0.5,1,Gamma,1,1\nm,2,0,0.01667,1,Gamma,1,1\nm,2,1200,1,,,,\n")
    assert kind_of(path) is Kind.RATES
    clients = read_rates([path])
    assert [(one.model, one.name, one.uses[:3], sum(one.uses)) for one in clients] == [
        ("m", "2", (10, 0, 600), 610),
        ("m", "10", (0, 300, 0), 300),
    ]
    assert {len(one.uses) for one in clients} == {DAY}


def test_a_week_that_begins_later_begins_at_the_midnight_before(tmp_path: Path) -> None:
    path = written(tmp_path / "w.csv", f"client,t_s,rate_rps\na,{9 * 86400 + 1200},1\na,{10 * 86400},2\n")
    (one,) = read_rates([path])
    assert len(one.uses) == 2 * DAY
    assert (one.uses[2], one.uses[DAY]) == (600, 1200)


def test_several_files_are_one_fleet(tmp_path: Path) -> None:
    paths = [written(tmp_path / f"{name}.csv", f"model,client,t_s,rate_rps\n{name},0,0,1\n") for name in "ab"]
    assert [one.model for one in read_rates(paths)] == ["a", "b"]


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ("m,0,601,1", "line 2.*t_s 601"),
        ("m,0,-600,1", "line 2.*t_s -600"),
        ("m,0,0,-1", "line 2.*rate_rps -1"),
        ("m,0,0,nan", "line 2.*rate_rps nan"),
        ("m,0,inf,1", "line 2"),
        ("m,0,x,1", "line 2.*'x'"),
        ("m,0", "line 2"),
        ("m,0,0,1\nm,0,8640000,1", "101 days"),
        ("", "no rates"),
    ],
)
def test_what_is_no_rate_is_refused_by_its_line(tmp_path: Path, row: str, complaint: str) -> None:
    path = written(tmp_path / "bad.csv", f"model,client,t_s,rate_rps\n{row}\n")
    with pytest.raises(BadInput, match=complaint):
        read_rates([path])


@pytest.mark.parametrize("content", [b"", b"a,b,c\n1,2,3\n", b"\x1f\x8bnot gzip", b"\xff\xfe\x00", b'{"x": 1}\n'])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other"
    path.write_bytes(content)
    with pytest.raises(BadInput, match="other"):
        kind_of(path)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot read"):
        kind_of(tmp_path / "none.csv")


def test_scaled_clients_keep_their_numbers_and_their_time_of_day() -> None:
    clients = [client({70: 5, 71: 7}, name="x"), client({20: 1}, name="y")]
    many = scaled(clients, 50, random.Random(1))
    assert len({one.name for one in many}) == 50
    assert {sum(one.uses) for one in many} == {12, 1}
    peaks = {one.uses.index(max(one.uses)) for one in many if one.name.startswith("x")}
    assert len(peaks) > 5
    assert all(71 - 12 <= peak <= 71 + 12 for peak in peaks)
    assert many == scaled(clients, 50, random.Random(1))


def test_lengths_are_spread_by_their_logarithm() -> None:
    clients = [client({0: 1}, name=str(number)) for number in range(2000)]
    many = fleet_of(clients, random.Random(1), lasts_s=14_400, budget_share=0.25, machines=MACHINES)
    assert 4_000 <= min(many.tokens) < 4_100
    assert 195_000 < max(many.tokens) <= 200_000
    middle = math.sqrt(4_000 * 200_000)
    assert sum(tokens < middle for tokens in many.tokens) / 2000 == pytest.approx(0.5, abs=0.03)


def test_the_budget_is_a_share_of_what_finds_every_use_filled() -> None:
    clients = [client({0: 9, 30: 1, 53: 1, 54: 1}, name="a"), client({DAY: 3}, days=2, name="b")]
    clients[0] = client(dict(enumerate(clients[0].uses)), days=2, name="a")
    many = fleet_of(clients, random.Random(1), lasts_s=14_400, budget_share=0.5, machines=MACHINES)
    assert list(wished(clients[0], 24)) == [29, 53]
    assert many.wished_tokens == 2 * many.tokens[0] + many.tokens[1]
    assert many.day_tokens == int(0.5 * many.wished_tokens / 2)


def test_slack_is_what_a_models_peak_leaves() -> None:
    clients = [client({0: 10, 1: 4}, name="a", model="x"), client({1: 10}, name="b", model="y")]
    many = fleet_of(clients, random.Random(1), lasts_s=14_400, budget_share=0.5, machines=MACHINES)
    assert many.slack["x"][:3] == [0, 6 * many.tokens[0], 10 * many.tokens[0]]
    assert many.slack["y"][:2] == [10 * many.tokens[1], 0]
    assert many.engines["x"] == math.ceil(10 * many.tokens[0] / 100 / 600 / 0.8)
