"""Vocabulary of the demo models: byte-level BPE with merges trained on Python source (`tools/make_demo_merges.py`).

Any text can be written in it, as each byte is a token; some 3.5 bytes of Python source make one token.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from typing import Final

PRE_TOKENIZER: Final = "qwen2"
"""How llama.cpp is to cut text before merging; the merges were trained on text cut so."""

END_OF_TEXT: Final = "<|endoftext|>"
TURN_START: Final = "<|im_start|>"
TURN_END: Final = "<|im_end|>"
SPECIAL: Final = (END_OF_TEXT, TURN_START, TURN_END)

CHAT_TEMPLATE: Final = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def _byte_symbols() -> tuple[str, ...]:
    """One printable character per byte, as GPT-2's vocabulary writes them: itself, or the next from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = iter(range(0x100, 0x200))
    return tuple(chr(byte) if byte in printable else chr(next(spare)) for byte in range(256))


BYTE_SYMBOLS: Final = _byte_symbols()
_BYTE_OF: Final = {symbol: byte for byte, symbol in enumerate(BYTE_SYMBOLS)}


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Tokens by id: 256 bytes, then one per merge, then the special ones."""

    tokens: tuple[str, ...]
    """In byte symbols; special ones as they are."""
    merges: tuple[str, ...]
    """Two tokens with a space between them, first merged first."""

    @property
    def special_ids(self) -> range:
        """Ids of `SPECIAL`, in that order."""
        return range(len(self.tokens) - len(SPECIAL), len(self.tokens))

    def id_of(self, special: str) -> int:
        """Id of one of `SPECIAL`."""
        return self.special_ids[SPECIAL.index(special)]

    def bytes_of(self, token: int) -> bytes:
        """What a token that is not special stands for."""
        return bytes(_BYTE_OF[symbol] for symbol in self.tokens[token])

    def is_speakable(self, token: int) -> bool:
        """Whether a demo model may say it; the others get logit 0, far below the winners.

        Without an end of the text an answer has as many tokens as were asked for, and without halves of characters and
        control codes it is valid text.
        """
        if token in self.special_ids:
            return False
        try:
            text = self.bytes_of(token).decode("utf-8")
        except UnicodeDecodeError:
            return False
        return all(char.isprintable() or char in "\n\t" for char in text)


def load() -> Vocabulary:
    """Read the merges that are part of the package."""
    text = resources.files(__package__).joinpath("demo_merges.txt").read_text(encoding="utf-8")
    merges = tuple(line for line in text.splitlines() if line and not line.startswith("#version"))
    tokens = dict.fromkeys([*BYTE_SYMBOLS, *(merge.replace(" ", "") for merge in merges)])
    return Vocabulary((*tokens, *SPECIAL), merges)
