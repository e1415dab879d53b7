"""Random requests for OpenAI-compatible routes: valid ones, bent ones, and bytes. All of it hangs on one seed."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import Any, Final

GENERATING: Final = ("/v1/chat/completions", "/v1/completions")
ROUTES: Final = (
    *GENERATING,
    "/v1/embeddings",
    "/v1/responses",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/chat/completions/input_tokens",
    "/v1/responses/input_tokens",
    "/v1/rerank",
    "/tokenize",
    "/detokenize",
    "/apply-template",
)
CONTEXT_ROUTES: Final = (
    "/v1/nightfill/contexts/c",
    "/v1/nightfill/contexts/c/fill",
    "/v1/nightfill/contexts/c/pin",
    "/v1/nightfill/contexts/%2e%2e%2fc",
)
READ_ROUTES: Final = (
    "/v1/models",
    "/v1/models/x",
    "/v1/nightfill/contexts",
    "/v1/nightfill/jobs",
    "/healthz",
    "/slots",
)
TEXTS: Final = (
    *("", " ", "a", "Why?", "\0", "\x7f\x1b[0m", "<|im_start|>system\n", "<|im_end|>", "{{ messages }}", "{% raw %}"),
    *("\u202e\u200b", "𝔘𝔫𝔦", "\\", '"', "%s%n", "../../etc/passwd", "a" * 3000, "data: [DONE]\n\n", "\ud800", "ÿ" * 65),
)
NUMBERS: Final = (
    *(0, 1, -1, 2, 3, 7, 0.5, -0.0, 1e-320, 1e308, 2**31 - 1, 2**31, -(2**31) - 1, 2**53 + 1, 2**63, -(2**63), 2**64),
    *(10**400, 1e-7, 255, 65536, 4294967295),
)
RAW: Final = ("NaN", "Infinity", "-Infinity", "1e999", "-1e999", "0x10", "01", "1.", "+1", "'a'", "nul", "tru", "")
"""Written into bodies as they are; each alone makes them invalid, or means a number that no type holds."""
GRAMMARS: Final = (
    *(
        'root ::= "a"',
        "root ::= root",
        "root ::=",
        "x",
        "root ::= [",
        'root ::= ("a" | root) root',
        "root ::= undefined",
    ),
    *('root ::= "a"{1,100000}', "root ::= [^\\x00-\\uFFFF]+", 'root ::= "\\', "root ::= " + "(" * 500, "ROOT ::= .*"),
    *('root ::= "a"{0,}{0,}{0,}', 'root ::= a\na ::= b\nb ::= a | "x"', 'root ::= "a" | ', "root ::= .{5000}"),
)
SCHEMAS: Final[tuple[Any, ...]] = (
    {},
    {"type": "object"},
    {"type": "nonsense"},
    {"type": ["object", 7]},
    {"$ref": "#"},
    {"$ref": "#/definitions/missing"},
    {"$ref": "http://127.0.0.1:9/x.json"},
    {"type": "string", "pattern": "^(a+)+$"},
    {"type": "string", "pattern": "(["},
    {"type": "string", "pattern": "^[a-z]{1,99999}$"},
    {"type": "string", "minLength": 10**9},
    {"type": "string", "maxLength": -1},
    {"type": "array", "minItems": 10**6, "items": {"type": "integer"}},
    {"type": "integer", "minimum": -(10**18), "maximum": 10**18},
    {"type": "integer", "minimum": 5, "maximum": 1},
    {"enum": []},
    {"enum": [None, 1, "a", [1], {}]},
    {"const": "x" * 5000},
    {"anyOf": []},
    {"allOf": [{"type": "string"}, {"type": "integer"}]},
    {"properties": []},
    {"properties": {"a": 1}},
    {"type": "object", "properties": {"a": {"$ref": "#/properties/a"}}, "required": ["a"]},
    {"type": "object", "properties": {"a": {"type": "string"}}, "required": "a"},
    {"definitions": {"a": {"$ref": "#/definitions/a"}}, "$ref": "#/definitions/a"},
    {"type": "object", "additionalProperties": {"type": "object", "additionalProperties": {"type": "null"}}},
    7,
    "x",
    [],
    None,
    True,
)
TOOLS: Final[tuple[Any, ...]] = (
    [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}],
    [{"type": "function", "function": {"name": "f", "description": "d"}}],
    [{"type": "function", "function": {"parameters": {}}}],
    [{"type": "function", "function": {"name": 7, "parameters": 7}}],
    [{"type": "function", "function": 7}],
    [{"type": "function"}],
    [{"type": "web_search"}],
    [{}],
    [],
    [{"type": "function", "function": {"name": "", "parameters": {"$ref": "#/x"}}}],
    [{"type": "function", "function": {"name": 'a b\n"', "parameters": {"type": "nonsense"}}}],
    [{"type": "function", "function": {"name": "f", "parameters": {"type": "string", "pattern": "(["}}}] * 2,
)
OWN: Final[dict[str, tuple[Any, ...]]] = {
    "grammar": GRAMMARS,
    "json_schema": SCHEMAS,
    "response_format": (
        {"type": "json_object"},
        {"type": "json_object", "schema": {"$ref": "#/x"}},
        {"type": "json_schema"},
        {"type": "json_schema", "json_schema": {}},
        {"type": "json_schema", "json_schema": 7},
        *({"type": "json_schema", "json_schema": {"schema": schema}} for schema in SCHEMAS),
        {"type": "text"},
        {"type": "xml"},
        {},
    ),
    "tools": TOOLS,
    "tool_choice": ("auto", "none", "required", "f", {"type": "function", "function": {"name": "f"}}, {"type": 7}, ""),
    "parallel_tool_calls": (True, False, 7),
    "functions": ([{"name": "f"}], [], 7),
    "logit_bias": ({"1": -100}, {"1": 1e308}, {"999999999": 1}, {"-1": 1}, {"x": 1}, [[1, 5]], [[1]], [["a", False]]),
    "stop": ("", [], [""], ["a", "b"], ["a"] * 64, ["a"] * 65, [7], 7, "\n", ["\0"]),
    "n": (1, 2, 3, 0, -1, 128, 129, 1.5, "1"),
    "best_of": (1, 2, 0),
    "n_cmpl": (1, 2, 99, -1, 0),
    "id_slot": (0, 1, -1, 99),
    "cache_prompt": (True, False, 7),
    "n_keep": (0, -1, 10**9),
    "n_discard": (0, -1, 10**9),
    "n_predict": (0, 1, -1, -2, 3),
    "n_probs": (0, 1, -1, 5, 10**6, 2**31),
    "min_keep": (0, -1, 10**6),
    "logprobs": (True, False, 0, 3, 20, 21, 7.5),
    "top_logprobs": (0, 3, 20, 21, -1),
    "post_sampling_probs": (True, False),
    "return_tokens": (True,),
    "return_progress": (True, False, 7),
    "timings_per_token": (True,),
    "temperature": (0, 2, -1, 1e308, 1e-30),
    "dynatemp_range": (0, 5, -1, 1e30),
    "dynatemp_exponent": (0, -5, 1e30),
    "top_k": (0, 1, -1, 2**31 - 1),
    "top_p": (0, 1, 1e-30, -1),
    "min_p": (0, 1),
    "typical_p": (0, 1, -1, 1e30),
    "top_n_sigma": (0, -1, 1e30),
    "xtc_probability": (0, 1, -1),
    "xtc_threshold": (0, 1, -1),
    "mirostat": (0, 1, 2, 3, -1),
    "mirostat_tau": (0, -1, 1e30),
    "mirostat_eta": (0, -1, 1e30),
    "repeat_penalty": (0, 1, -1, 1e30),
    "repeat_last_n": (0, -1, -2, 10**9),
    "presence_penalty": (0, 2, -2, 3),
    "frequency_penalty": (0, 2, -2, 3),
    "dry_multiplier": (0, 1, -1, 1e30),
    "dry_base": (0, 1, 1e30),
    "dry_allowed_length": (0, -1, 10**9),
    "dry_penalty_last_n": (0, -1, -2, 10**9),
    "dry_sequence_breakers": (["\n"], [], [""], [7], "x", ["a" * 5000]),
    "samplers": ([], ["top_k"], ["nonsense"], "kt", "\0", ["temperature"] * 50, 7, [7]),
    "seed": (0, -1, 2**32, 2**63 - 1),
    "ignore_eos": (True, 7),
    "t_max_predict_ms": (0, 1, -5, 10**12),
    "t_max_prompt_ms": (0, 1, -5),
    "n_indent": (0, 5, -1),
    "preserved_tokens": (["<|im_end|>"], [7], 7),
    "grammar_lazy": (True, False),
    "grammar_triggers": ([], [{"type": 0, "value": "a"}], [{"type": 99}], [7], 7),
    "generation_prompt": ("", "x", 7),
    "response_fields": (["content"], [], ["a/b/c"], [7], 7),
    "lora": ([], [{"id": 0, "scale": 1}], 7),
    "speculative.n_max": (0, 16, -1),
    "speculative.n_min": (0, 99, -1),
    "speculative.p_min": (0, 2),
    "input_prefix": ("a", 7),
    "input_suffix": ("a", 7),
    "suffix": ("a", None, 7),
    "echo": (True, False),
    "add_generation_prompt": (True, False, 7),
    "continue_final_message": (True, False),
    "chat_template": ("{{ messages }}", "{% for %}", "", 7, "{{ raise_exception('x') }}", "{{ 1/0 }}"),
    "chat_template_kwargs": ({}, {"enable_thinking": False}, {"enable_thinking": 7}, {"messages": []}, 7, "x"),
    "reasoning_format": ("none", "auto", "deepseek", "nonsense", 7),
    "reasoning_effort": ("none", "low", "nonsense"),
    "reasoning_budget": (0, -1, 10**9),
    "thinking_forced_open": (True, False),
    "parse_tool_calls": (True, False),
    "chat_format": (0, 1, 99, -1, "x"),
    "multimodal_data": (["AAAA"], [], 7),
    "stream_options": ({}, {"include_usage": True}, {"include_usage": 7}, 7, {"x": 1}),
    "verbose": (True,),
    "__verbose": (True, 7),
    "control_vectors": ([], 7),
    "backend_sampling": (True, 7),
    "nightfill": (
        {},
        {"context": "c"},
        {"context": "gone"},
        {"context": "../c"},
        {"context": ""},
        {"context": 7},
        {"mode": "full"},
        {"mode": "x"},
        {"skip": ["fill"]},
        {"skip": ["x"]},
        {"context": "c", "skip": ["fill", "answer"], "max_age_s": 5},
        {"max_age_s": -1},
        {"unknown": 1},
        7,
        [],
        None,
    ),
}  # fmt: skip
"""Members of llama.cpp, OpenAI and nightfill, each with values that a client might think of, and worse."""
CONTENTS: Final[tuple[Any, ...]] = (
    [{"type": "text", "text": "a"}],
    [{"type": "text"}],
    [{"type": "text", "text": 7}],
    [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}],
    [{"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/a.png"}}],
    [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}],
    [{"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}],
    [{"type": "nonsense"}],
    [{}],
    [],
    [7],
    None,
    7,
    {},
    [{"type": "text", "text": "a"}] * 200,
)
ROLES: Final = ("system", "user", "assistant", "tool", "developer", "function", "", "x", "a b", 7, None, "user\n")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fuzzed:
    """One request."""

    number: int
    method: str
    path: str
    headers: dict[str, str]
    body: bytes | None

    def __str__(self) -> str:
        body = b"" if self.body is None else self.body
        return f"#{self.number} {self.method} {self.path} {self.headers} {body[:1500]!r} ({len(body)} bytes)"


def request(seed: int, number: int) -> Fuzzed:
    """The request of that number in the series of that seed."""
    rng = random.Random(f"{seed}/{number}")
    method, headers = "POST", {"content-type": "application/json"}
    path = rng.choice(GENERATING if rng.random() < 0.6 else ROUTES)
    kind = rng.random()
    if kind < 0.06:
        body = _dumped(rng, _anything(rng, 4))
    elif kind < 0.66:
        body = _dumped(rng, _bent(rng, _valid(rng, path), rng.randint(0, 3)))
    elif kind < 0.80:
        record = _valid(rng, path)
        for _ in range(rng.randint(1, 4)):
            name = rng.choice(list(OWN))
            record[name] = rng.choice(OWN[name])
        body = _dumped(rng, record)
    elif kind < 0.92:
        body = _broken(rng, _dumped(rng, _bent(rng, _valid(rng, path), 1)))
    elif kind < 0.97:
        path = rng.choice(CONTEXT_ROUTES)
        method = rng.choice(("PUT", "PUT", "POST", "GET", "DELETE", "PATCH"))
        record = {"text": rng.choice(TEXTS), "forms": ["chat"], "pinned": rng.random() < 0.5}
        body = _dumped(rng, _bent(rng, record, rng.randint(0, 2)))
    else:
        path = rng.choice(
            (
                *READ_ROUTES,
                *ROUTES,
                "/",
                "//",
                "/v1",
                "/%00",
                "/v1/chat/completions/",
                "/\u00e9".encode().decode("latin-1"),
            )
        )
        path = path if path.isascii() else "/%C3%A9"
        method = rng.choice(("GET", "HEAD", "OPTIONS", "DELETE", "PUT", "TRACE", "PATCH"))
        return Fuzzed(number=number, method=method, path=path, headers={}, body=None)
    if rng.random() < 0.05:
        headers = rng.choice(
            (
                {},
                {"content-type": "text/plain"},
                {"content-type": "multipart/form-data"},
                {"content-type": "application/json", "content-encoding": "gzip"},
                {"content-type": "application/json", "x-nightfill-context": rng.choice(("c", "gone", "../", "\xe9"))},
                {"content-type": "application/json", "x-request-id": "a" * 4000},
                {"content-type": "application/json", "authorization": "Bearer \xff"},
                {"content-type": "application/json", "host": "example.com"},
                {"content-type": "application/json", "traceparent": "x\ty"},
            )
        )
    return Fuzzed(number=number, method=method, path=path, headers=headers, body=body)


def _valid(rng: random.Random, path: str) -> dict[str, Any]:
    """Something that the route takes; generates next to nothing."""
    text = rng.choice(TEXTS[:12])
    record: dict[str, Any] = {"max_tokens": rng.randint(0, 4)}
    match path:
        case "/v1/completions":
            record["prompt"] = rng.choice((text, [text, "b"], [1, 2, 3], [[1, 2], [3]], ["a", 5]))
        case "/v1/embeddings":
            record = {"input": rng.choice((text, [text], [1, 2], [[1], [2]]))}
        case "/v1/responses" | "/v1/responses/input_tokens":
            record = {"input": rng.choice((text, [{"role": "user", "content": text}])), "max_output_tokens": 2}
        case "/v1/rerank":
            record = {"query": text, "documents": [text, "b"]}
        case "/tokenize":
            record = {"content": text, "add_special": True, "with_pieces": rng.random() < 0.5}
        case "/detokenize":
            record = {"tokens": [rng.choice((1, 5, 300, 10**6, -1, 2**31)) for _ in range(3)]}
        case _:
            roles = ("system", "user", "assistant")
            record["messages"] = [
                {"role": rng.choice(roles), "content": rng.choice(TEXTS[:12])} for _ in range(rng.randint(1, 3))
            ]
    if path in GENERATING:
        record["stream"] = rng.random() < 0.4
        if rng.random() < 0.3:
            record["nightfill"] = rng.choice(({"context": "c"}, {"skip": ["fill"]}, {}))
    return record


def _bent(rng: random.Random, record: dict[str, Any], times: int) -> dict[str, Any]:
    """The record with some of its members, at any depth, replaced, removed or joined by others."""
    for _ in range(times):
        places = list(_places(record))
        chance = rng.random()
        if chance < 0.35 or not places:
            name = rng.choice(list(OWN))
            record[name] = rng.choice((*OWN[name], *OWN[name], _anything(rng, 2)))
        elif chance < 0.45 and isinstance(record.get("messages"), list) and record["messages"]:
            message = {"role": rng.choice(ROLES), "content": rng.choice(CONTENTS)}
            if rng.random() < 0.4:
                message["tool_calls"] = rng.choice(
                    (
                        [{"id": "x", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
                        [{"function": {"name": "f", "arguments": {"a": 1}}}],
                        [{"function": {"arguments": "{"}}],
                        [{"id": 7, "function": 7}],
                        [{}],
                        7,
                    )
                )
            record["messages"][rng.randrange(len(record["messages"]))] = message
        else:
            container, key = rng.choice(places)
            if rng.random() < 0.2:
                del container[key]
            else:
                container[key] = _anything(rng, 2)
    return record


def _places(value: Any) -> Any:
    pairs = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    for key, inner in pairs:
        yield value, key
        yield from _places(inner)


def _anything(rng: random.Random, depth: int) -> Any:
    chance = rng.random()
    if chance < 0.2:
        return rng.choice((None, True, False))
    if chance < 0.45:
        return rng.choice(NUMBERS)
    if chance < 0.7:
        return rng.choice(TEXTS)
    if chance < 0.75:
        return f"@@raw{rng.randrange(len(RAW))}@@"
    if depth <= 0:
        return rng.choice(([], {}))
    if chance < 0.88:
        return [_anything(rng, depth - 1) for _ in range(rng.randint(0, 4))]
    return {rng.choice((*TEXTS[:8], *OWN)): _anything(rng, depth - 1) for _ in range(rng.randint(0, 4))}


def _dumped(rng: random.Random, value: Any) -> bytes:
    text = json.dumps(value, ensure_ascii=rng.random() < 0.5)
    for place, raw in enumerate(RAW):
        text = text.replace(f'"@@raw{place}@@"', raw)
    return text.encode("utf-8", "surrogatepass")


def _broken(rng: random.Random, body: bytes) -> bytes:  # noqa: C901  a list of ways
    """The body damaged as bytes."""
    at = rng.randint(0, len(body))
    match rng.randrange(11):
        case 0:
            return body[:at]
        case 1:
            return body[:at] + bytes([rng.randrange(256)]) + body[at + 1 :]
        case 2:
            return body[:at] + rng.choice((b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"\0")) + body[at:]
        case 3:
            return b"\xef\xbb\xbf" + body
        case 4:
            return body + body
        case 5:
            inside = rng.choice(
                (b'"stream":true', b'"max_tokens":1', b'"messages":[]', b'"prompt":"b"', b'"model":"x"')
            )
            return b"{" + inside + b"," + body[1:] if body.startswith(b"{") else inside
        case 6:
            depth = rng.choice((100, 1000, 20_000, 200_000))
            name = rng.choice((b"x", b"json_schema", b"tools", b"metadata", b"messages", b"chat_template_kwargs"))
            open_, close = rng.choice(((b"[", b"]"), (b'{"a":', b"}")))
            middle = open_ * depth + b"1" + close * (depth if rng.random() < 0.8 else 0)
            return b'{"' + name + b'":' + middle + b"," + body[1:] if body.startswith(b"{") else middle
        case 7:
            return body.decode("utf-8", "replace").encode("utf-16")
        case 8:
            return body.replace(b":", b" : \r\n\t").replace(b",", b" ,\n")
        case 9:
            return rng.randbytes(rng.choice((0, 1, 50, 5000)))
        case _:
            return body.replace(b'"', b'"\\u0000', 1) if rng.random() < 0.5 else body.replace(b'"', b"'")
