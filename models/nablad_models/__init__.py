"""Models that nablad hosts: pure functions of parameters, state and inputs."""

from nablad_models.layered import build
from nablad_models.model import Model, check_params, check_state

__all__ = ["Model", "build", "check_params", "check_state"]
