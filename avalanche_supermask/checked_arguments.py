"""Check the arguments of a constructor against its annotations, so that a wrong value is refused at once, in one line.

A constructor with the decorator `checked` refuses a value that does not fit the annotation of its argument. Annotations
such as `Share` and `LearningRate` also limit the range of a number. Entries of a typed dictionary in ``**arguments``
are checked in the same way. A value whose annotation says nothing that can be tested is not checked.
"""

from __future__ import annotations

import functools
import inspect
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Annotated, Any, Literal, ParamSpec

import numpy as np

__all__ = ["Count", "Epochs", "Fraction", "LearningRate", "NotNegative", "Positive", "Share", "checked"]

P = ParamSpec("P")


@dataclass(frozen=True)
class Range:
    """The numbers that an argument may have.

    Attributes:
        text: how an error message describes such a number.
        low, high: bounds, which belong to the range.
        above: a bound that does not belong to the range; the numbers are larger.
    """

    text: str
    low: float = -math.inf
    high: float = math.inf
    above: float = -math.inf

    def holds(self, number: Any) -> bool:
        """Whether the number is in the range."""
        return bool(self.above < number and self.low <= number <= self.high)


Share = Annotated[float, Range("a fraction in (0, 1]", above=0, high=1)]
Fraction = Annotated[float, Range("a fraction in [0, 1]", low=0, high=1)]
NotNegative = Annotated[float, Range("a number of at least 0", low=0)]
LearningRate = NotNegative
Positive = Annotated[float, Range("a number above 0", above=0)]
Count = Annotated[int, Range("a whole number of at least 1", low=1)]
Epochs = Annotated[int, Range("a whole number of at least 0", low=0)]

# Other code refuses wrong values of these arguments, in words that fit them better.
ELSEWHERE = frozenset({"self", "model", "net", "optimizer", "device"})


def checked(init: Callable[P, None]) -> Callable[P, None]:
    """Let a constructor refuse values that do not fit the annotations of its arguments.

    A number of any numeric type fits ``float`` and ``int``, except NaN and the truth values.

    Raises:
        TypeError: when the constructor is called with a value of a wrong type.
        ValueError: when it is called with an unknown option, or a number outside its range.

    Example:
        >>> class Method:
        ...     @checked
        ...     def __init__(self, *, density: Share = 0.1) -> None: ...
        >>> Method(density=10)
        Traceback (most recent call last):
        ValueError: density must be a fraction in (0, 1]; got 10
    """

    @functools.wraps(init)
    def with_checks(*args: P.args, **kwargs: P.kwargs) -> None:
        hints = _hints(init)
        for name, value in kwargs.items():
            if name in hints and name not in ELSEWHERE:
                _check(name, value, hints[name])
        init(*args, **kwargs)

    return with_checks


@functools.cache
def _hints(init: Callable[..., None]) -> dict[str, Any]:
    """Return the annotations of the arguments by name, with the entries of a typed dictionary in ``**arguments``."""
    hints = typing.get_type_hints(init, include_extras=True)
    for parameter in inspect.signature(init).parameters.values():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            for entries in typing.get_args(hints.pop(parameter.name, None)):
                hints = {**typing.get_type_hints(entries, include_extras=True), **hints}
    return hints


def _check(name: str, value: Any, hint: Any) -> None:
    if _fits(value, hint):
        return
    *others, last = dict.fromkeys(_words(hint))
    wanted = f"{', '.join(others)} or {last}" if others else last
    error = ValueError if _is_of_kind(value, hint) else TypeError
    remedy = f"; pass {name}=[{_short(value)}]" if _is_single_item(value, hint) else ""
    raise error(f"{name} must be {wanted}; got {_short(value)}{remedy}")


def _fits(value: Any, hint: Any) -> bool:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin is Annotated:
        return _fits(value, args[0]) and all(a.holds(value) for a in args[1:] if isinstance(a, Range))
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, arg) for arg in args)
    if origin is Literal:
        return any(type(value) is type(arg) and value == arg for arg in args)
    if hint is float:
        return _is_number(value) and not math.isnan(value)
    if hint is int:
        return _is_number(value) and isinstance(value, Integral)
    if hint is bool:
        return isinstance(value, (bool, np.bool_))
    if origin is Sequence:
        return _is_list(value) and all(_fits(item, args[0]) for item in value)
    if origin is tuple:
        return _is_list(value) and len(value) == len(args) and all(map(_fits, value, args))
    if origin is Callable:
        return callable(value) and not isinstance(value, type)  # a class in place of an object is a usual mistake
    kind = origin or hint
    return not isinstance(kind, type) or getattr(kind, "_is_protocol", False) or isinstance(value, kind)


def _is_single_item(value: Any, hint: Any) -> bool:
    """Whether a list was expected, and the value could be an item of it."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return any(_is_single_item(value, arg) for arg in typing.get_args(hint))
    return typing.get_origin(hint) is Sequence and not _is_number(value) and _fits(value, typing.get_args(hint)[0])


def _is_of_kind(value: Any, hint: Any) -> bool:
    """Whether some value of this type fits, so that only the value itself is wrong."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _is_of_kind(value, args[0])
    if origin in (typing.Union, types.UnionType):
        return any(_is_of_kind(value, arg) for arg in args)
    if origin is Literal:
        return any(type(value) is type(arg) for arg in args)
    if hint is float:
        return _is_number(value)
    return _fits(value, hint)


def _words(hint: Any) -> list[str]:
    """Return how an error message names the values of a type, one entry per alternative."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return [a.text for a in args[1:] if isinstance(a, Range)]
    if origin in (typing.Union, types.UnionType):
        found = [word for arg in args for word in _words(arg)]
        return sorted(found, key=lambda word: word == "None")  # None comes last
    if origin is Literal:
        return [repr(arg) for arg in args]
    if origin is Sequence:
        items = {str: "strings", float: "numbers", int: "whole numbers"}.get(_plain(args[0]))
        return [f"a list of {items}" if items else "a list"]
    if origin is tuple:
        return ["a pair of positive whole numbers"]
    if origin is Callable:
        return ["a function"]
    if origin is Mapping:
        return ["a dictionary"]
    words = {float: "a number", int: "a whole number", bool: "True or False", str: "a string", type(None): "None"}
    return [words.get(hint) or f"{'an' if hint.__name__[0] in 'AEIOU' else 'a'} {hint.__name__}"]


def _plain(hint: Any) -> Any:
    return typing.get_args(hint)[0] if typing.get_origin(hint) is Annotated else hint


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_list(value: Any) -> bool:
    """Whether the value can be read item by item, more than once."""
    return isinstance(value, (Sequence, set, frozenset, np.ndarray)) and not isinstance(value, (str, bytes))


def _short(value: Any) -> str:
    """Return a representation of one line."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    shown = " ".join(repr(value).split())
    return shown if len(shown) <= 60 else f"{shown[:56]} …"
