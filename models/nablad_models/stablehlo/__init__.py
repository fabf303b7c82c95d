"""Models as StableHLO artifacts: data written by any JAX program, run without trusting it."""

from nablad_models.stablehlo.model import ExportedModel, load_exported
from nablad_models.stablehlo.producing import export_model

__all__ = ["ExportedModel", "export_model", "load_exported"]
