"""Print, as JSON, the members of NVIDIA's real binding classes, with the signatures they document.

Run in a process of its own: `python tensorrt_members.py MODULE LIBRARY...`. The libraries are
loaded first, so that bindings can be imported whose own libraries are not here.
"""

from __future__ import annotations

import ctypes
import importlib
import inspect
import json
import re
import sys


def split_top_level(text: str) -> list[str]:
    parts, depth, start = [], 0, 0
    for index, char in enumerate(text):
        depth += (char in "([<{") - (char in ")]>}")
        if char == "," and depth == 0:
            parts.append(text[start:index])
            start = index + 1
    return [part.strip() for part in (*parts, text[start:]) if part.strip()]


def arities(name: str, documented: str) -> list[tuple[int, int]]:
    """Fewest and most arguments of each overload, self left out."""
    text = documented.replace("->", "\0")
    found = []
    for signature in re.findall(rf"^(?:\d+\. )?{name}\((.*)\) \0", text, re.MULTILINE):
        arguments = split_top_level(signature)
        if not arguments or arguments == ["*args", "**kwargs"]:
            continue
        arguments = [one for one in arguments if not one.startswith("self:")]
        found.append((sum("=" not in one for one in arguments), len(arguments)))
    return found


module = sys.argv[1]
for library in sys.argv[2:]:
    ctypes.CDLL(library, ctypes.RTLD_GLOBAL)
bindings = importlib.import_module(module)
described = {"__version__": bindings.__version__, "__module__": dir(bindings)}
for class_name, kind in inspect.getmembers(bindings, inspect.isclass):
    described[class_name] = {
        member: arities(member, getattr(kind, member).__doc__ or "")
        for member in dir(kind)
        if not member.startswith("__")
    }
    described[class_name]["__init__"] = arities("__init__", kind.__init__.__doc__ or "")
print(json.dumps(described))
