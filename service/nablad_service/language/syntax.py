"""From text to a whitelisted `ast`: every construct outside the language is refused here, where it stands."""

from __future__ import annotations

import ast
import math
import re
from collections import Counter

from nablad_service.language.limits import Limits
from nablad_service.language.parsing import module_of
from nablad_service.language.places import Span, refusal

# fmt: off
ALLOWED = (
    ast.Module, ast.FunctionDef, ast.arguments, ast.arg, ast.Assign, ast.Return, ast.Expr,
    ast.Name, ast.Constant, ast.BinOp, ast.UnaryOp, ast.Compare, ast.Call, ast.keyword,
    ast.Attribute, ast.Subscript, ast.Slice, ast.Tuple, ast.List, ast.Load, ast.Store,
    ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow, ast.MatMult, ast.USub, ast.UAdd,
    ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.Eq, ast.NotEq,
)
# fmt: on

# What people type from habit, and what to write instead.
INSTEAD: dict[type[ast.AST], str] = {
    ast.Import: "the operators are in scope already, imports are not needed",
    ast.ImportFrom: "the operators are in scope already, imports are not needed",
    ast.Lambda: "write a def",
    ast.IfExp: "write where(condition, a, b)",
    ast.If: "write where(condition, a, b)",
    ast.For: "map a def over the examples with vmap",
    ast.While: "loops have a static length here",
    ast.BoolOp: "write logical_and(a, b) or logical_or(a, b)",
    ast.Not: "write logical_not(a)",
    ast.ListComp: "map a def over the examples with vmap",
    ast.GeneratorExp: "map a def over the examples with vmap",
    ast.AugAssign: "each name is assigned once: give the new value a new name",
    ast.AnnAssign: "leave the annotation out",
    ast.BitXor: "powers are written **",
    ast.Dict: "a parameter tree comes from model.params or as an input",
    ast.Starred: "write the arguments out",
    ast.NamedExpr: "assign on a line of its own",
}


# What Python's parser says, and what helps.
BETTER_SAID = {"Exceeds the limit": "a number has too many digits; write 1e20 for a float"}


def read(text: str, limits: Limits) -> ast.Module:
    """Parse `text` and check that it holds nothing but the language.

    Raises:
        Refusal: `limit` for texts that are too long or too deep, `syntax` for everything else.
    """
    if len(text.encode(errors="replace")) > limits.text_bytes:
        raise refusal("limit", f"the program is longer than {limits.text_bytes} bytes", text)
    if "\0" in text:
        raise refusal("syntax", "a program is text: it holds no null bytes", text, _span_at(text, "\0"))
    try:
        text.encode()
        module = module_of(text)
    except SyntaxError as error:
        raise refusal("syntax", *_syntax_error(text, error)) from None
    except (RecursionError, MemoryError):
        detail = "the program is nested too deeply; name parts of it on lines of their own"
        raise refusal("limit", detail, text) from None
    except (UnicodeEncodeError, ValueError) as error:
        raise refusal("syntax", f"the program cannot be read: {error}", text) from None
    _check_depth(module, text, limits)
    for node in ast.walk(module):
        _check_node(node, text)
    return module


def _span_at(text: str, letter: str) -> Span:
    before = text[: text.index(letter)]
    lines = re.split("\r\n|\r|\n", before)
    start = len(lines[-1].encode(errors="replace"))
    return Span(len(lines), start, len(lines), start + 1)


def _syntax_error(text: str, error: SyntaxError) -> tuple[str, str, Span | None]:
    # The parser's advice ("Maybe you meant ':='") is about Python, and may lead out of the language.
    message = re.split(r" \(|\. (?:Maybe|Perhaps) |, perhaps |; use ", error.msg or "invalid syntax")[0]
    message = next((better for said, better in BETTER_SAID.items() if said in message), message)
    lines = re.split("\r\n|\r|\n", text)  # as the parser splits them; str.splitlines knows more ends
    if not error.lineno or not 0 < error.lineno <= len(lines):
        return f"the program cannot be read: {message}", text, None
    line = lines[error.lineno - 1]
    # SyntaxError counts characters from 1; spans count bytes from 0.
    start = len(line[: max((error.offset or 1) - 1, 0)].encode())
    return f"{message}", text, Span(error.lineno, start, error.lineno, max(start + 1, len(line.encode())))


def _check_depth(module: ast.Module, text: str, limits: Limits) -> None:
    waiting: list[tuple[ast.AST, int, Span | None]] = [(statement, 0, None) for statement in module.body]
    while waiting:
        node, depth, around = waiting.pop()
        span = Span.of(node) if isinstance(node, ast.expr | ast.stmt) else around
        if depth > limits.depth:
            detail = f"brackets and calls are nested deeper than {limits.depth}; name a part of it"
            raise refusal("limit", detail, text, span)
        for child in ast.iter_child_nodes(node):
            # A chain `a + b + c` leans to the left: it is long, not deep.
            chained = isinstance(node, ast.BinOp) and child is node.left
            waiting.append((child, depth if chained else depth + 1, span))


def _check_node(node: ast.AST, text: str) -> None:
    span = Span.of(node) if isinstance(node, ast.expr | ast.stmt) else None
    if not isinstance(node, ALLOWED):
        if isinstance(node, ast.expr_context | ast.boolop | ast.operator | ast.unaryop | ast.cmpop):
            return  # judged with the expression it belongs to, which knows where it stands
        instead = INSTEAD.get(type(node))
        described = _name(node)
        detail = f"{described} is not part of the loss language" + (f": {instead}" if instead else "")
        raise refusal("syntax", detail, text, span)
    if isinstance(node, ast.BinOp | ast.UnaryOp) and not isinstance(node.op, ALLOWED):
        instead = INSTEAD.get(type(node.op), "see GET /v1/operators")
        raise refusal("syntax", f"this operator is not part of the loss language: {instead}", text, span)
    if isinstance(node, ast.Compare):
        if len(node.ops) != 1:
            raise refusal("syntax", "compare two values at a time, with logical_and around them", text, span)
        if not isinstance(node.ops[0], ALLOWED):
            raise refusal("syntax", "only < <= > >= == != compare values here", text, span)
    if isinstance(node, ast.Attribute) and node.attr not in ("T", "shape", "params"):
        detail = f"'.{node.attr}' is not available: attributes are .T, .shape and, of a model, .params"
        raise refusal("syntax", detail, text, span)
    if isinstance(node, ast.Constant):
        _check_constant(node, text, span)
    if isinstance(node, ast.FunctionDef):
        _check_def(node, text, span)
    if isinstance(node, ast.Call):
        _check_keywords(node, text, span)


def _check_keywords(node: ast.Call, text: str, span: Span | None) -> None:
    names = [keyword.arg for keyword in node.keywords]
    for name, count in Counter(names).items():
        if name is None:
            raise refusal("syntax", "** in a call is not part of the loss language", text, span)
        if count > 1:
            raise refusal("arity", f"the argument '{name}' is given twice", text, span)


def _check_constant(node: ast.Constant, text: str, span: Span | None) -> None:
    if not isinstance(node.value, bool | int | float | str | type(None) | type(Ellipsis)):
        raise refusal("syntax", f"{type(node.value).__name__} constants are not supported", text, span)
    if isinstance(node.value, int) and abs(node.value) >= 2**63:
        raise refusal(
            "number_too_large", "whole numbers must be below 2**63; write 1e20 for a float", text, span
        )
    if isinstance(node.value, float) and not math.isfinite(node.value):
        raise refusal("number_too_large", "this number is beyond the range of a float", text, span)


def _check_def(node: ast.FunctionDef, text: str, span: Span | None) -> None:
    arguments = node.args
    plain = not (
        arguments.defaults
        or arguments.vararg
        or arguments.kwarg
        or arguments.kwonlyargs
        or arguments.posonlyargs
        or any(argument.annotation for argument in arguments.args)
    )
    names = [argument.arg for argument in arguments.args]
    for name, count in Counter(names).items():
        if count > 1:
            raise refusal("syntax", f"def {node.name} has two arguments called '{name}'", text, span)
    if not plain or node.decorator_list or node.returns:
        detail = f"def {node.name} takes plain names only: no defaults, annotations, stars or decorators"
        raise refusal("syntax", detail, text, span)
    if not isinstance(node.body[-1], ast.Return) or node.body[-1].value is None:
        raise refusal("syntax", f"def {node.name} must end with 'return' and a value", text, span)
    for statement in node.body[:-1]:
        if not isinstance(statement, ast.Assign | ast.FunctionDef):
            detail = "a def holds assignments, defs and one return at its end"
            raise refusal("syntax", detail, text, Span.of(statement))


# How the parser's node types are written by people.
SPELLED = {
    "ListComp": "a comprehension",
    "SetComp": "a comprehension",
    "DictComp": "a comprehension",
    "GeneratorExp": "a comprehension",
    "Import": "'import'",
    "ImportFrom": "'import'",
    "Lambda": "'lambda'",
    "IfExp": "'if'",
    "BoolOp": "'and' and 'or'",
    "AugAssign": "'+='",
    "AnnAssign": "an annotation",
    "NamedExpr": "':='",
    "ClassDef": "'class'",
    "JoinedStr": "an f-string",
    "AsyncFunctionDef": "'async'",
    "AsyncFor": "'async'",
    "AsyncWith": "'async'",
    "Delete": "'del'",
    "YieldFrom": "'yield'",
    "Dict": "a dictionary",
    "Set": "a set",
    "Starred": "'*'",
}


def _name(node: ast.AST) -> str:
    kind = type(node).__name__
    return SPELLED.get(kind, f"'{kind.lower()}'")
