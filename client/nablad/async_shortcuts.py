"""One operator on one model, awaited: for callers without a loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from numpy.typing import ArrayLike, NDArray

from nablad.handles import Handle
from nablad.question import Tree
from nablad.tracing.operators import Estimate


class AsyncShortcuts(ABC):
    """The shortcuts of a client; arrays and trees may be handles of values that the server keeps."""

    @abstractmethod
    async def _outputs(self, name: str, operator: str, **members: Any) -> dict[str, Any]:
        """The outputs of `POST /v1/models/{name}/{operator}`."""

    async def apply(
        self,
        name: str,
        x: ArrayLike | Handle,
        *,
        params: Tree | None = None,
        state: Tree | None = None,
        mode: str = "eval",
    ) -> NDArray[Any]:
        """The output of a hosted model, with its resident parameters or these."""
        found: NDArray[Any] = await self._one(name, "apply", x=x, params=params, state=state, mode=mode)
        return found

    async def jacobian(
        self,
        name: str,
        x: ArrayLike | Handle,
        *,
        wrt: str = "x",
        batched: bool = False,
        params: Tree | None = None,
        state: Tree | None = None,
        mode: str = "eval",
    ) -> NDArray[Any]:
        """The Jacobian of a model's output in its input or (`wrt="params"`) its parameters.

        `batched` gives one Jacobian an example, shape (batch, output size, input size).
        """
        given = {"x": x, "params": params, "state": state}
        found: NDArray[Any] = await self._one(name, "jacobian", wrt=wrt, batched=batched, mode=mode, **given)
        return found

    async def jvp(
        self,
        name: str,
        x: ArrayLike | Handle,
        v: ArrayLike | Tree,
        *,
        wrt: str = "x",
        params: Tree | None = None,
        state: Tree | None = None,
        mode: str = "eval",
    ) -> NDArray[Any]:
        """J v; v has the shape of x, or is a tree shaped like the parameters."""
        found: NDArray[Any] = await self._one(
            name, "jvp", x=x, v=v, wrt=wrt, params=params, state=state, mode=mode
        )
        return found

    async def vjp(
        self,
        name: str,
        x: ArrayLike | Handle,
        u: ArrayLike | Handle,
        *,
        wrt: str = "x",
        params: Tree | None = None,
        state: Tree | None = None,
        mode: str = "eval",
    ) -> Any:
        """u' J; an array shaped like x, or a tree shaped like the parameters."""
        return await self._one(name, "vjp", x=x, u=u, wrt=wrt, params=params, state=state, mode=mode)

    async def hvp(
        self,
        name: str,
        x: ArrayLike | Handle,
        v: ArrayLike | Tree,
        *,
        wrt: str = "x",
        params: Tree | None = None,
        state: Tree | None = None,
        mode: str = "eval",
    ) -> Any:
        """H v, of the sum of the model's output."""
        return await self._one(name, "hvp", x=x, v=v, wrt=wrt, params=params, state=state, mode=mode)

    async def hutchinson(
        self,
        name: str,
        x: ArrayLike | Handle,
        v: ArrayLike | Handle | None = None,
        *,
        probes: int = 16,
        seed: int = 0,
        params: Tree | None = None,
        state: Tree | None = None,
        mode: str = "eval",
    ) -> Estimate:
        """The trace of the Jacobian per example, estimated, with its standard error.

        Probes v have one more leading axis than x; without them `probes` signs are drawn by `seed`.
        """
        given = {"x": x, "v": v, "params": params, "state": state}
        members = {"probes": probes, "seed": seed, "mode": mode, **given}
        found = await self._outputs(name, "hutchinson", **members)
        return Estimate(found["estimate"], found["standard_error"])

    async def _one(self, name: str, operator: str, **members: Any) -> Any:
        return (await self._outputs(name, operator, **members))["result"]
