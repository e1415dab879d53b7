"""What holds for all tests: a skip that nobody allowed fails the run under `--refuse-skips` and in CI."""

from __future__ import annotations

import os
import signal
from typing import Final

import pytest

ALLOWED_SKIPS: Final = {
    "needs an accelerator": "CI has none",
    "needs the right to mount a file system": "containers may lack it, even for root",
    "needs a user other than root": "root may read everything, so a refused read cannot be tested",
    "needs a processor with AVX-512": "vLLM keeps FP8 KV on such processors only",
}
"""How the reason of an allowed skip begins -> why CI cannot run that test."""


class SkipGuard:
    """Collects skips, of tests and of whole modules, and ends the run with failure if one was not allowed."""

    def __init__(self) -> None:
        self._refused: list[str] = []

    def _look_at(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if not report.skipped or hasattr(report, "wasxfail"):
            return
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reason = reason.removeprefix("Skipped: ")
        if not any(reason.startswith(allowed) for allowed in ALLOWED_SKIPS):
            self._refused.append(f"{report.nodeid}: {reason}")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._look_at(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._look_at(report)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self._refused and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._refused:
            terminalreporter.section("skipped, though it could run here (tests/conftest.py)", red=True)
            for line in self._refused:
                terminalreporter.line(line, red=True)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--refuse-skips", action="store_true", help="fail when a test is skipped that could run here")


def pytest_configure(config: pytest.Config) -> None:
    # A shell starts what it puts in the background with Ctrl-C ignored, and children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if config.getoption("--refuse-skips") or os.environ.get("CI") == "true":
        config.pluginmanager.register(SkipGuard(), "nightfill-skip-guard")
