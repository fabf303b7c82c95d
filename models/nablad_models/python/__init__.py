"""Models in the operator's own Python: Equinox, Flax, or two functions."""

from nablad_models.python.equinox_module import from_equinox
from nablad_models.python.flax_module import from_flax
from nablad_models.python.function_pair import from_functions
from nablad_models.python.model import PythonModel

__all__ = ["PythonModel", "from_equinox", "from_flax", "from_functions"]
