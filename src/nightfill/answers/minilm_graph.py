"""The graph of all-MiniLM-L6-v2, put together for onnxruntime: its weights come in a file without a graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from nightfill.answers.embed import DIMENSIONS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

LAYERS: Final = 6
HEADS: Final = 12


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
