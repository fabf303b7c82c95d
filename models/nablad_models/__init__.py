"""Models that nablad hosts: pure functions of parameters, state and inputs."""

from nablad_models.layered import build
from nablad_models.model import Model, check_params, check_state
from nablad_models.python import from_equinox, from_flax, from_functions
from nablad_models.pytorch import from_torch, is_torch
from nablad_models.stablehlo import export_model, load_exported

__all__ = [
    "Model",
    "build",
    "check_params",
    "check_state",
    "export_model",
    "from_equinox",
    "from_flax",
    "from_functions",
    "from_torch",
    "is_torch",
    "load_exported",
]
