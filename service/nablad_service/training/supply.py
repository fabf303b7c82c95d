"""Blocks of what samplers draw, as a run comes to need them: the next is drawn while one is used."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeAlias

from nablad_service.training.feeds import Block, Feed
from nablad_service.training.stages import placed

OnDevice: TypeAlias = "Callable[[Callable[[], Block]], Awaitable[Block]]"


class Supply:
    """The blocks of a stage. Lives on one event loop; draws on other threads.

    Args:
        feeds: by sampler.
        on_device: does work when its turn on the device comes.
    """

    def __init__(self, feeds: Mapping[str, Feed], on_device: OnDevice) -> None:
        self._feeds = feeds
        self._on_device = on_device
        self._blocks: dict[str, Block] = {}
        self._coming: dict[str, tuple[int, asyncio.Task[Block]]] = {}

    async def blocks(self, step: int) -> dict[str, Block]:
        """Those that a step takes its draws from, on the device."""
        for name, feed in self._feeds.items():
            origin = feed.origin(step)
            block = self._blocks.get(name)
            if block is None or int(block.origin) != origin:
                self._blocks[name] = await self._block(name, feed, origin)
        return dict(self._blocks)

    async def _block(self, name: str, feed: Feed, origin: int) -> Block:
        ready, drawing = self._coming.pop(name, (None, None))
        if drawing is None or ready != origin:
            drawing = asyncio.create_task(asyncio.to_thread(feed.block, origin))
        drawn = await drawing
        if feed.steps is not None:
            behind = origin + feed.steps
            self._coming[name] = behind, asyncio.create_task(asyncio.to_thread(feed.block, behind))
        return await self._on_device(lambda: placed(drawn))
