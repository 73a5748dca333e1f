"""Frozen records for the hot path, without the 20 ms that `import dataclasses` costs at every container start.

Type checkers see the standard `dataclass`; at run time a smaller decorator with the same meaning stands in.
Only what the project uses is there: frozen, keyword or positional fields, immutable defaults.
"""

from __future__ import annotations

TYPE_CHECKING = False  # type checkers take this name as true; importing `typing` costs 17 ms

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from dataclasses import dataclass as dataclass
    from typing import Any, TypeVar

    T = TypeVar("T")
else:

    def dataclass(*, frozen):
        """The part of dataclasses.dataclass(frozen=True) that we use."""
        assert frozen, "records are values: they never change"
        return _freeze


def _fields(cls: Any) -> tuple[str, ...]:
    # annotations are text here (`from __future__ import annotations`), which is what makes them free
    return tuple(name for name, kind in cls.__annotations__.items() if not kind.startswith("ClassVar"))


def _freeze(cls: Any) -> Any:
    names = _fields(cls)
    defaults = {name: getattr(cls, name) for name in names if hasattr(cls, name)}

    template = {name: defaults.get(name) for name in names}  # in this order they are compared, shown and written
    # by how many are given in order: those that must come by name, and those that may
    must = [frozenset(names[count:]) - defaults.keys() for count in range(len(names) + 1)]
    may = [frozenset(names[count:]) for count in range(len(names) + 1)]

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        count = len(args)
        if count > len(names) or not must[count] <= kwargs.keys() <= may[count]:
            lacking = sorted(must[min(count, len(names))] - kwargs.keys())
            wrong = f"missing {', '.join(lacking)}" if lacking else f"unexpected arguments {args!r} {kwargs!r}"
            raise TypeError(f"{cls.__name__}: {wrong}")
        fields = self.__dict__
        fields.update(template)
        fields.update(zip(names, args, strict=False))
        fields.update(kwargs)

    def __setattr__(self: Any, name: str, value: object) -> None:
        raise AttributeError(f"{cls.__name__}.{name}: records are frozen")

    def __eq__(self: Any, other: object) -> Any:
        return self.__dict__ == other.__dict__ if type(other) is type(self) else NotImplemented

    def __hash__(self: Any) -> int:
        return hash((cls.__name__, *(getattr(self, name) for name in names)))

    def __repr__(self: Any) -> str:
        return f"{cls.__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"

    for function in (__init__, __setattr__, __eq__, __hash__, __repr__):
        setattr(cls, function.__name__, function)
    return cls


def replace(record: T, **changes: Any) -> T:
    """A copy of `record` with `changes`, as dataclasses.replace."""
    return type(record)(**{**vars(record), **changes})


def as_json(value: Any) -> Any:
    """Records to dicts and tuples to lists, all the way down: what fastjson.dumps takes."""
    if isinstance(value, (list, tuple)):
        return [as_json(item) for item in value]
    if isinstance(value, dict):
        return {key: as_json(item) for key, item in value.items()}
    if hasattr(value, "__annotations__"):
        return {name: as_json(item) for name, item in vars(value).items()}
    return value


def from_json(cls: Callable[..., T], raw: Mapping[str, Any]) -> T:
    """The record that `as_json` wrote. Keys that this version does not know are dropped, so that files of a newer
    version can be read; a missing key without a default raises TypeError. Nested records are named in `cls.NESTED`.
    """
    nested: Mapping[str, Any] = getattr(cls, "NESTED", {})
    names = _fields(cls)

    def convert(value: Any, inner: Any) -> Any:
        if isinstance(value, list):
            return tuple(convert(item, inner) for item in value)
        if isinstance(value, dict):
            return from_json(inner, value) if inner else {key: convert(item, None) for key, item in value.items()}
        return value

    return cls(**{name: convert(value, nested.get(name)) for name, value in raw.items() if name in names})
