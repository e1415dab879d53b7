from __future__ import annotations

from nightfill.engines.last_words import LastWords
from nightfill.engines.llama.process import TEXTLESS

LOADING = b"0.00.003.633 E llama_model_load: error loading model: tensor is not within the file bounds\n"


def test_the_tail_is_that_of_the_stream_however_it_is_cut() -> None:
    text = LOADING + b"\nsecond line\nthird"
    words = LastWords(TEXTLESS)
    for i in range(len(text)):
        words.feed(text[i : i + 1])
    assert words.tail() == "llama_model_load: error loading model: tensor is not within the file bounds; second line"


def test_what_is_kept_is_bounded() -> None:
    words = LastWords(TEXTLESS)
    words.feed(b"x" * 1_000_000)
    words.feed(b"y\n" * 1000)
    words.feed(b"z" * 1_000_000 + b"\nend\n")
    assert len(words.tail(10_000)) < 2000
    assert words.tail(2).endswith("; end")


def test_once_it_serves_only_lines_that_cannot_quote_a_request_are_kept() -> None:
    words = LastWords(TEXTLESS)
    words.feed(b"loading secret-model\n")
    words.serving()
    words.feed(
        b"parse: error parsing grammar: expecting ')' at \n\nroot ::= (\n"
        b"0.01.020.068 E llama_state_seq_load_file: error loading sequence state file\n"
        b"0.01.020.069 E llama_grammar_init_impl: grammar root ::= x\n"
        b"0.01.020.188 E srv    send_error: task id = 3, error: bad value 'x'\n"
        b"0.01.020.190 W srv    operator(): got exception: last read: 'x'\n"
        b"/src/ggml.c:12: GGML_ASSERT(n > 0) failed\n"
    )
    words.note("ended with status -6")
    assert words.tail().split("; ") == [
        "loading secret-model",
        "llama_state_seq_load_file: error loading sequence state file",
        "/src/ggml.c:12: GGML_ASSERT(n > 0) failed",
        "ended with status -6",
    ]


def test_the_words_of_the_child_before_are_still_there_when_the_next_one_begins() -> None:
    words = LastWords(TEXTLESS)
    words.feed(LOADING + b"half a li")
    words.begin()
    words.feed(b"new\n")
    assert words.tail(1) == "new"
    assert "error loading model" in words.tail()
