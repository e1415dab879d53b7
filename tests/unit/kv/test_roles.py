from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from nightfill.kv.roles import Policy, Roles

if TYPE_CHECKING:
    from fakes.kv import MakeDisk, MakeTier

BACK = Policy(back=True)


@pytest.mark.parametrize(
    ("kinds", "back", "homes", "keepers", "caches"),
    [
        ("rd", "", "d", "d", "r"),
        ("rdD", "", "dD", "dD", "r"),
        ("rdD", "D", "d", "dD", "r"),
        ("rdD", "d", "D", "dD", "r"),
        ("rd", "d", "r", "rd", ""),
        ("r", "", "r", "r", ""),
        ("rR", "", "rR", "rR", ""),
        ("dD", "dD", "d", "dD", ""),
    ],
)
def test_roles_follow_from_kind_and_policy(
    kinds: str, back: str, homes: str, keepers: str, caches: str, make_ram: MakeTier, make_disk: MakeDisk
) -> None:
    tiers = [make_ram(name=kind) if kind in "rR" else make_disk(name=kind) for kind in kinds]
    roles = Roles(tiers, ttl_s=100, policies=dict.fromkeys(back, BACK))
    found = ["".join(tier.name for tier in some) for some in (roles.homes, roles.keepers, roles.caches)]
    assert found == [homes, keepers, caches]


def test_what_a_tier_evicts_goes_to_the_next_below_that_is_written_back_to(
    make_ram: MakeTier, make_disk: MakeDisk
) -> None:
    tiers = [make_ram(name="r"), *(make_disk(name=name) for name in "abc")]
    roles = Roles(tiers, ttl_s=100, policies={"a": BACK, "c": Policy(back=True, ttl_s=7)})
    assert [[lower.name for lower in roles.backs_below(tier)] for tier in tiers] == [["a", "c"], ["c"], ["c"], []]
    assert [roles.ttl_s(tier) for tier in tiers] == [100, 100, 100, 7]


def test_tiers_on_servers_are_asked_as_seldom_as_the_dearest_wants(make_ram: MakeTier, make_disk: MakeDisk) -> None:
    ram, disk, bucket = make_ram(name="ram"), make_disk(name="disk"), make_disk(name="s3")
    policies = {"s3": Policy(list_every_s=3600, ask_every_s=600), "ram": Policy(ask_every_s=7000)}
    roles = Roles([ram, disk, bucket], ttl_s=1.0, policies=policies)
    assert (roles.list_every_s(disk), roles.list_every_s(bucket), roles.ask_every_s) == (0.0, 3600, 600)
