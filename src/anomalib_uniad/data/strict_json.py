# SPDX-License-Identifier: Apache-2.0
"""JSON as the standard has it: nothing that Python's parser would accept silently."""

import json
import reprlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 500


class BrokenJSONError(ValueError):
    """Text that is no JSON.

    Attributes:
        line (int): Line of the text, counted from 1.
    """

    def __init__(self, text: str, line: int = 1) -> None:
        super().__init__(text)
        self.line = line


class Constant:
    """What Python takes for a number although it is none in JSON: NaN or an infinity."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name


class RepeatedKeys(dict):
    """An object that has keys twice; their last values, as in Python.

    Attributes:
        repeated (list[str]): The keys.
    """

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        counts = Counter(key for key, _ in pairs)
        self.repeated = [key for key, count in counts.items() if count > 1]


def parse(data: bytes) -> Any:
    """Parse JSON.

    Args:
        data (bytes): Text in UTF-8.

    Returns:
        Any: The content. What JSON does not allow is in it as :class:`Constant` and :class:`RepeatedKeys`, so that
        the caller can tell where it stands.

    Raises:
        BrokenJSONError: If it is no JSON.

    Example:
        >>> parse(b'{"label": 1}')
        {'label': 1}
        >>> parse(b'{"label": 1, "label": NaN}').repeated
        ['label']
    """
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        start = data.rfind(b"\n", 0, error.start) + 1
        msg = f"is not UTF-8 (byte 0x{data[error.start]:02x} at position {error.start - start + 1})."
        raise BrokenJSONError(msg, data.count(b"\n", 0, error.start) + 1) from error
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=Constant)
    except json.JSONDecodeError as error:
        msg = f"broken JSON: {error.msg} (character {error.colno})."
        raise BrokenJSONError(msg, error.lineno) from error
    except RecursionError as error:
        msg = "broken JSON: nested too deeply."
        raise BrokenJSONError(msg) from error
    except ValueError as error:  # numbers with thousands of digits
        msg = f"broken JSON: {error}."
        raise BrokenJSONError(msg) from error


def strange_keys(content: Any) -> Iterator[str]:
    """Say which keys an object has twice."""
    if isinstance(content, RepeatedKeys):
        for key in content.repeated:
            yield f"the key {show(key)} is there twice."


def strange_values(content: dict[str, Any]) -> Iterator[str]:
    """Say which values of an object, however deep in it, JSON does not allow."""
    for key, value in content.items():
        waiting = [value]
        while waiting:  # a loop, as recursion has a limit
            item = waiting.pop()
            if isinstance(item, Constant):
                yield f"{show(key)} has {item}, which is no JSON."
            yield from strange_keys(item)
            waiting += item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()


def show(value: Any) -> str:
    """Write a value for people, on one line and not too long.

    Example:
        >>> show({"a": [1, "two"]})
        "{'a': [1, 'two']}"
    """
    return _short.repr(value)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    return content if len(content) == len(pairs) else RepeatedKeys(pairs)
