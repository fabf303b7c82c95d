"""Hosting: how models get into the server, and stay there.

`store.py` is what the rest of the service sees. `hosted.py` is one model with its parameters; `sources.py`
makes models of what is sent, `python_models.py` takes those of the operator's files; `repository.py` keeps
them in a folder by way of `durable.py`, and `restore.py` brings them back. `shelf.py` is memory with a bound,
for what callers put by content (`values.py`) and for parameters beside the current ones (`versions.py`).
"""

from nablad_service.hosting.hosted import HostedModel, own_tensors
from nablad_service.hosting.shelf import Shelf
from nablad_service.hosting.store import ModelStore
from nablad_service.hosting.values import Values
from nablad_service.hosting.versions import Versions

__all__ = ["HostedModel", "ModelStore", "Shelf", "Values", "Versions", "own_tensors"]
