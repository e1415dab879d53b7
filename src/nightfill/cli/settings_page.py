"""The page `docs/settings.md`, made from the settings' own docstrings: `python -m nightfill.cli.settings_page`."""

from __future__ import annotations

import ast
import inspect
from typing import Any, Final

import msgspec

from nightfill import config
from nightfill.cli.bounds import BOUNDS
from nightfill.cli.settings import PREFIX
from nightfill.cli.units import show_duration
from nightfill.contexts.bundle import show_bytes

_INTRODUCTION: Final = f"""# Settings

One YAML file (`nightfill --config FILE`, or `NIGHTFILL_CONFIG`), every key also as an environment variable, and the
most used ones as options of the commands. Options win over the environment, which wins over the file. Unknown keys are
refused. `nightfill serve --model m.gguf` needs no file.

```yaml
engines:
  - model: /models/m.gguf
    slots: 4
gateway:
  port: 8700
kv:
  ttl_s: 7d
  tiers:
    - {{kind: ram, max_bytes: 2GiB}}
    - {{kind: disk, max_bytes: 200GiB, path: /nvme/nightfill}}
```

Sizes are written as `512`, `64KiB` or `1.5GB`, durations as `30`, `250ms`, `4h` or `7d`. In the names of environment
variables two underscores part the levels: `{PREFIX}GATEWAY__PORT=8701`, `{PREFIX}ENGINES__0__MODEL=m.gguf`. A list
or an object may be given whole, as JSON or YAML: `{PREFIX}CONTEXTS__ROOTS='["/srv/docs"]'`.

This page is made from the code: `python -m nightfill.cli.settings_page > docs/settings.md`.
"""


def render_page() -> str:
    """The whole page, as Markdown."""
    sections = [_INTRODUCTION, _section(config.Settings, "", "General")]
    for field in msgspec.structs.fields(config.Settings):
        kind, path = _record(field.type), field.encode_name
        if kind is not None:
            here = _path(path, field)
            sections.append(_section(kind, here, f"`{path}`"))
            sections += [
                _section(below, _path(f"{here}.{inner.name}", inner), f"`{path}.{inner.name}`")
                for inner in msgspec.structs.fields(kind)
                if (below := _record(inner.type)) is not None
            ]
    return "\n".join(sections)


def _path(path: str, field: Any) -> str:
    """With the number of an item where the field is a list."""
    return path if _record(field.type) is field.type else f"{path}.N"


def _section(kind: type[msgspec.Struct], path: str, title: str) -> str:
    lines = [f"## {title}", "", _flat(inspect.getdoc(kind) or ""), ""]
    if path.endswith(".N"):
        lines[2] += " A list; N is the item's number, from 0."
    lines += ["| key | environment variable | default | meaning |", "|---|---|---|---|"]
    meanings = _meanings(kind)
    for field in msgspec.structs.fields(kind):
        if _record(field.type) is not None:
            continue
        key = f"{path}.{field.name}" if path else field.name
        variable = PREFIX + key.upper().replace(".", "__")
        meaning = " ".join(part for part in (meanings.get(field.name, ""), _allowed(field, key)) if part)
        lines.append(f"| `{key}` | `{variable}` | {_default(field)} | {meaning} |")
    return "\n".join(lines) + "\n"


def _record(kind: Any) -> type[msgspec.Struct] | None:
    """The record that a field holds, or holds a list of."""
    item = getattr(kind, "__args__", (kind,))[0]
    return item if isinstance(item, type) and issubclass(item, msgspec.Struct) else None


def _meanings(kind: type) -> dict[str, str]:
    """The text under each field of a record's source."""
    (body,) = ast.parse(inspect.getsource(kind)).body
    assert isinstance(body, ast.ClassDef)
    found = {}
    for field, after in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            match after:
                case ast.Expr(value=ast.Constant(value=str(text))):
                    found[field.target.id] = _flat(text)
    return found


def _allowed(field: Any, key: str) -> str:
    options = getattr(field.type, "__args__", ())
    if options and all(isinstance(option, str) for option in options):
        return "One of " + ", ".join(f"`{option}`" if option else "empty" for option in options) + "."
    if key == "kv.block_tokens":
        return "A power of two from 32 to 4096."
    bounds = BOUNDS.get(key.replace(".N", ".*"))
    if bounds is None or field.type in (config.ByteSize, config.Duration):
        return ""
    low, high = bounds
    return f"{low:g} to {high:,.12g}.".replace(",", "\u202f") if high < 1e9 else f"At least {low:g}."


def _default(field: Any) -> str:
    value = field.default if field.default is not msgspec.NODEFAULT else field.default_factory
    if value is msgspec.NODEFAULT:
        return "required"
    if callable(value):
        value = value()
    match value:
        case config.ByteSize():
            return show_bytes(value)
        case config.Duration():
            return show_duration(value)
        case bool():
            return str(value).lower()
        case "" | () | {}:
            return "empty"
        case dict():
            return "empty" if not value else f"`{value}`"
        case _:
            return f"`{value}`"


def _flat(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    print(render_page(), end="")  # noqa: T201 - its purpose
