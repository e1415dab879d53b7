from __future__ import annotations

import socket

import pytest

from nightfill.cli.running_server import ask
from nightfill.errors import NightfillError


def test_a_server_that_is_not_there_is_told_in_words_without_error_numbers() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # and does not listen
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(NightfillError) as caught:
            ask(address, "GET", "/", "")
    assert str(caught.value) == f"no answer from {address}: Connection refused; is it running?"
