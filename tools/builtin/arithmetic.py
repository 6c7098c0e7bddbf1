"""Arithmetic on what a model wrote, through simpleeval with everything but arithmetic taken out of it."""

from __future__ import annotations

import ast
import functools
import math
import operator
import re
from collections.abc import Callable
from typing import Any

from ...errors import ToolFailure
from ..tool import Tool, tool
from .numbers import LARGEST, finite, short, tidy

LONGEST = 300  # characters of an expression
SIGNS = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-", "–": "-", "^": "**"})


def arithmetic_tools() -> list[Tool]:
    """`calculate`."""

    def calculate(expression: str) -> dict[str, Any]:
        """Work out an arithmetic expression."""
        return {"result": tidy(evaluate(expression))}

    return [tool(calculate)]


def evaluate(expression: str) -> int | float:
    """The value of an expression of numbers, `+ - * / // % **`, brackets, `sqrt round abs min max`.

    Every intermediate result is held below 1e100, so no expression takes long.

    Raises:
        ToolFailure: it is not such an expression, is too long, too large, or has no real value.
    """
    if len(expression) > LONGEST:
        raise ToolFailure(f"the expression is longer than {LONGEST} characters")
    text = expression.translate(SIGNS).strip()
    text = re.sub(r"(?<![\w.])0+(?=\d)", "", text)  # 007 is 7
    if not text:
        raise ToolFailure("the expression is empty")
    if "\n" in text or re.search(r"[^\d\s.,+\-*/%()a-zA-Z_]", text):
        raise ToolFailure(f"cannot work out {short(expression)}")
    evaluator = _evaluator()
    try:
        return _number(evaluator.eval(text))
    except ToolFailure:
        raise
    except ZeroDivisionError:
        raise ToolFailure("division by zero") from None
    except (ArithmeticError, RecursionError, MemoryError):
        raise ToolFailure(f"{short(expression)} is too large to work out") from None
    except Exception:  # simpleeval's own errors, SyntaxError, TypeError and ValueError of wrong arguments
        raise ToolFailure(f"cannot work out {short(expression)}") from None


@functools.cache
def _evaluator() -> Any:
    """One evaluator for all: it keeps no state that a result depends on."""
    from simpleeval import SimpleEval

    evaluator = SimpleEval(
        operators={
            ast.Add: _checked(operator.add),
            ast.Sub: _checked(operator.sub),
            ast.Mult: _checked(operator.mul),
            ast.Div: _checked(operator.truediv),
            ast.FloorDiv: _checked(operator.floordiv),
            ast.Mod: _checked(operator.mod),
            ast.Pow: _checked(_power),
            ast.USub: _checked(operator.neg),
            ast.UAdd: _checked(operator.pos),
        },
        functions={
            "sqrt": _checked(_root),
            "abs": _checked(abs),
            "min": _checked(min),
            "max": _checked(max),
            "round": _checked(_round),
        },
        names={},
    )
    allowed = (ast.Expr, ast.BinOp, ast.UnaryOp, ast.Call, ast.Constant)
    evaluator.nodes = {node: handler for node, handler in evaluator.nodes.items() if node in allowed}
    return evaluator


def _checked(function: Callable[..., Any]) -> Callable[..., int | float]:
    """`function` with numbers going in and a number of bounded size coming out."""

    def check(*args: Any) -> int | float:
        return _number(function(*[_number(value) for value in args]))

    return check


def _number(value: Any) -> int | float:
    if isinstance(value, complex):
        raise ToolFailure("the result is not a real number")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ToolFailure("only numbers can be used")
    if not finite(value):
        raise ToolFailure("the number is too large")
    return value


def _power(base: int | float, exponent: int | float) -> Any:
    # Asked before it is worked out: 9**9**9 would keep a machine busy for hours.
    if abs(base) > 1 and exponent * math.log10(abs(base)) > math.log10(LARGEST):
        raise ToolFailure("the number is too large")
    if abs(exponent) > 1e6:
        raise ToolFailure("the exponent is too large")
    return base**exponent


def _root(value: int | float) -> int | float:
    if value < 0:
        raise ToolFailure("a negative number has no real square root")
    whole = math.isqrt(value) if isinstance(value, int) else None
    return whole if whole is not None and whole * whole == value else math.sqrt(value)


def _round(value: int | float, digits: int = 0) -> int | float:
    if not isinstance(digits, int) or abs(digits) > 15:
        raise ToolFailure("round takes 0 to 15 decimals")
    return round(value, digits)
