"""Settings from a YAML file, the environment and the command line; later ones win. The sole importer of yaml.

Every key has an environment variable: `gateway.max_in_flight` is `NIGHTFILL_GATEWAY__MAX_IN_FLIGHT`, an item of a list
goes by its number (`NIGHTFILL_ENGINES__0__MODEL`), and a whole list or object may be given as JSON or YAML.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import yaml

from nightfill.cli.bounds import check_bounds
from nightfill.cli.units import decode_unit
from nightfill.config import Settings
from nightfill.errors import BadSetting

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PREFIX: Final = "NIGHTFILL_"
_APART: Final = frozenset({"NIGHTFILL_CONFIG", "NIGHTFILL_VLLM_PYTHON"})
_MAX_FILE_BYTES: Final = 1 << 20
_MAX_ITEMS: Final = 64
_BOOL: Final = "tag:yaml.org,2002:bool"
_UNSHOWN: Final = ("api_key", "url", "state")
"""Parts of keys whose values may be or hold a secret."""


def load_settings(
    *, file: Path | None, environ: Mapping[str, str], overrides: Mapping[str, object] | None = None
) -> Settings:
    """The settings of `file` (or of the file that NIGHTFILL_CONFIG names), `environ` and `overrides` (dotted keys).

    Raises BadSetting, which names the key, its value and what is allowed.
    """
    if file is None and environ.get("NIGHTFILL_CONFIG"):
        file = Path(environ["NIGHTFILL_CONFIG"]).expanduser()
    raw = _read(file) if file is not None else {}
    for name in sorted(environ):
        if name.startswith(PREFIX) and name not in _APART:
            keys = name.removeprefix(PREFIX).lower().split("__")
            _place(raw, keys, _parsed(environ[name], keys, name), f"environment variable {name}")
    for key, value in (overrides or {}).items():
        _place(raw, key.split("."), value, key)
    refuse_unknown(raw, Settings, "")
    settings = _converted(raw)
    check_bounds(settings)
    return settings


def default_data_dir(environ: Mapping[str, str]) -> Path:
    """`$XDG_DATA_HOME/nightfill`, or `~/.local/share/nightfill`."""
    return _xdg(environ, "XDG_DATA_HOME", ".local/share")


def cache_dir(environ: Mapping[str, str]) -> Path:
    """`$XDG_CACHE_HOME/nightfill`, or `~/.cache/nightfill`; for what can be made again, such as demo models."""
    return _xdg(environ, "XDG_CACHE_HOME", ".cache")


def data_dir(settings: Settings, environ: Mapping[str, str]) -> Path:
    """Where state and KV live, absolute. Not created."""
    chosen = Path(settings.data_dir).expanduser() if settings.data_dir else default_data_dir(environ)
    return chosen.absolute()


def _xdg(environ: Mapping[str, str], variable: str, fallback: str) -> Path:
    given = environ.get(variable, "")
    # The XDG specification tells to ignore relative paths.
    base = Path(given) if given.startswith("/") else Path(environ.get("HOME") or Path.home()) / fallback
    return base / "nightfill"


def _read(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as stream:
            text = stream.read(_MAX_FILE_BYTES + 1)
    except OSError as exc:
        raise BadSetting(f"settings file {file}: {exc.strerror}", param="--config") from exc
    if len(text) > _MAX_FILE_BYTES:
        raise BadSetting(f"settings file {file}: larger than 1 MiB; is it the right file?", param="--config")
    try:
        raw = yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, RecursionError) as exc:
        mark = getattr(exc, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(exc, "problem", None) or "not YAML text, or nested too deep"
        raise BadSetting(f"settings file {file}{where}: {problem}", param="--config") from exc
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise BadSetting(
            f"settings file {file}: must hold keys and values, such as `log_level: info`", param="--config"
        )
    return raw


class _Loader(yaml.SafeLoader):
    """Refuses keys given twice, of which YAML readers silently take the last. `off`, `on`, `yes` and `no` are words, as
    in YAML 1.2: they are values of some settings.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else None
            if name is not None and name != "<<" and name in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {name!r} is given twice", key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in rules if tag != _BOOL or first in "tTfF"]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _parsed(text: str, keys: Sequence[str], name: str) -> object:
    """An environment variable's value: text where the key takes text, else YAML (and so JSON)."""
    if _takes_text(keys):
        return text
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, RecursionError) as exc:
        raise BadSetting(f"environment variable {name}: not YAML or JSON", param=".".join(keys)) from exc


def _takes_text(keys: Sequence[str]) -> bool:
    kind: object = msgspec.inspect.type_info(Settings)
    for key in keys:
        match kind:
            case msgspec.inspect.StructType(fields=fields):
                kind = next((field.type for field in fields if field.name == key), None)
            case msgspec.inspect.VarTupleType(item_type=item):
                kind = item
            case msgspec.inspect.DictType(value_type=value):
                kind = value
            case _:
                return False
    return isinstance(kind, msgspec.inspect.StrType | msgspec.inspect.LiteralType)


def _place(raw: dict[str, Any], keys: Sequence[str], value: object, shown: str) -> None:
    """Set a value below nested objects and lists, which are made where they are missing."""
    here: Any = raw
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        fresh: Any = value if last else ([] if keys[depth + 1].isdigit() else {})
        if isinstance(here, list) and key.isdigit():
            index = int(key)
            if index > len(here) or index >= _MAX_ITEMS:
                raise BadSetting(f"{shown}: there is no item {index - 1} before it", param=".".join(keys))
            if index == len(here):
                here.append(fresh)
            elif last:
                here[index] = value
            here = here[index]
        elif isinstance(here, dict):
            if last or here.get(key) is None:
                here[key] = fresh
            here = here[key]
        else:
            raise BadSetting(
                f"{shown}: {'.'.join(keys[:depth])} is not of a kind that has {key!r}", param=".".join(keys)
            )


def refuse_unknown(raw: object, kind: object, path: str) -> None:
    """Raise BadSetting for a key that no setting has, with the nearest ones that exist."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        _refuse_unknown_fields(raw, kind, path)
        return
    item = getattr(kind, "__args__", (None,))[0]
    if isinstance(raw, list) and isinstance(item, type):
        for index, entry in enumerate(raw):
            refuse_unknown(entry, item, f"{path}.{index}")


def _refuse_unknown_fields(raw: object, kind: type[msgspec.Struct], path: str) -> None:
    if not isinstance(raw, dict):
        return
    fields = {field.name: field.type for field in msgspec.structs.fields(kind)}
    for key, value in raw.items():
        dotted = f"{path}.{key}" if path else str(key)
        if key not in fields:
            near = difflib.get_close_matches(str(key), list(fields), n=1, cutoff=0.5) or _elsewhere(str(key))
            hint = f"did you mean {_joined(path, near[0])}?" if near else f"allowed: {', '.join(fields)}"
            raise BadSetting(f"unknown setting {dotted}; {hint}", param=dotted)
        refuse_unknown(value, fields[key], dotted)


def _joined(path: str, key: str) -> str:
    return key if "." in key or not path else f"{path}.{key}"


def _elsewhere(key: str) -> list[str]:
    """A section that has this very key: `port` is `gateway.port`."""
    return [
        f"{section.name}.{key}"
        for section in msgspec.structs.fields(Settings)
        if isinstance(section.type, type) and issubclass(section.type, msgspec.Struct)
        if key in section.type.__struct_fields__
    ][:1]


def _converted(raw: dict[str, Any]) -> Settings:
    try:
        return msgspec.convert(raw, Settings, dec_hook=decode_unit)
    except msgspec.ValidationError as exc:
        what, _, at = str(exc).partition(" - at ")
        path = re.sub(r"\[(\d+)\]", r".\1", at.strip("`").removeprefix("$").removeprefix(".")).replace("[...]", ".*")
        missing = re.match(r"Object missing required field `(\w+)`", what)
        if missing:
            key = f"{path}.{missing[1]}"
            raise BadSetting(f"setting {key} is missing", param=key) from exc
        allowed = _allowed(what, path)
        raise BadSetting(f"setting {path}{_value_at(raw, path)}: {allowed}", param=path) from exc


def _allowed(what: str, path: str) -> str:
    """What a value must be, in the words of the settings file."""
    words = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text", "array": "a list"}
    expected = re.match(r"Expected `(\w+)`", what)
    if expected:
        return f"must be {words.get(expected[1], 'keys and values')}"
    if what.startswith("Invalid enum value"):
        kind: Any = Settings
        for key in path.split("."):
            if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
                kind = next(field.type for field in msgspec.structs.fields(kind) if field.name == key)
            else:
                kind = kind.__args__[-1 if kind.__origin__ is dict else 0]
        return f"must be one of {', '.join(kind.__args__)}"
    return what


def _value_at(raw: Any, path: str) -> str:
    if any(part in path for part in _UNSHOWN):
        return ""
    for key in path.split("."):
        try:
            raw = raw[int(key)] if isinstance(raw, list) else raw[key]
        except (KeyError, IndexError, ValueError, TypeError):
            return ""
    shown = repr(raw)
    return f" = {shown if len(shown) <= 80 else shown[:77] + '...'}"
