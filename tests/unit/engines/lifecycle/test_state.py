from __future__ import annotations

import re

from documents import ROOT
from nightfill.engines.lifecycle.state import TRANSITIONS, ModelState


def test_the_table_of_the_documents_is_that_of_the_code() -> None:
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    table = page.split("## States", 1)[1].split("\n\n")[1]
    rows = [line.strip("|").split("|") for line in table.splitlines()[2:]]
    documented = {
        ModelState(state.strip(" `")): frozenset(map(ModelState, re.findall(r"`(\w+)`", following)))
        for state, _, following in rows
    }
    assert documented == TRANSITIONS
