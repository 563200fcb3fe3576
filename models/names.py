"""Names read from files: validation for a contract, and escaping for display."""

from __future__ import annotations

import unicodedata

LONGEST_NAME = 100
BACKGROUND = "background"  # the class of a binary network that is everything else


def is_name(value: object) -> bool:
    """Return whether a value can name a class or a split: printable text of 1 to 100 characters.

    Newlines, control characters, terminal escapes and direction marks are not printable. A name
    with such a character could break a line of `labels.txt` or look like another name.
    """
    return (
        isinstance(value, str)
        and 0 < len(value) <= LONGEST_NAME
        and value.isprintable()
        and not value.isspace()
    )


def are_names(value: object) -> bool:
    """Return whether a value is a non-empty list of distinct names."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(map(is_name, value))
        and len(set(value)) == len(value)
    )


def is_line(value: object) -> bool:
    """Return whether a value is printable text on one line; the text may be empty."""
    return isinstance(value, str) and value.isprintable() and len(value) < 1 << 16


def escaped(text: str) -> str:
    """Return the text with every unprintable character as an escape (`\\x1b`, `\\u202e`).

    The result can be shown in a terminal, in XML and in HTML: it holds no control character, no
    direction mark and no lone surrogate.
    """
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else _escape(one) for one in text)


def shown(value: object) -> object:
    """Return text with `escaped` applied, and any other value unchanged."""
    return escaped(value) if type(value) is str else value


def _escape(character: str) -> str:
    if unicodedata.category(character) == "Zs":  # such as the no-break space
        return " "
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")
