"""Does a call fit its operator's signature?"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from nablad_service.language.places import Span, nearest
from nablad_service.language.signatures import OperatorSignature

if TYPE_CHECKING:
    from nablad_service.language.lowering import Lowering


def check_arity(
    lowering: Lowering, signature: OperatorSignature, given: int, keywords: Collection[str], span: Span
) -> None:
    """Refuse a call with too many, too few or unknown arguments."""
    parameters = signature.parameters
    variadic = any(parameter.variadic for parameter in parameters)
    by_position = {parameter.name for parameter in parameters[:given]}
    if given > len(parameters) and not variadic:
        hint = f"; {signature.not_taken}" if signature.not_taken else ""
        lowering.refuse("arity", f"{signature.text} takes {signature.counts}, {given} are given{hint}", span)
    names = [parameter.name for parameter in parameters]
    for keyword in keywords:
        if keyword not in names:
            hint = nearest(keyword, names)
            lowering.refuse("arity", f"{signature.text} has no argument '{keyword}'{hint}", span)
        if keyword in by_position and not variadic:
            lowering.refuse("arity", f"{signature.text}: '{keyword}' is given twice", span)
    for parameter in parameters:
        if parameter.required and parameter.name not in by_position and parameter.name not in keywords:
            detail = f"{signature.text} lacks its argument '{parameter.name}'"
            lowering.refuse("arity", detail, span)
