"""Hosting: how models get into the server, and stay there.

`store.py` is what the rest of the service sees. `hosted.py` is one model with its parameters; `sources.py`
makes models of what is sent, `python_models.py` takes those of the operator's files; `repository.py` keeps
them in a folder by way of `durable.py`, and `restore.py` brings them back.
"""

from nablad_service.hosting.hosted import HostedModel, own_tensors
from nablad_service.hosting.store import ModelStore

__all__ = ["HostedModel", "ModelStore", "own_tensors"]
