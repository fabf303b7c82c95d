"""What an operator may be called with: written once as text, `"sum(x, axis=None, keepdims=False)"`."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from nablad_service.language.parsing import expression_of

Family = Literal[
    "arithmetic",
    "elementwise",
    "reduction",
    "shape",
    "linear algebra",
    "derivative",
    "loop",
    "random",
    "registered",
]


@dataclass(frozen=True)
class Parameter:
    """One argument of an operator."""

    name: str
    required: bool = True
    variadic: bool = False
    default: Any = None


@dataclass(frozen=True)
class OperatorSignature:
    """An operator as the checker, `GET /v1/operators` and the README see it."""

    name: str
    text: str
    doc: str
    family: Family
    aliases: tuple[str, ...] = ()
    order: int = 0
    """How many derivatives it takes."""
    not_taken: str = ""
    """What to say of a call with more arguments than there are."""

    @cached_property
    def parameters(self) -> tuple[Parameter, ...]:
        """The arguments in order, read from `text`."""
        call = expression_of(self.text)
        if not isinstance(call, ast.Call):  # an infix operator, `a + b`
            return tuple(Parameter(name.id) for name in ast.walk(call) if isinstance(name, ast.Name))
        positional = [
            Parameter(argument.value.id, required=True, variadic=True)
            if isinstance(argument, ast.Starred) and isinstance(argument.value, ast.Name)
            else Parameter(ast.unparse(argument))
            for argument in call.args
        ]
        keywords = [
            Parameter(str(keyword.arg), required=False, default=ast.literal_eval(keyword.value))
            for keyword in call.keywords
        ]
        return (*positional, *keywords)

    @property
    def counts(self) -> str:
        """How many arguments it takes, in words: `"1 argument"`, `"1 to 3 arguments"`."""
        required, most = sum(parameter.required for parameter in self.parameters), len(self.parameters)
        if any(parameter.variadic for parameter in self.parameters):
            return f"{required} or more arguments"
        if required != most:
            return f"{required} to {most} arguments"
        return "1 argument" if most == 1 else f"{most} arguments"
