"""What each tier of a store is for, decided from its kind and its policy alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from nightfill.kv.tier import Tier


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How a store uses one tier."""

    back: bool = False
    """Blocks come here only when a tier above needs room, and by promotion from below."""
    ttl_s: float = 0.0
    """Seconds since its last use after which a block may go; 0 for the store's."""
    list_every_s: float = 0.0
    """A sweep lists the tier at most so often: of a server, that is work for everybody."""
    ask_every_s: float = 0.0
    """A sweep asks it at most so often whether it has what lies in caches: of a bucket, each answer is paid for."""


THROUGH = Policy()


class Roles:
    """`tiers`, fastest first, by what they are for.

    *Homes* take every block that is stored: the durable tiers that are written through, else all that are, else the
    first. *Keepers* are the homes and what is written back to: a block that none of them has is gone. The others are
    *caches*: copies of what was used lately, which nobody misses.
    """

    def __init__(self, tiers: Sequence[Tier], *, ttl_s: float, policies: Mapping[str, Policy]) -> None:
        unknown = policies.keys() - {tier.name for tier in tiers}
        assert not unknown, unknown
        self.tiers = tuple(tiers)
        self._policies = policies
        self._ttl_s = ttl_s
        through = tuple(tier for tier in tiers if not self._policy(tier).back) or self.tiers[:1]
        self.homes = tuple(tier for tier in through if tier.durable) or through
        self.keepers = tuple(tier for tier in tiers if tier in self.homes or self._policy(tier).back)
        self.caches = tuple(tier for tier in tiers if tier not in self.keepers)

    def ttl_s(self, tier: Tier) -> float:
        """Seconds since its last use after which a block may go from this tier."""
        return self._policy(tier).ttl_s or self._ttl_s

    def list_every_s(self, tier: Tier) -> float:
        """Seconds between two listings of the tier in sweeps."""
        return self._policy(tier).list_every_s

    @property
    def ask_every_s(self) -> float:
        """Seconds between two looks at whether the keepers have what lies in caches."""
        return max((self._policy(tier).ask_every_s for tier in self.keepers), default=0.0)

    def below(self, tier: Tier) -> tuple[Tier, ...]:
        """All slower tiers."""
        return self.tiers[self.tiers.index(tier) + 1 :]

    def backs_below(self, tier: Tier) -> tuple[Tier, ...]:
        """The slower tiers that take what this one evicts, the next one first."""
        return tuple(lower for lower in self.below(tier) if self._policy(lower).back and lower not in self.homes)

    def expires_copies(self, tier: Tier) -> bool:
        """Whether a cache has a time to live of its own; else copies live as long as what they are copies of."""
        return self._policy(tier).ttl_s > 0

    def _policy(self, tier: Tier) -> Policy:
        return self._policies.get(tier.name, THROUGH)
