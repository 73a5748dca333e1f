"""JSON without `import json` (10 ms, nearly all of it `re`): CPython's own C scanner and encoder, used directly.

Where an interpreter lacks them, or they changed, the standard module takes over; the result is the same.
"""

from __future__ import annotations

from oci_hook.values import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

_WHITESPACE = " \t\n\r"


class _Options:  # what the C scanner reads from its context
    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    memo: dict[str, str] = {}

    @staticmethod
    def parse_constant(name: str) -> float:
        raise ValueError(f"{name} is not JSON")


_OPTIONS: Any = _Options()


def _refuse(value: object) -> object:
    raise TypeError(f"{type(value).__name__} is not JSON: {value!r}")


def loads(data: bytes | str) -> Any:
    """The value of a JSON text. Raises ValueError for anything that is not one complete JSON value in UTF-8."""
    text = data if isinstance(data, str) else data.decode("utf-8")
    body = text.strip(_WHITESPACE)
    try:
        from _json import make_scanner

        value, end = make_scanner(_OPTIONS)(body, 0)
        if end == len(body):
            return value
    except RecursionError:
        raise ValueError("not JSON that can be read: nested too deep") from None
    except (ImportError, StopIteration, SystemError, ValueError):
        pass  # malformed, or another interpreter: the standard module says what is wrong, and where
    import json

    return json.loads(body, parse_constant=_Options.parse_constant)


def dumps(value: Any) -> str:
    """The JSON text of `value`, compact, in the order of its keys, ASCII only."""
    try:
        from _json import encode_basestring_ascii, make_encoder

        encoder = make_encoder({}, _refuse, encode_basestring_ascii, None, ":", ",", False, False, False)
        return "".join(encoder(value, 0))
    except (ImportError, TypeError):  # another interpreter, or another signature; the standard module also raises
        import json

        return json.dumps(value, separators=(",", ":"), allow_nan=False)
