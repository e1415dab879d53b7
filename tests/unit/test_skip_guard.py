"""A test that quietly stopped running is worse than one that fails: the guard in tests/conftest.py sees to it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).resolve().parents[1] / "conftest.py"
PASSES = "def test_a(): pass\n"


def run(folder: Path, *options: str, ci: str = "") -> subprocess.CompletedProcess[str]:
    shutil.copy(CONFTEST, folder)
    (folder / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:asyncio",
        *options,
        str(folder),
    ]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("CI", "PYTEST"))}
    return subprocess.run(
        command, cwd=folder, env={**environment, "CI": ci}, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("test_x.py", "import pytest\ndef test_b(): pytest.skip('no time')\n"),
        ("test_x.py", "import pytest\n@pytest.mark.skipif(True, reason='no time')\ndef test_b(): ...\n"),
        ("test_x.py", "import pytest\npytest.skip('no time', allow_module_level=True)\n"),
        ("test_x.py", "import pytest\nnone = pytest.importorskip('no_time_for_this')\n"),
    ],
)
def test_a_skip_that_nobody_allowed_fails_the_run(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / "test_a.py").write_text(PASSES, encoding="utf-8")
    (tmp_path / name).write_text(text, encoding="utf-8")
    refused = run(tmp_path, "--refuse-skips")
    assert refused.returncode == 1, refused.stdout
    assert "skipped, though it could run here" in refused.stdout
    assert "no time" in refused.stdout.replace("_", " ")
    assert refused.stdout.rstrip().splitlines()[-1].startswith("1 passed, 1 skipped")


def test_continuous_integration_refuses_skips_without_being_asked(tmp_path: Path) -> None:
    (tmp_path / "test_a.py").write_text("import pytest\ndef test_b(): pytest.skip('no time')\n", encoding="utf-8")
    assert run(tmp_path, ci="true").returncode == 1
    assert run(tmp_path).returncode == 0


def test_an_allowed_skip_and_an_expected_failure_pass(tmp_path: Path) -> None:
    (tmp_path / "test_a.py").write_text(
        PASSES + "import pytest\n"
        "def test_b(): pytest.skip('needs an accelerator: there is none')\n"
        "@pytest.mark.xfail\ndef test_c(): assert False\n",
        encoding="utf-8",
    )
    passed = run(tmp_path, "--refuse-skips")
    assert passed.returncode == 0, passed.stdout


def test_a_failure_stays_a_failure(tmp_path: Path) -> None:
    (tmp_path / "test_a.py").write_text("def test_a(): assert 0\n", encoding="utf-8")
    assert run(tmp_path, "--refuse-skips").returncode == 1
