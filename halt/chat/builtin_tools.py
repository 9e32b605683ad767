"""The built-in tools: the current time and a calculator. HALT_TOOLS selects those that are offered.

Both are safe for any arguments: they read no files, use no network, and take bounded time and
memory.
"""

from __future__ import annotations

import ast
import difflib
import math
import operator
import zoneinfo
from collections.abc import Callable, Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Annotated, Any

import msgspec

from halt.core.tools import ToolError

EXPRESSION_MAX = 500  # characters
BITS_MAX = 4096  # of a whole number: 1,233 digits
DIGITS_MAX = 300  # decimal places that `round` accepts

Number = int | float


# --- the time -------------------------------------------------------------------------------------

ZoneName = Annotated[
    str, msgspec.Meta(description="A name of the IANA time zone database, as in Europe/Berlin.")
]


def current_time(time_zone: ZoneName = "UTC") -> str:
    """The current date, weekday and time in a time zone."""
    try:
        zone = zoneinfo.ZoneInfo(time_zone)
    except (
        zoneinfo.ZoneInfoNotFoundError,
        ValueError,
        OSError,
    ):  # a path, an unknown name
        raise ToolError(_no_such_zone(time_zone)) from None
    now = datetime.now(zone)
    offset = now.strftime("%z")
    return f"{now:%A, %Y-%m-%d %H:%M:%S} {time_zone} (UTC{offset[:3]}:{offset[3:]})"


def _no_such_zone(name: str) -> str:
    zone_names = sorted(zoneinfo.available_timezones())
    city = name[:64].strip().replace(" ", "_").lower()
    matches = [zone for zone in zone_names if zone.lower().rpartition("/")[2] == city]
    close_matches = difflib.get_close_matches(name[:64], zone_names)
    matches += [zone for zone in close_matches if zone not in matches]
    hint = " or ".join(matches[:3]) or "Europe/Berlin, America/New_York or UTC"
    return f"There is no time zone named {name[:64]!r}. Did you mean {hint}?"


# --- the calculator -------------------------------------------------------------------------------


def calculator(
    expression: Annotated[
        str, msgspec.Meta(description="As in Python, for example: round(3 * (1.5 + sqrt(2)), 2)")
    ],
) -> str:
    """Calculate with numbers, exactly where they are whole.

    Knows + - * / // % ** and parentheses, the functions round, abs, min, max, sqrt, log (natural,
    or of a base), sin and cos (of radians), and the numbers pi and e.
    """
    if len(expression) > EXPRESSION_MAX:
        raise ToolError(f"The expression is longer than {EXPRESSION_MAX} characters.")
    try:
        value = _value(ast.parse(expression.strip(), mode="eval").body)
    except SyntaxError as exc:
        raise ToolError(f"This is no expression: {exc.msg}.") from None
    except (RecursionError, MemoryError):  # the parser raises MemoryError for deep nesting
        raise ToolError("The expression is nested too deep.") from None
    except ZeroDivisionError:
        raise ToolError("Division by zero.") from None
    except OverflowError:
        raise ToolError(TOO_LARGE) from None
    except ValueError as exc:  # from a function: the square root of a negative number
        raise ToolError(f"There is no such number: {exc}.") from None
    # A float is exact to 15 digits; with no more of them, 0.1 + 0.2 is 0.3.
    return str(value) if isinstance(value, int) else f"{value or 0.0:.15g}"


TOO_LARGE = "A number is too large."


def _power(base: Number, exponent: Number) -> Number:
    if isinstance(base, int) and isinstance(exponent, int) and exponent > 0:
        # Checked before the calculation: 9 ** 9 ** 9 has more digits than fit into memory.
        if abs(base) > 1 and base.bit_length() * exponent > 2 * BITS_MAX:
            raise OverflowError
        return int(base**exponent)
    result = base**exponent
    if isinstance(result, complex):
        raise ToolError("A negative number has no such power.")
    return float(result)


def _round(number: Number, digits: Number = 0) -> Number:
    if not isinstance(digits, int) or abs(digits) > DIGITS_MAX:
        raise ToolError(f"round: the places are a whole number, at most {DIGITS_MAX}.")
    return round(number, digits) if digits else round(number)


_BINARY: Mapping[type[ast.operator], Callable[[Any, Any], Number]] = MappingProxyType(
    {
        ast.Add: operator.add,
        ast.Sub: operator.sub,
        ast.Mult: operator.mul,
        ast.Div: operator.truediv,
        ast.FloorDiv: operator.floordiv,
        ast.Mod: operator.mod,
        ast.Pow: _power,
    }
)
_UNARY: Mapping[type[ast.unaryop], Callable[[Any], Number]] = MappingProxyType(
    {ast.UAdd: operator.pos, ast.USub: operator.neg}
)
_NAMES: Mapping[str, float] = MappingProxyType({"pi": math.pi, "e": math.e})
_FUNCTIONS: Mapping[str, Callable[..., Number]] = MappingProxyType(
    {
        "round": _round,
        "abs": abs,
        "min": lambda first, *more: min((first, *more)),
        "max": lambda first, *more: max((first, *more)),
        "sqrt": math.sqrt,
        "log": math.log,
        "sin": math.sin,
        "cos": math.cos,
    }
)


def _value(node: ast.expr) -> Number:
    """The value of a node of the expression. Raises ToolError for all but numbers."""
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return _bounded(number)
        case ast.Name(id=name) if name in _NAMES:
            return _NAMES[name]
        case ast.BinOp(left=left, op=sign, right=right) if type(sign) in _BINARY:
            return _bounded(_BINARY[type(sign)](_value(left), _value(right)))
        case ast.UnaryOp(op=sign, operand=operand) if type(sign) in _UNARY:
            return _UNARY[type(sign)](_value(operand))
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in _FUNCTIONS:
            numbers = [_value(argument) for argument in arguments]
            try:
                return _bounded(_FUNCTIONS[name](*numbers))
            except TypeError:
                raise ToolError(f"{name} does not take {len(arguments)} arguments.") from None
        case ast.BinOp(op=ast.BitXor()):
            raise ToolError("Write ** for a power, not ^.")
        case ast.Tuple():
            raise ToolError("Write 1000, not 1,000.")
    names = ", ".join([*_FUNCTIONS, *_NAMES])
    raise ToolError(
        f"{ast.unparse(node)[:80]!r} is not allowed: use numbers, + - * / // % **, parentheses, "
        f"{names}."
    )


def _bounded(number: Number) -> Number:
    if isinstance(number, int):
        if number.bit_length() > BITS_MAX:
            raise OverflowError
    elif not math.isfinite(number):
        raise OverflowError
    return number


#: The tools by the names that HALT_TOOLS takes.
BUILTIN_TOOLS: Mapping[str, Callable[..., str]] = MappingProxyType(
    {"calculator": calculator, "current_time": current_time}
)
