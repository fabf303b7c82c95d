"""A Flax module, of Linen or of NNX, as a model. Flax is optional: it is looked for when it is needed."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

from nablad_models.python.examples import read_examples
from nablad_models.python.model import PythonModel


def from_flax(
    module: Any, *, example: Any = None, inputs: Mapping[str, Any] | None = None, seed: int = 0
) -> PythonModel:
    """A Flax module that is written for batches, `module(x)` with `x (batch, *example)`.

    `example` is one example of the only input, called x in programs; `inputs` names several, in the order of
    the call. Either gives arrays or shapes, without a batch axis. The module always gets one batch axis: a
    single example comes as a batch of one, several batch axes come as one.

    Parameters go by dotted names, `Dense_0.kernel`; other collections (`batch_stats.BatchNorm_0.mean`), or
    NNX variables that are no `Param`, are state. An argument `train`, `training`, `deterministic` or
    `use_running_average` of the module's call follows the mode; NNX modules are switched by `train()` and
    `eval()` too. In train mode dropout draws from the program's key.

    First parameters of a Linen module are drawn from `seed` plus the seed that is asked for; an NNX module
    has its own, for every seed.

    Raises `ImportError` with the line to type where there is no Flax; `TypeError` and `ValueError` when the
    module does not work with the example or gives no array.
    """
    try:
        linen, nnx = importlib.import_module("flax.linen"), importlib.import_module("flax.nnx")
    except ImportError as problem:
        raise ImportError("from_flax needs Flax: pip install flax") from problem
    examples = read_examples(example, inputs)
    if unsaid := [name for name, one in examples.items() if not one.known]:
        raise ValueError(f"Flax needs every size of an example, input '{unsaid[0]}' has an open one")
    if isinstance(module, nnx.Module):
        from nablad_models.python.flax_nnx import from_nnx

        return from_nnx(nnx, module, examples)
    if isinstance(module, linen.Module):
        from nablad_models.python.flax_linen import from_linen

        return from_linen(module, examples, seed)
    raise TypeError(f"from_flax takes a module of flax.linen or flax.nnx, got {module!r}")


def mode_arguments(module: Any, train: bool) -> dict[str, bool]:
    """The arguments of the module's call that say in which mode it is."""
    known = {"train": train, "training": train, "deterministic": not train, "use_running_average": not train}
    taken = inspect.signature(module.__call__).parameters
    return {name: value for name, value in known.items() if name in taken}
