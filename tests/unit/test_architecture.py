"""The house's rules that no single room can check: who imports what, and what never appears anywhere."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections import defaultdict
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT: Final = Path(__file__).resolve().parents[2]
PACKAGE: Final = ROOT / "src" / "nightfill"

RECORDS: Final = {
    "nightfill",
    "nightfill.errors",
    "nightfill.config",
    "nightfill.contexts.context",
    "nightfill.kv.key",
    "nightfill.state.access",
    "nightfill.state.answers",
    "nightfill.state.book",
    "nightfill.state.budgets",
    "nightfill.state.jobs",
    "nightfill.state.ledger",
    "nightfill.state.load",
    "nightfill.engines.engine",
}
"""Records and protocols: they know only each other."""
RANK: Final = {
    "contexts": 1,
    "kv": 1,
    "state": 1,
    "engines": 1,
    "observe": 1,
    "sleep": 2,
    "answers": 2,
    "ledger": 2,
    "gateway": 2,
    "bench": 2,
    "simulate": 2,
    "web": 2,
    "cli": 3,
    "__main__": 4,
}
"""Imports go from a higher rank to a lower one, or stay on one rank without a circle of rooms."""
UNPICKLERS: Final = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"}
"""They run what they read."""
HEAVY: Final = {
    "cryptography", "gguf", "hiredis", "httptools", "matplotlib", "numpy", "onnx", "onnxruntime", "prometheus_client",
    "rich", "tokenizers", "uvicorn", "uvloop", "xllamacpp",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Import:
    """One import: who, what, and whether only type checkers see it."""

    path: str
    """Of the importing file, below src/nightfill."""
    module: str
    imported: str
    line: int
    typing_only: bool

    def __str__(self) -> str:
        return f"src/nightfill/{self.path}:{self.line} imports {self.imported}"


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_module(name: str) -> bool:
    path = PACKAGE.parent.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def imports_of(path: Path) -> Iterator[Import]:
    module = module_of(path)
    relative = path.relative_to(PACKAGE).as_posix()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    hidden = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide where a name comes from"
            assert node.module is not None
            # `from package import module` imports the module, and not only the package
            names = [full if is_module(full := f"{node.module}.{alias.name}") else node.module for alias in node.names]
        else:
            continue
        yield from (Import(relative, module, name, node.lineno, id(node) in hidden) for name in dict.fromkeys(names))


IMPORTS: Final = [found for path in sorted(PACKAGE.rglob("*.py")) for found in imports_of(path)]


def room_of(module: str) -> str:
    if module in RECORDS:
        return "records"
    return module.split(".")[1]


# --- dependencies ---


@dataclass(frozen=True, slots=True)
class Row:
    """One row of docs/dependencies.md."""

    package: str
    names: frozenset[str]
    """Top-level modules that it brings."""
    importers: tuple[str, ...]
    """Patterns of paths below src/nightfill; none when nothing of ours imports it."""


def code_spans(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def documented() -> list[Row]:
    rows = []
    for line in (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if line.startswith("| `") and len(cells) >= 3:
            rows.append(Row(code_spans(cells[0])[0], frozenset(code_spans(cells[1])), tuple(code_spans(cells[2]))))
    return rows


def normalised(requirement: str) -> str:
    return re.split(r"[\[<>=!~; ]", requirement, maxsplit=1)[0].lower().replace("_", "-")


def declared() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    lists = [
        project["build-system"]["requires"],
        project["project"]["dependencies"],
        *project["project"]["optional-dependencies"].values(),
        *project["dependency-groups"].values(),
        [
            line
            for line in (ROOT / "requirements-vllm.txt").read_text(encoding="utf-8").splitlines()
            if line[:1].isalpha()
        ],
    ]
    return {normalised(requirement) for requirements in lists for requirement in requirements}


def third_party() -> list[Import]:
    known = sys.stdlib_module_names | {"nightfill", "__future__"}
    return [
        found
        for found in IMPORTS
        if (top := found.imported.split(".")[0]) not in known
        and not (found.typing_only and top == "typing_extensions")  # part of every type checker
    ]


def test_each_declared_dependency_is_explained_and_nothing_else_is() -> None:
    assert declared() == {normalised(row.package) for row in documented()}


def test_each_dependency_is_imported_only_where_its_explanation_says() -> None:
    rows = documented()
    strays = []
    for found in third_party():
        top = found.imported.split(".")[0]
        row = next((row for row in rows if top in row.names), None)
        if row is None or not any(fnmatch(found.path, pattern) for pattern in row.importers):
            strays.append(f"{found}: docs/dependencies.md does not allow it")
    assert not strays, "\n".join(strays)


def test_each_place_that_an_explanation_names_does_import_it() -> None:
    used = defaultdict(set)
    for found in third_party():
        used[found.imported.split(".")[0]].add(found.path)
    idle = [
        f"docs/dependencies.md: nothing in {pattern} imports {row.package}"
        for row in documented()
        for pattern in row.importers
        if not any(fnmatch(path, pattern) for name in row.names for path in used[name])
    ]
    assert not idle, "\n".join(idle)


# --- rooms ---


def test_imports_point_one_way() -> None:
    wrong = []
    for found in IMPORTS:
        if not found.imported.startswith("nightfill"):
            continue
        here, there = room_of(found.module), room_of(found.imported)
        if here == there or there == "records":
            continue
        if here == "records" and found.typing_only:
            continue  # a protocol may name in a signature what it does not load
        if here == "records" or RANK[there] > RANK[here]:
            wrong.append(str(found))
    assert not wrong, "\n".join(wrong)


def test_no_two_rooms_import_each_other() -> None:
    edges: dict[str, dict[str, Import]] = defaultdict(dict)
    for found in IMPORTS:
        if found.imported.startswith("nightfill."):
            here, there = room_of(found.module), room_of(found.imported)
            if "records" not in (here, there) and here != there:
                edges[here].setdefault(there, found)

    def circle(path: list[str]) -> list[str] | None:
        for there in edges[path[-1]]:
            if there in path:
                return [*path[path.index(there) :], there]
            if (longer := circle([*path, there])) is not None:
                return longer
        return None

    for room in list(edges):
        rooms = circle([room])
        assert rooms is None, "\n".join(str(edges[here][there]) for here, there in pairwise(rooms))


STORES: Final = ("nightfill.state.sqlite", "nightfill.state.redis")


@pytest.mark.parametrize(
    ("room", "forbidden"),
    [
        ("sleep", ("nightfill.engines.llama", "nightfill.engines.upstream", *STORES)),
        ("gateway", ("nightfill.engines.llama", *STORES)),
        ("bench", ("nightfill.engines.llama", "nightfill.state", "nightfill.kv", "nightfill.gateway")),
        ("kv", ("nightfill.engines.llama", *STORES)),
    ],
)
def test_rooms_know_each_other_by_their_protocols(room: str, forbidden: tuple[str, ...]) -> None:
    wrong = [
        str(found)
        for found in IMPORTS
        if found.path.startswith(f"{room}/")
        and found.imported not in RECORDS
        and any(found.imported == name or found.imported.startswith(f"{name}.") for name in forbidden)
    ]
    assert not wrong, "\n".join(wrong)


def test_every_room_has_its_place() -> None:
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert rooms <= RANK.keys(), "a new room needs a rank in this file and a line in docs/architecture.md"
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert [room for room in sorted(rooms) if f"`{room}/`" not in text] == []


def test_sqlite_is_behind_the_protocols_of_the_state() -> None:
    wrong = [str(f) for f in IMPORTS if f.imported.startswith("sqlite3") and not f.path.startswith("state/sqlite/")]
    assert not wrong, "\n".join(wrong)


# --- what never appears ---


def test_nothing_unpickles() -> None:
    wrong = [str(found) for found in IMPORTS if found.imported.split(".")[0] in UNPICKLERS]
    for path in PACKAGE.rglob("*.py"):
        wrong += [
            f"{path}:{node.value.lineno} allows pickle"
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle" and ast.unparse(node.value) != "False"
        ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("module", ["nightfill", "nightfill.cli", "nightfill.config", "nightfill.errors"])
def test_a_light_import_stays_light(module: str) -> None:
    listing = f"import sys, {module}; print(*{{name.split('.')[0] for name in sys.modules}})"
    loaded = subprocess.run(
        [sys.executable, "-W", "error", "-c", listing], capture_output=True, text=True, check=True, timeout=60
    )
    assert set(loaded.stdout.split()) & HEAVY == set()


def tracked() -> list[Path]:
    if not (ROOT / ".git").exists():  # an unpacked archive: everything in it was tracked
        return [path for path in ROOT.rglob("*") if path.is_file() and ".venv" not in path.parts]
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, check=True, timeout=60
    ).stdout.split(b"\0")
    return [path for name in listed if name and (path := ROOT / name.decode()).is_file()]


# Put together here, so that this file does not hold what it looks for.
UNWANTED: Final = {
    "the path of somebody's machine": "|".join(
        "/" + tail
        for tail in (r"work/\w", r"root/\w", r"home/(?!user\b|you\b|me\b)\w+/\w", r"Users/\w+/\w", r"tmp/nf\b")
    ),
    "a registry's host": "|".join(
        name + r"\." + domain
        for name, domain in (
            ("pypi", "org"),
            ("pythonhosted", "org"),
            ("registry.npmjs", "org"),
            ("deb.debian", "org"),
            ("archive.ubuntu", "com"),
            ("proxy.golang", "org"),
            ("crates", "io"),
        )
    ),
}


@pytest.mark.parametrize("what", UNWANTED)
def test_no_tracked_text_holds(what: str) -> None:
    pattern = re.compile(UNWANTED[what])
    wrong = []
    for path in tracked():
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            continue  # a picture, or another file that is no text
        wrong += [
            f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
            for number, line in enumerate(lines, start=1)
            if pattern.search(line)
        ]
    assert not wrong, f"{what}:\n" + "\n".join(wrong)
