"""Names of files and labels as text that people read: a name may hold any character."""

import re

# What a terminal or a page obeys instead of showing it: control characters, ends of lines, and
# those that turn the direction of text. And surrogates, which cannot be printed.
_OBEYED = "\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"


def printable(name: object) -> str:
    """Return a name, or a line with names in it, as one line; what is not shown is escaped."""
    return re.sub(f"[{_OBEYED}]", _escaped, str(name))


def table(frame, **options) -> str:
    """Return a pandas table as `to_string` does, with options of that; names are `printable`."""
    lines = frame.to_string(**options).split("\n")  # it escapes the ends of lines in names itself
    return "\n".join(map(printable, lines))


def _escaped(found: re.Match) -> str:
    return found[0].encode("unicode_escape").decode()
