"""The diagnosis of a result that is not finite, found beside the answer that needs it."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

from nablad_service.planning.programs import Programs
from nablad_service.query import Query
from nablad_service.running.scheduler import Finished

log = logging.getLogger("nablad")

Document: TypeAlias = "dict[str, Any]"
OnDevice: TypeAlias = "Callable[[Callable[[], Document]], Awaitable[Finished[Document]]]"
"""As `Scheduler.run` does."""


async def diagnosed(programs: Programs, run: OnDevice, query: Query) -> Document:
    """Where the result of `query` stopped being finite, as `nablad.messages.NonFinite` describes it.

    The caller has the result whatever becomes of this: nothing is raised.
    """
    try:
        diagnosis = await programs.diagnosis(query)
        return (await run(lambda: diagnosis.run(query))).result
    except Exception:
        log.exception("a result that is not finite could not be diagnosed")
        return {"what": [], "message": "the result is not finite; where that began could not be found"}
