from __future__ import annotations

import msgspec
import pytest

from nightfill.gateway.admin import PutBody
from nightfill.gateway.explanation import explained


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        ({"txt": "x"}, "txt", "unknown member 'txt'; did you mean 'text'? (known: text, messages, source, forms,"),
        ({"options": {"answrs": "x"}}, "options", "options: unknown member 'answrs'; did you mean 'answers'? (known: "),
        ({"options": {"answers": "x"}}, "options.answers", "allowed: exact, near, off, shadow"),
        ({"messages": [{"role": "user", "content": "", "nam": 1}]}, "messages[0]", "(known: role, content"),
        ({"messages": [{"role": "usr", "content": ""}]}, "messages[0].role", "allowed: assistant, developer"),
        ({"forms": ["chatt"]}, "forms[0]", "'chatt'; allowed: chat, completion"),
        ({"source": {"type": "fils"}}, "source.type", "'fils'; allowed: files, folder, git"),
        ({"source": {"paths": []}}, "source.type", "source.type is required"),
    ],
)
def test_what_is_wrong_with_a_body_is_said_with_what_its_own_record_allows(body: object, param: str, says: str) -> None:
    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.json.decode(msgspec.json.encode(body), type=PutBody)
    error = explained(caught.value, PutBody)
    assert error.param == param
    assert says in str(error)
