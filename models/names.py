"""Names that come from files: which are taken into a contract, and how any is shown."""

from __future__ import annotations

import unicodedata

LONGEST_NAME = 100


def is_name(value: object) -> bool:
    """Whether a value names a class or a split: printable text of 1 to 100 characters.

    Newlines, control characters, terminal escapes and marks of direction are not printable; such
    a name would end a line of `labels.txt`, or show itself as another.
    """
    return (
        isinstance(value, str)
        and 0 < len(value) <= LONGEST_NAME
        and value.isprintable()
        and not value.isspace()
    )


def are_names(value: object) -> bool:
    """Whether a value is a list of names, no two of them equal."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(map(is_name, value))
        and len(set(value)) == len(value)
    )


def is_line(value: object) -> bool:
    """Whether a value is text that can stand on one line anywhere; it may be empty."""
    return isinstance(value, str) and value.isprintable() and len(value) < 1 << 16


def escaped(text: str) -> str:
    """The text with all that is not printable as an escape such as `\\x1b` or `\\u202e`.

    It can be shown in a terminal, in XML and in HTML: no control character, no mark of direction
    and no half of a surrogate pair is left in it.
    """
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else _escape(one) for one in text)


def shown(value: object) -> object:
    """A value for a page: text as `escaped` gives it, and anything else as it is."""
    return escaped(value) if type(value) is str else value


def _escape(character: str) -> str:
    if unicodedata.category(character) == "Zs":  # a no-break space looks like a space, and is none
        return " "
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")
