"""Signs that a question, or the answer to it, is about one person."""

from __future__ import annotations

import re
from typing import Final

_NUMBERED: Final = (
    "account|card|customer|order|booking|reservation|reference|ticket|policy|passport|licen[cs]e|member(?:ship)?|phone|"
    "mobile|telephone|social security|insurance|tax|id|contract|invoice|tracking|routing|serial|case|patient"
)
_OWN: Final = (
    "name|address|birthday|date of birth|age|password|pin|passcode|salary|income|diagnosis|ssn|iban|number|account|"
    "e-?mail(?: address)?|username|weight|height"
)
_STATUS: Final = (
    "ssn|iban|salary|diagnosis|blood type|balance|(?:test |blood )?results?|name|address|age|debt|transactions?|"
    "order status|(?:account|card|phone|passport|customer|policy|insurance) (?:number|no|id)"
)
_RECORDS: Final = (
    "(?:test|lab|blood|scan|biopsy) results?|medical (?:records?|history)|diagnosis|salary|payslips?|blood type|"
    "credit (?:score|report)|criminal record|(?:last|latest|most recent) (?:transactions?|purchases?)"
)
_NUMBER: Final = r"(?:numbers?|no\.?|nr\.?|id|code|#)"
_PATTERNS: Final = (
    r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+",  # e-mail
    r"(?<![\w.])\+?\(?\d(?:[ ()./-]{0,2}\d){8,}(?!\w)",  # phone, account, card: nine digits and more
    r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,4})?\b",  # IBAN
    r"\b\d{3}-\d\d-\d{4}\b",  # social security number (US)
    r"\b\d{7,}\b",
    r"(?<![\w-])\d{3}-\d{4}(?![\w-])",  # a local phone number
    r"(?i:\bending (?:in|with) \d{3,})",
    r"\b(?:\d{1,3}\.){3}\d{1,3}\b",  # address of a machine
    rf"(?i:\b(?:{_NUMBERED}) {_NUMBER} (?:is |: ?|= ?)?#?[a-z]{{0,4}}-?\d[\w-]*)",
    rf"(?i:\bmy (?:\w+ )?(?:(?:{_NUMBERED}) {_NUMBER}|ssn|social security|iban)(?!\w))",
    rf"(?i:\bmy (?:{_RECORDS})\b)",
    rf"(?i:\bmy (?:\w+ ){{0,2}}(?:{_OWN}) (?:is|was) (?!not\b|being\b|wrong\b|blocked\b|correct\b|safe\b|locked\b))",
    rf"(?i:\b(?:what|how much|how high)(?:'?s| is| was| are| were) my (?:\w+ ){{0,2}}(?:{_STATUS})\b)",
    r"(?i:\b(?:my name is|call me|i am called|i live (?:at|in)|i was born|(?:i am|i'm|i weigh|i earn) \d+))",
)
PERSONAL: Final = re.compile("|".join(f"(?:{pattern})" for pattern in _PATTERNS))
_HINT: Final = re.compile(r"[\d@]|\b(?:my|call me|i am called|i live|i was born)\b", re.IGNORECASE)
"""In every text that one of them is in; quick to look for."""


def personal(text: str) -> bool:
    """Whether `text` shows a sign of personal data: addresses, long numbers, "my account number", "my name is"."""
    return _HINT.search(text) is not None and PERSONAL.search(text) is not None
