"""Every error that nightfill raises on purpose, split by what the caller can do about it.

    NightfillError
    |-- BadInput                    the caller must change something; the message names key, value and what is allowed
    |   |-- BadSetting              a settings file, environment variable or command-line option
    |   |-- BadRequest              a request that cannot be served as it is (400)
    |   |   |-- RequestTooLarge     body over the bound (413)
    |   |   |-- PromptTooLong       prompt beyond the model's context (400, as OpenAI)
    |   |   |-- BodyTimeout         the body did not arrive in time (408)
    |   |   |-- WrongMethod         the path exists, but not for this method (405)
    |   |   |-- NotAuthorised       missing or wrong API key (401)
    |   |   `-- NotAllowed          understood, but refused by configuration (403)
    |   |-- BadSource               a context source that cannot be read (400)
    |   `-- NotFound                no such context, model, job (404)
    |-- BudgetSpent                 no tokens are left for background work before a certain time (429)
    |-- NotStored                   only a stored answer was wanted, and there is none (504)
    |-- ClientLeft                  the client hung up; nobody is there to answer (499 in logs)
    |-- Busy                        try again later (429 or 503, with Retry-After)
    |   |-- QueueFull               a bound was reached (429)
    |   `-- Draining                the server is shutting down (503)
    |-- EngineError                 an inference engine did not do what was asked
    |   |-- EngineUnavailable       not running, not reachable, died midway (503)
    |   |-- EngineTimeout           sent nothing within its deadline (504)
    |   |-- EngineRefused           answered with an error of its own (its status passes through)
    |   |-- EngineUnfit             runs, but was started otherwise than nightfill needs; the message names the flag
    |   |-- AdapterUnfit            a LoRA adapter's files are gone, changed, damaged, or for another model (404)
    |   |-- EngineStart             could not be started; the message carries the engine's last words
    |   |-- WokeWrong               woke from sleep, and does not compute what it did before
    |   `-- SentToSleep             its model was put to sleep by hand; what was under way in the background ends
    |-- ReaderUnavailable           the process that reads questions for near answers does not answer
    |-- KvError                     the store; a reader treats each of these as a miss
    |   |-- BlockCorrupt            checksum, tag, length or header differ
    |   |   `-- KeyUnknown          sealed under a key that this process lacks: perhaps good, and not ours to delete
    |   |-- TierUnavailable         the device or server behind a tier failed
    |   |-- TierFull                nothing may be evicted to make room
    |   `-- SlotFileUnknown         a llama.cpp slot file of a shape that we do not know
    `-- StateError                  the shared state
        |-- LeaseLost               somebody else holds the job now; stop at once
        `-- StateUnavailable        the store behind it failed or is locked

Foreign exceptions are translated where the foreign library is called; none travels upwards.
"""

from __future__ import annotations

from typing import Final


class NightfillError(Exception):
    """Base of all errors of this package."""


class BadInput(NightfillError):
    """The caller must change something. `param` names the offending key, if one does."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class BadSetting(BadInput):
    """A setting is unknown or has a value that is not allowed."""


class BadRequest(BadInput):
    """A request cannot be served as it is."""


class RequestTooLarge(BadRequest):
    """The body is larger than the configured bound."""


class PromptTooLong(BadRequest):
    """The prompt does not fit the model's context."""


class BodyTimeout(BadRequest):
    """The body did not arrive in time."""


class WrongMethod(BadRequest):
    """The path exists, but only for the methods in `allowed`."""

    def __init__(self, message: str, *, allowed: tuple[str, ...]) -> None:
        super().__init__(message)
        self.allowed = allowed


class NotAuthorised(BadRequest):
    """The API key is missing or wrong."""


class NotAllowed(BadRequest):
    """Understood, but refused by configuration."""


class BadSource(BadInput):
    """The source of a context cannot be read, or is over a bound."""


class NotFound(BadInput):
    """No such context, model, job or path."""


class NotStored(NightfillError):
    """The client wanted a stored answer or none (`Cache-Control: only-if-cached`), and there is none."""


class ClientLeft(NightfillError):
    """The client hung up before it had its answer."""


class Busy(NightfillError):
    """Try again later, not before `retry_after_s` seconds."""

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class QueueFull(Busy):
    """A bound on waiting or running work was reached."""


class Draining(Busy):
    """The server is shutting down and takes no new work."""


class BudgetSpent(NightfillError):
    """A budget has fewer tokens left than were to be set aside. There is no use in asking again before `resets_at_s`,
    Unix seconds, unless somebody raises it.
    """

    def __init__(self, message: str, *, resets_at_s: float) -> None:
        super().__init__(message)
        self.resets_at_s = resets_at_s


class EngineError(NightfillError):
    """The engine named `engine` did not do what was asked."""

    def __init__(self, message: str, *, engine: str) -> None:
        super().__init__(f"engine {engine}: {message}")
        self.engine = engine


class EngineUnavailable(EngineError):
    """The engine is not running, not reachable, or died midway."""


class EngineTimeout(EngineError):
    """The engine sent nothing within its deadline."""


class EngineRefused(EngineError):
    """The engine answered with an error of its own."""

    def __init__(self, message: str, *, engine: str, status: int) -> None:
        super().__init__(message, engine=engine)
        self.status = status


class EngineUnfit(EngineError):
    """The engine runs, but was started otherwise than nightfill needs; the message names the flag."""


class AdapterUnfit(EngineError):
    """A LoRA adapter cannot be used: its files are gone or have changed since they were registered, or the engine does
    not take them. Asking again is of no use, so its status is one that no client tries again by itself.
    """


class EngineStart(EngineError):
    """The engine could not be started."""


class WokeWrong(EngineError):
    """The engine woke from sleep and does not compute what it did before."""


class SentToSleep(EngineError):
    """The model was put to sleep by hand since this background work began: it ends, and is done another time."""


class ReaderUnavailable(NightfillError):
    """The process that embeds and compares questions is gone, or does not answer; near answers wait for the next."""

    def __init__(self, why: str) -> None:
        super().__init__(f"the process that reads questions {why}")
        self.why = why


class KvError(NightfillError):
    """The KV store failed; a reader treats it as a miss."""


class BlockCorrupt(KvError):
    """Stored bytes are not what was written."""


class KeyUnknown(BlockCorrupt):
    """A block is sealed under a key that this process does not have."""


class TierUnavailable(KvError):
    """The device or server behind a tier failed."""


class TierFull(KvError):
    """A tier is full and nothing in it may be evicted."""


class SlotFileUnknown(KvError):
    """A llama.cpp slot file has a shape that we do not know."""


class StateError(NightfillError):
    """The shared state failed."""


class LeaseLost(StateError):
    """Another worker holds the job now."""


class StateUnavailable(StateError):
    """The store behind the state failed or stayed locked."""


STATUS: Final[dict[type[NightfillError], int]] = {
    BadInput: 400,
    RequestTooLarge: 413,
    BodyTimeout: 408,
    WrongMethod: 405,
    ClientLeft: 499,
    NotAuthorised: 401,
    NotAllowed: 403,
    NotFound: 404,
    QueueFull: 429,
    BudgetSpent: 429,
    NotStored: 504,
    Busy: 503,
    EngineUnavailable: 503,
    EngineTimeout: 504,
    AdapterUnfit: 404,
    EngineError: 502,
    StateUnavailable: 503,
    NightfillError: 500,
}


def status_of(error: NightfillError) -> int:
    """HTTP status for `error`: that of its nearest class in `STATUS`; an engine's own 4xx passes through."""
    if isinstance(error, EngineRefused) and 400 <= error.status < 500:
        return error.status
    return next(STATUS[cls] for cls in type(error).__mro__ if cls in STATUS)
