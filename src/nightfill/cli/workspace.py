"""What most commands work on: the settings, the data folder, and the state and the store in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from nightfill.cli.root import Options, environment
from nightfill.cli.settings import data_dir, load_settings
from nightfill.errors import BadSetting

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from nightfill.config import AnswerSettings, BudgetSettings, KvSettings, Settings
    from nightfill.kv import Store, TextSealer
    from nightfill.state.answers import AnswerBounds
    from nightfill.state.jobs import QueueRules
    from nightfill.state.seal import RenewableSeal
    from nightfill.state.state import State

STATE_FILE: Final = "state.db"


@dataclass(frozen=True, slots=True, kw_only=True)
class Workspace:
    """Settings and the folder that they point to. Commands work on it with or without a running server."""

    settings: Settings
    data_dir: Path

    @classmethod
    def load(cls, options: Options, overrides: Mapping[str, object] | None = None) -> Workspace:
        """From the command line's options and the environment. Raises BadSetting."""
        given: dict[str, object] = dict(overrides or {})
        if options.data_dir:
            given["data_dir"] = options.data_dir
        if options.verbose:
            given["log_level"] = "debug"
        environ = environment()
        settings = load_settings(file=options.config, environ=environ, overrides=given)
        return cls(settings=settings, data_dir=data_dir(settings, environ))

    @property
    def state_path(self) -> Path:
        """The state file."""
        return self.data_dir / STATE_FILE

    def open_state(self) -> State:
        """The state, to be closed by the caller; a file is made if it is not there. Raises StateUnavailable,
        BadSetting.
        """
        rules, seal = queue_rules(self.settings.budgets), text_seal(self.settings.kv)
        bounds = answer_bounds(self.settings.answers)
        if self.settings.state:
            try:
                from nightfill.state.redis import open_redis_state
            except ImportError as exc:
                raise BadSetting("state: Redis needs hiredis: pip install 'nightfill[redis]'", param="state") from exc
            return open_redis_state(self.settings.state, rules=rules, seal=seal, bounds=bounds)
        from nightfill.state.sqlite import open_state

        return open_state(self.state_path, rules=rules, seal=seal, bounds=bounds)

    def open_store(self) -> Store:
        """The KV store, to be closed by the caller. Raises BadSetting."""
        from nightfill.kv import open_store

        return open_store(self.settings.kv, data_dir=self.data_dir)


def queue_rules(settings: BudgetSettings) -> QueueRules:
    """What the state's queue goes by; 0 tokens are no bound."""
    from nightfill.state.budgets import BudgetRules
    from nightfill.state.jobs import QueueRules

    budgets = BudgetRules(
        user_day=settings.user_tokens_per_day or None,
        user_month=settings.user_tokens_per_month or None,
        tenant_day=settings.tenant_tokens_per_day or None,
        tenant_month=settings.tenant_tokens_per_month or None,
        all_day=settings.all_tokens_per_day or None,
        all_month=settings.all_tokens_per_month or None,
    )
    return QueueRules(weights=settings.weights, budgets=budgets)


def answer_bounds(settings: AnswerSettings) -> AnswerBounds:
    """What the state keeps of answers and questions at most."""
    from nightfill.state.answers import AnswerBounds

    return AnswerBounds(
        answers=settings.max_answers,
        bytes=settings.max_bytes,
        tenant_answers=settings.tenant_max_answers or None,
        questions=settings.questions_per_context,
    )


def text_seal(settings: KvSettings) -> RenewableSeal | None:
    """What seals texts in the state; None without a key file. Raises BadSetting."""
    if not settings.key_file:
        return None
    from nightfill.kv import open_text_sealer

    return _Seal(open_text_sealer(settings))


@dataclass(frozen=True, slots=True)
class _Seal:
    """The store's sealer of texts, as the state calls it."""

    sealer: TextSealer

    def seal(self, plain: bytes) -> bytes:
        return self.sealer.seal_text(plain)

    def open(self, sealed: bytes) -> bytes:
        return self.sealer.open_text(sealed)

    def current(self, sealed: bytes) -> bool:
        return self.sealer.current_text(sealed)
