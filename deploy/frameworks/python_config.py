"""Python configuration files of OpenMMLab, read without executing them.

Only literals, `dict(...)`, sums, earlier names and `_base_` files are read (mmengine, "Config"). A
value of anything else is refused where the value is needed.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segdeploy.errors import InputError
from segdeploy.files import check_input

_DELETE = "_delete_"
_BASE = "_base_"
_MOST_BYTES = 4 << 20
_MOST_FILES = 64
_LARGEST = 1 << 64  # of a number that is computed
_MOST_VALUES = 1_000_000  # of one name, counted through what it refers to
_OPERATIONS: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: lambda left, right: left + right,
    ast.Sub: lambda left, right: left - right,
    ast.Mult: lambda left, right: left * right,
    ast.Div: lambda left, right: left / right,
    ast.FloorDiv: lambda left, right: left // right,
}


@dataclass(frozen=True)
class _Unread:
    """A value that would have to be executed, with the message that refuses it."""

    refusal: str


def read_config(path: Path, names: Iterable[str]) -> dict[str, Any]:
    """Return the values that `names` have in a configuration, merged into those of `_base_` files.

    Names that the configuration lacks are left out.

    Raises:
        InputError: for a file that cannot be read, or a value or a statement that would have to be
            executed; the message names the line.
    """
    values = _read(path, (), {})
    found = {name: values[name] for name in names if name in values}
    for value in found.values():
        if isinstance(value, _Unread):
            raise InputError(value.refusal)
    return found


def _read(
    path: Path, opened: tuple[Path, ...], known: dict[Path, dict[str, Any]]
) -> dict[str, Any]:
    """Return the values of a file; `opened` are the files that led to it, `known` those read."""
    path = Path(path)
    if path.suffix != ".py":
        raise InputError(f"{path}: a configuration of mmsegmentation ends in .py")
    check_input(path)
    if path.resolve() in opened:
        raise InputError(f"{path}: is a {_BASE} of itself")
    if len(opened) >= _MOST_FILES:
        raise InputError(f"{path}: {_BASE} files are nested more than {_MOST_FILES} deep")
    if path.resolve() in known:
        return known[path.resolve()]
    opened = (*opened, path.resolve())
    tree = _parsed(path)
    base: dict[str, Any] = {}
    for name in _bases(tree, path):
        _check_base(name, path)
        base |= _read(path.parent / name, opened, known)
    values: dict[str, Any] = {}
    for statement in tree.body:
        _assign(statement, values, base, path)
    values.pop(_BASE, None)
    own = {name: _merged(base.get(name), value) for name, value in values.items()}
    known[path.resolve()] = {**base, **own}
    return known[path.resolve()]


def _parsed(path: Path) -> ast.Module:
    if path.stat().st_size > _MOST_BYTES:
        raise InputError(
            f"{path}: has more than {_MOST_BYTES >> 20} MiB, so it is no configuration"
        )
    try:
        return ast.parse(path.read_text(encoding="utf-8-sig"))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InputError(f"{path}: is not Python ({error})") from error


def _bases(tree: ast.Module, path: Path) -> list[str]:
    """Return the names in `_base_`, which the other statements may refer to."""
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and _target(statement) == _BASE:
            named = _Reader(path, {}, {}).value(statement.value)
            return list(named) if isinstance(named, (list, tuple)) else [named]
    return []


def _check_base(name: Any, path: Path) -> None:
    if not isinstance(name, str):
        raise InputError(f"{path}: its {_BASE} {name!r:.80} is no file name")
    if "::" in name:
        raise InputError(
            f"{path}: its {_BASE} {name} lies in an installed package; write the whole "
            "configuration in one file: mmengine's Config.fromfile(CONFIG).dump(FILE)"
        )


def _target(statement: ast.stmt) -> str | None:
    target: ast.expr | None = None
    if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
        target = statement.targets[0]
    elif isinstance(statement, ast.AnnAssign):
        target = statement.target
    return target.id if isinstance(target, ast.Name) else None


def _assign(
    statement: ast.stmt, values: dict[str, Any], base: Mapping[str, Any], path: Path
) -> None:
    """Take one assignment of a name; docstrings and imports are skipped.

    Raises:
        InputError: for any other statement.
    """
    if isinstance(statement, (ast.Import, ast.ImportFrom)):
        return
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
        return
    name = _target(statement)
    if name is None or not isinstance(statement, (ast.Assign, ast.AnnAssign)):
        raise InputError(
            f"{path}, line {statement.lineno}: {_shown(statement)} would have to be executed; "
            "write the whole configuration as literals: mmengine's "
            "Config.fromfile(CONFIG).dump(FILE)"
        )
    try:
        if statement.value is not None:  # an annotation alone has no value
            values[name] = _Reader(path, values, base).value(statement.value)
    except InputError as error:
        values[name] = _Unread(str(error))
    _check_count(values.get(name), f"{path}, line {statement.lineno}: {name}")


def _check_count(value: Any, where: str) -> None:
    """Refuse a value that doubles itself by references, as a merge would copy it."""
    waiting, count = [value], 0
    while waiting:
        one = waiting.pop()
        count += 1
        if count > _MOST_VALUES:
            raise InputError(f"{where} has more than {_MOST_VALUES:,} values")
        if isinstance(one, dict):
            waiting.extend(one.values())
        elif isinstance(one, (list, tuple)):
            waiting.extend(one)


def _shown(node: ast.AST) -> str:
    return " ".join(ast.unparse(node).split())[:60]


class _Reader:
    """The values of expressions of literals, `dict(...)`, and names that are known already."""

    def __init__(self, path: Path, values: Mapping[str, Any], base: Mapping[str, Any]):
        self._path, self._values, self._base = path, values, base

    def value(self, node: ast.expr) -> Any:
        """Return the value of an expression.

        Raises:
            InputError: for an expression that would have to be executed.
        """
        try:
            return self._value(node)
        except (
            *(KeyError, IndexError, TypeError, ArithmeticError),
            *(MemoryError, RecursionError),
        ) as error:
            raise self._refused(node) from error

    def _value(self, node: ast.expr) -> Any:
        match node:
            case ast.Constant():
                return node.value
            case ast.List() | ast.Tuple():
                held = [self.value(one) for one in node.elts]
                return held if isinstance(node, ast.List) else tuple(held)
            case ast.Set(elts=[ast.Set(elts=[one])]):  # `{{_base_.name}}`
                return self.value(one)
            case ast.Dict():
                return self._dict(zip(node.keys, node.values, strict=True))
            case ast.Call(func=ast.Name(id=name)):
                return self._call(node, name)
            case ast.Name():
                return _known(self._values[node.id])
            case ast.Attribute(value=ast.Name(id=base)) if base == _BASE:
                return _known(self._base[node.attr])
            case ast.Attribute():
                return self.value(node.value)[node.attr]
            case ast.Subscript():
                return self.value(node.value)[self.value(node.slice)]
            case ast.UnaryOp(op=ast.USub()):
                return -self.value(node.operand)
            case ast.BinOp() if type(node.op) in _OPERATIONS:
                return self._operation(node)
        raise self._refused(node)

    def _dict(self, pairs: Any) -> dict[Any, Any]:
        found: dict[Any, Any] = {}
        for key, value in pairs:
            if key is None:  # `**other`
                found |= self.value(value)
            else:
                found[self.value(key)] = self.value(value)
        return found

    def _call(self, node: ast.Call, name: str) -> Any:
        match name, node.args:
            case "dict", []:
                words = map(self._keyword, node.keywords)
                return {name: value for word in words for name, value in word.items()}
            case "sum", [ast.List() as numbers] if not node.keywords:
                return sum(self.value(numbers))
        raise self._refused(node)

    def _keyword(self, word: ast.keyword) -> dict[str, Any]:
        value = self.value(word.value)
        return {word.arg: value} if word.arg is not None else dict(value)

    def _operation(self, node: ast.BinOp) -> Any:
        left, right = self.value(node.left), self.value(node.right)
        both = isinstance(left, (int, float)) and isinstance(right, (int, float))
        lists = isinstance(left, (list, tuple)) and type(left) is type(right)
        if not both and not (lists and isinstance(node.op, ast.Add)):
            raise self._refused(node)
        made = _OPERATIONS[type(node.op)](left, right)
        if isinstance(made, int) and abs(made) > _LARGEST:
            raise self._refused(node)
        return made

    def _refused(self, node: ast.expr) -> InputError:
        return InputError(
            f"{self._path}, line {node.lineno}: {_shown(node)} would have to be executed; write "
            "the whole configuration as literals: mmengine's Config.fromfile(CONFIG).dump(FILE)"
        )


def _known(value: Any) -> Any:
    """Return a value that another value refers to.

    Raises:
        InputError: for a value that would have to be executed.
    """
    if isinstance(value, _Unread):
        raise InputError(value.refusal)
    return value


def _merged(base: Any, own: Any) -> Any:
    """Return `own` merged into `base`, as mmengine does: mappings one by one, the rest replaced."""
    if not isinstance(own, dict):
        return own
    if isinstance(base, _Unread) and not own.get(_DELETE):
        return base
    if not isinstance(base, dict) or own.get(_DELETE):
        return {key: _merged({}, value) for key, value in own.items() if key != _DELETE}
    return {**base, **{key: _merged(base.get(key), value) for key, value in own.items()}}
