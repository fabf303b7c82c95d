"""Parameters in files: .npz, or .safetensors where that library is installed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

KINDS = (".npz", ".safetensors")


def check_kind(path: str) -> None:
    """Raise ValueError for a file that is neither."""
    if Path(path).suffix not in KINDS:
        raise ValueError(f"'{path}': parameters are in files named {' or '.join(KINDS)}")
    if path.endswith(".safetensors"):
        _safetensors()


def read_tensors(path: str) -> dict[str, NDArray[Any]]:
    """The arrays of a file by name.

    Raises:
        ValueError: where there is none, or it cannot be read.
    """
    check_kind(path)
    if not Path(path).is_file():
        raise ValueError(f"there is no file '{path}'")
    if path.endswith(".npz"):
        loaded = np.load(path, allow_pickle=False)
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            raise ValueError(f"'{path}' holds one array, not arrays by name; save it with numpy.savez")
        return dict(loaded)
    try:
        return dict(_safetensors().load_file(path))
    except Exception as error:  # the library's own exception is no subclass of anything better
        raise ValueError(f"'{path}' cannot be read: {error}") from None


def write_tensors(path: str, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Save arrays by name, in the format that the file's name asks for."""
    if path.endswith(".npz"):
        np.savez(path, **dict(tensors))  # type: ignore[arg-type] # NumPy's stubs take the names for options
    else:
        _safetensors().save_file({name: np.asarray(leaf, order="C") for name, leaf in tensors.items()}, path)


def _safetensors() -> Any:
    try:
        import safetensors.numpy
    except ImportError:
        detail = "files in .safetensors need a library; .npz needs none. Type:\n  pip install safetensors"
        raise ValueError(detail) from None
    return safetensors.numpy
