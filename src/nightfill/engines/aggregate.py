"""Puts the events of a streamed answer together into the answer that the request would have had without streaming.

llama.cpp notices that a client has left only while it writes to it. A request that is not streamed would be computed to
its end for nobody, so we stream each one and put it together here. So are streamed answers that are kept for later.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

_CHUNK_OBJECTS: Final = {"chat.completion.chunk": "chat.completion", "text_completion": "text_completion"}
_PER_EVENT: Final = frozenset({"choices", "object", "prompt_progress", "delta", "usage"})

JsonObject = dict[str, Any]


class Aggregate:
    """The answer so far. Feed it the payload of each event, in order, without `[DONE]`."""

    def __init__(self, *, copies: int = 1) -> None:
        """`copies`: answers to each prompt (`n`). Each reports the tokens of its prompt, which count once."""
        self._copies = copies
        self._usages: list[JsonObject] = []
        self._members: JsonObject = {}
        self._choices: dict[int, JsonObject] = {}
        self.error: bytes | None = None
        """The payload that reported a failure midway, if one did."""

    def add(self, payload: bytes) -> None:
        """Take in one event. Raises msgspec.DecodeError when it is not a JSON object."""
        event = msgspec.json.decode(payload, type=dict[str, Any])
        if "error" in event:
            self.error = payload
            return
        self._members |= {name: value for name, value in event.items() if name not in _PER_EVENT}
        if event.get("usage"):
            self._usages.append(event["usage"])
        if (kind := event.get("object")) is not None:
            self._members["object"] = _CHUNK_OBJECTS.get(kind, kind)
        for part in event.get("choices", ()):
            choice = self._choices.setdefault(part["index"], {"index": part["index"]})
            _add_choice(choice, part)

    def body(self) -> bytes:
        """The whole answer as JSON."""
        choices = [self._choices[index] for index in sorted(self._choices)]
        usage = {"usage": _together(self._usages, self._copies)} if self._usages else {}
        return msgspec.json.encode({"choices": choices, **self._members, **usage})


def _together(usages: list[JsonObject], copies: int) -> JsonObject:
    """One count for all; as it is where there is only one."""
    if len(usages) == 1:
        return usages[0]
    prompt = sum(usage.get("prompt_tokens", 0) for usage in usages) // copies
    output = sum(usage.get("completion_tokens", 0) for usage in usages)
    cached = sum((usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0) for usage in usages) // copies
    return {
        **usages[0],
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": prompt + output,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def _add_choice(choice: JsonObject, part: JsonObject) -> None:
    choice["finish_reason"] = part.get("finish_reason") or choice.get("finish_reason")
    if "delta" in part:
        _add_delta(choice.setdefault("message", {"role": "assistant", "content": None}), part["delta"])
    if "text" in part:
        choice["text"] = choice.get("text", "") + part["text"]
        choice.setdefault("logprobs", None)
    if part.get("logprobs"):
        choice["logprobs"] = _joined(choice.get("logprobs"), part["logprobs"])


def _add_delta(message: JsonObject, delta: JsonObject) -> None:
    for name, value in delta.items():
        if name == "tool_calls":
            _add_calls(message.setdefault("tool_calls", []), value)
        elif name == "role":
            message["role"] = value
        elif isinstance(value, str):
            message[name] = (message.get(name) or "") + value
        elif value is not None:
            message[name] = value


def _add_calls(calls: list[JsonObject], parts: list[JsonObject]) -> None:
    for part in parts:
        index = part.get("index", len(calls))
        while len(calls) <= index:
            calls.append({"type": "function", "function": {"name": "", "arguments": ""}})
        call = calls[index]
        call |= {name: value for name, value in part.items() if name not in ("index", "function")}
        for name, value in part.get("function", {}).items():
            call["function"][name] = call["function"].get(name, "") + value


def _joined(before: JsonObject | None, more: JsonObject) -> JsonObject:
    """Log-probabilities: lists grow, whatever they are called."""
    if before is None:
        return more
    joined = dict(before)
    for name, value in more.items():
        joined[name] = [*(before.get(name) or []), *value] if isinstance(value, list) else value
    return joined
