"""Architectures that nablad hosts: JSON in, pure functions of parameters out."""

from nablad_models.model import Model, build

__all__ = ["Model", "build"]
