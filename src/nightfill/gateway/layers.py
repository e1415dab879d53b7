"""Which layer is to serve a request: names its context, puts the text in front, finds the fill."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from nightfill.config import HistorySettings
from nightfill.contexts import FillKey, FillState, Form
from nightfill.contexts.context import DEFAULT_OPTIONS
from nightfill.engines.engine import Call, Prefix, Reuse
from nightfill.errors import StateError, StateUnavailable
from nightfill.gateway.route import Reason
from nightfill.gateway.talk import Talk, is_wanted, talk_of
from nightfill.kv.key import salt_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from nightfill.contexts import Context, ContextName, Fill, Fingerprint, Tenant
    from nightfill.contexts.context import ContextOptions
    from nightfill.engines.engine import Description
    from nightfill.gateway.ask import Ask
    from nightfill.gateway.library import Library

_AFFINITY_BYTES: Final = 16 << 10
_RAW_LIST: Final = msgspec.json.Decoder(list[msgspec.Raw])


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How a request is going to be served."""

    call: Call
    context: ContextName | None = None
    fingerprint: Fingerprint | None = None
    """Of the text that is in front."""
    distilled: bool = False
    """That text is the context's distilled version."""
    user: str = ""
    """The context's."""
    options: ContextOptions = DEFAULT_OPTIONS
    """The context's."""
    fill: FillKey | None = None
    """The fill that the promise rests on; None when nothing is promised."""
    claimed_ready: bool = False
    """The book calls that fill ready and the engine can use it, so all its tokens should be there."""
    route: Reason = Reason.LOAD
    """What speaks for the engine that is asked."""
    talk: Talk | None = None
    """The chat that it goes on with, where the next turn is to be filled."""
    talked: int = 0
    """Messages of that chat that the fill has."""
    token_s: float = 0.0
    """Engine seconds that each token of that fill took to compute."""

    @property
    def planned_tokens(self) -> int:
        """Tokens of the prefix that the book says are stored."""
        return len(self.call.prefix.tokens) if self.call.prefix is not None else 0


class Layers:
    """Makes plans. `on_failure` is told each time the state failed and the request went on without it."""

    def __init__(
        self, library: Library, *, on_failure: Callable[[StateError], None], history: HistorySettings | None = None
    ) -> None:
        """`history`: which chats are filled for their next turn."""
        self._library = library
        self._history = history or HistorySettings()
        self._on_failure = on_failure

    async def plan(self, tenant: Tenant, ask: Ask, engine: Description, headers: Mapping[str, str]) -> Plan:
        """Decide how `ask` is served by `engine`.

        Raises NotFound for an unknown context and BadRequest for one that cannot be put in front. Fails open: without
        the state a request is served cold. Only a request that names its context is refused then (StateUnavailable),
        because an answer without the context's text would be a wrong one.
        """
        members = ask.members
        found: tuple[ContextName, Fingerprint, str, ContextOptions] | None = None
        talk: Talk | None = None
        talked, token_s, distilled = 0, 0.0, False
        earlier: tuple[float, ...] = ()
        if ask.context is not None:
            assert ask.form is not None  # decode_ask refuses a context on other routes
            context = await self._library.context(tenant, ask.context)
            chosen = await self._version(context, ask, engine)
            front = await self._library.front(tenant, chosen)
            if front is None:
                # A new version came between the two look-ups; the old text went with it.
                context = await self._library.context(tenant, ask.context, anew=True)
                chosen = await self._version(context, ask, engine)
                front = await self._library.front(tenant, chosen)
            if front is None:
                raise StateUnavailable(f"the text of context {ask.context!r} cannot be read")
            found, distilled = (context.name, chosen, context.user, context.options), chosen != context.current
            if ask.form is Form.CHAT:
                placed = front.chat(_RAW_LIST.decode(members["messages"]))
                members = {**members, "messages": msgspec.Raw(b"[" + b",".join(map(bytes, placed)) + b"]")}
            else:
                members = {**members, "prompt": front.completion(members["prompt"])}
        try:
            if found is None and ask.form is not None:
                found = await self._recognised(tenant, ask)
            fill, reuse = None, ask.reuse
            # What was filled was filled under the tenant's salt.
            if found is not None and ask.reuse and ask.cache_salt is None:
                assert ask.form is not None
                fill = await self._usable(
                    FillKey(tenant=tenant, fingerprint=found[1], form=ask.form, signature=engine.signature)
                )
                if fill is not None and fill.drifted:
                    # Its KV was wrong in the store, and may be so in an engine that has loaded it.
                    fill, reuse = None, False
            token_s = _token_s(fill)
            talk = self._talk(ask, found)
            if talk is not None and reuse:
                fill, talked, earlier = await self._furthest(tenant, talk, engine, fill)
        except StateError as exc:
            self._on_failure(exc)
            fill, reuse = None, ask.reuse
        salt = salt_of(tenant)
        call = Call(
            path=ask.path,
            body=members,
            stream=ask.stream,
            prefix=_prefix(fill, salt, earlier) if fill is not None else None,
            salt=salt if ask.cache_salt is None else _own_salt(salt, ask.cache_salt),
            reuse=reuse,
            affinity=_affinity(ask.form, members),
            said=talk.marks if talk is not None else (),
            headers=headers,
        )
        return Plan(
            call=call,
            context=found[0] if found is not None else None,
            fingerprint=found[1] if found is not None else None,
            distilled=distilled,
            user=found[2] if found is not None else "",
            talk=talk,
            talked=talked,
            options=found[3] if found is not None else DEFAULT_OPTIONS,
            fill=fill.key if fill is not None else None,
            claimed_ready=fill is not None and fill.state is FillState.READY and engine.reuse is not Reuse.NONE,
            # Little of a chat's fill was computed for that fill alone.
            token_s=max(token_s, _token_s(fill)),
        )

    async def _version(self, context: Context, ask: Ask, engine: Description) -> Fingerprint:
        """Which text of the context to put in front. A wish that cannot be met is no error: the full text always is."""
        if ask.mode == "full" or context.distilled is None:
            return context.current
        if ask.mode == "distilled":
            return context.distilled
        for version in (context.current, context.distilled):
            if await self._ready(context.tenant, version, ask, engine):
                return version
        return context.current

    async def _ready(self, tenant: Tenant, version: Fingerprint, ask: Ask, engine: Description) -> bool:
        """Whether a fill of it would serve `ask`."""
        if not ask.reuse or ask.cache_salt is not None:
            return False
        assert ask.form is not None
        key = FillKey(tenant=tenant, fingerprint=version, form=ask.form, signature=engine.signature)
        try:
            fill = await self._library.fill(key)
        except StateError as exc:
            self._on_failure(exc)
            return False
        return fill is not None and fill.state is FillState.READY

    async def _recognised(
        self, tenant: Tenant, ask: Ask
    ) -> tuple[ContextName, Fingerprint, str, ContextOptions] | None:
        index = await self._library.index(tenant)
        if not index:
            return None
        if ask.form is Form.CHAT:
            entry = index.chat(_RAW_LIST.decode(ask.members["messages"]))
        else:
            entry = index.completion(ask.members["prompt"])
        return (entry.name, entry.fingerprint, entry.user, entry.options) if entry is not None else None

    def _talk(self, ask: Ask, found: tuple[ContextName, Fingerprint, str, ContextOptions] | None) -> Talk | None:
        if not is_wanted(self._history, ask, found[3] if found is not None else None):
            return None
        return talk_of(
            ask.members,
            context=found[0] if found is not None else None,
            version=found[1] if found is not None else None,
            user=found[2] if found is not None else "",
            placed=ask.context is not None,
        )

    async def _furthest(
        self, tenant: Tenant, talk: Talk, engine: Description, least: Fill | None
    ) -> tuple[Fill | None, int, tuple[float, ...]]:
        """The fill that has most of the chat, at least what its context's has; how many messages that is; and the
        stamps of those that it goes on from.
        """
        found: list[tuple[Fill, int]] = [] if least is None else [(least, 0)]
        for count in reversed(talk.earlier()):
            mark = talk.marks[count - 1]
            fill = await self._usable(
                FillKey(tenant=tenant, fingerprint=mark, form=Form.CHAT, signature=engine.signature)
            )
            if fill is not None and not fill.drifted:
                found.append((fill, count))
        if not found:
            return None, 0, ()
        fill, count = max(found, key=lambda one: one[0].stored_tokens)
        return fill, count, tuple(one.filled_at_s for one, _ in found if one is not fill)

    async def _usable(self, key: FillKey) -> Fill | None:
        fill = await self._library.fill(key)
        if fill is None or fill.drifted:
            return fill
        if fill.state not in (FillState.READY, FillState.FILLING) or fill.stored_tokens <= 0:
            return None
        return fill


def _token_s(fill: Fill | None) -> float:
    return fill.fill_seconds / fill.stored_tokens if fill is not None else 0.0


def _prefix(fill: Fill, salt: bytes, earlier: tuple[float, ...]) -> Prefix:
    return Prefix(tokens=fill.tokens[: fill.stored_tokens], salt=salt, stamp=fill.filled_at_s, earlier=earlier)


def _own_salt(tenants: bytes, clients: str) -> bytes:
    """A salt for a client that chose one: no other tenant's, whatever it chose."""
    return hashlib.sha256(b"nightfill.salt.client.1\0" + tenants + clients.encode()).digest()


def _affinity(form: Form | None, members: Mapping[str, msgspec.Raw]) -> bytes:
    raw = members.get("messages" if form is Form.CHAT else "prompt")
    return bytes(memoryview(raw)[:_AFFINITY_BYTES]) if raw is not None else b""
