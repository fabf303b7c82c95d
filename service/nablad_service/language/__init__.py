"""The loss language: text in, a graph of nodes out. Knows names and signatures; never JAX, never values."""

from nablad_service.language.graph import Program
from nablad_service.language.limits import Limits
from nablad_service.language.lowering import parse
from nablad_service.language.signatures import OperatorSignature, Parameter

__all__ = ["Limits", "OperatorSignature", "Parameter", "Program", "parse"]
