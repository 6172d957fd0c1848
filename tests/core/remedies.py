"""What makes a sentence for the user whole: it says what to do. For test_errors.py and benchmarks/fuzz.py."""

from __future__ import annotations

import re

VERBS = (  # what a user can be told to do
    "add|allow|ask|attach|cancel|change|check|choose|clear|close|convert|copy|correct|create|crop|darken|delete|"
    "disable|do without|download|draw|enable|enter|export|fetch|fill|find|free|generate|give|go|import|install|keep|"
    "leave|look|lower|make|mark|move|name|open|pick|press|put|quit|reduce|remove|rename|render|replace|report|restart|"
    "raise|run|save|select|send|set|shorten|show|split|start|stop|take|train|try|turn|type|undistort|unset|untick|"
    "update|use|wait|write"
)
# At the start of a sentence or of a part of one ("or set HF_HOME"), or what a value must be in place of what it is.
_REMEDY = re.compile(rf"(^|[.:;,)] |\b(or|and|then|please) )({VERBS})\b|\bmust be\b", re.IGNORECASE)


def has_remedy(sentence: str) -> bool:
    """Whether a sentence for the user says what to do."""
    return bool(_REMEDY.search(sentence))
