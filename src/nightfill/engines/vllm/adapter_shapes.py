"""Whether a LoRA adapter is for a model, by the shapes of their matrices. Standard library only.

vLLM does not look: it takes an adapter of another width, and answers with as much of it as fits.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

Shape = tuple[int, ...]

_MAX_HEAD_BYTES: Final = 64 << 20
_FRONT: Final = "base_model.model."
_FLOATS: Final = ("F", "BF")
"""Types of matrices whose shape in the file is the one that they have; packed ones say nothing."""


def shapes_in(folder: Path) -> dict[str, Shape]:
    """Of the matrices in a folder's safetensors files, by name. Raises OSError, ValueError."""
    found: dict[str, Shape] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if size > _MAX_HEAD_BYTES:
                raise ValueError(f"{path.name}: no safetensors file")
            head = json.loads(file.read(size))
        for name, one in head.items():
            if name != "__metadata__" and one["dtype"].startswith(_FLOATS) and len(one["shape"]) == 2:
                found[name] = tuple(one["shape"])
    return found


def misfit(adapter: Mapping[str, Shape], model: Mapping[str, Shape]) -> str:
    """Why the adapter is not for the model; empty where it is, or where that does not show."""
    for name, shape in adapter.items():
        module, _, part = name.removeprefix(_FRONT).rpartition(".lora_")
        of_model = model.get(f"{module}.weight")
        if of_model is None:
            continue
        ours, wanted = (shape[1], of_model[1]) if part.startswith("A") else (shape[0], of_model[0])
        if ours != wanted:
            return f"{name} is {ours} wide, and not {wanted}"
    return ""
