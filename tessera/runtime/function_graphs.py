"""CUDA graphs of the launches of a function: captured when a call repeats another one in every address and number.

A graph holds the arguments of its launches, so it serves only calls whose values are all the same. The first such call
is queued launch by launch, the second captures, later ones replay: a caller whose arrays move never pays for a capture.
Capturing goes to streams of our own, which nobody else uses, never to the caller's.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import Any

from tessera.runtime.function_streams import Streams
from tessera.runtime.launch import Driver, PreparedLaunch

LEAST_LAUNCHES = 2  # one launch costs the host no more than one replay
MOST_GRAPHS = 256  # of all functions together: each holds memory on the GPU
MOST_SEEN = 1024  # calls among which a repeated one is noticed


class Graph:
    """An executable graph, which goes when nobody holds it. CUDA lets one that still runs end first."""

    __slots__ = ("__weakref__", "device", "driver", "handle")

    def __init__(self, driver: Driver, handle: Any, device: int) -> None:
        self.driver, self.handle, self.device = driver, handle, device
        weakref.finalize(self, driver.destroy, handle, device).atexit = False  # the context goes before

    def replay(self, stream: int) -> None:
        self.driver.replay(self.handle, stream, self.device)


class GraphCache:
    """The graphs that were used last, by everything that is in them, and apart from them the keys that came once."""

    def __init__(self, most: int = MOST_GRAPHS, most_seen: int = MOST_SEEN) -> None:
        self.most, self.most_seen = most, most_seen
        self._graphs: OrderedDict[Hashable, Graph] = OrderedDict()
        self._seen: OrderedDict[Hashable, None] = OrderedDict()
        self._lock = threading.Lock()

    def find(self, key: Hashable) -> tuple[bool, Graph | None]:
        """Whether the key was seen before, and its graph; it counts as used."""
        with self._lock:
            graph = self._graphs.get(key)
            if graph is not None:
                self._graphs.move_to_end(key)
                return True, graph
            seen = key in self._seen
            _keep(self._seen, key, None, self.most_seen)
            return seen, None

    def put(self, key: Hashable, graph: Graph) -> None:
        with self._lock:
            self._seen.pop(key, None)
            _keep(self._graphs, key, graph, self.most)

    def __len__(self) -> int:
        return len(self._graphs)


def _keep(known: OrderedDict[Hashable, Any], key: Hashable, value: Any, most: int) -> None:
    known.pop(key, None)
    while len(known) >= most:
        known.popitem(last=False)
    known[key] = value


GRAPHS = GraphCache()
_capturing = threading.Lock()  # the streams of captures are shared


def capture(
    driver: Driver, steps: Sequence[Sequence[PreparedLaunch]], streams: Streams, values: Sequence[Any], device: int
) -> Graph | None:
    """A graph of the launches of each step with these values; None where another thread is capturing just now.

    `streams` says which steps may run side by side. Raises what the driver raises; nothing is left captured then.
    """
    if not _capturing.acquire(blocking=False):
        return None
    try:
        handles = driver.own_streams(streams.count, device)
        events: dict[int, Any] = {}  # by the step that they are behind; -1: the beginning
        watched = {-1, *streams.joins, *(step for waits in streams.waits for step in waits)}
        driver.begin_capture(handles[0], device)
        try:
            events[-1] = driver.record(handles[0], device)
            joined = {0}
            for number, launches in enumerate(steps):
                stream = streams.of[number]
                # A stream becomes part of a capture when it waits for something that is.
                waits = streams.waits[number] or (() if stream in joined else (-1,))
                joined.add(stream)
                for step in waits:
                    driver.wait(handles[stream], events[step], device)
                for one in launches:
                    one.queue(driver, values, handles[stream], device)
                if number in watched:
                    events[number] = driver.record(handles[stream], device)
            for step in streams.joins:
                driver.wait(handles[0], events[step], device)
        except BaseException:
            driver.abandon_capture(handles[0], device)
            raise
        finally:
            for event in events.values():
                driver.forget(event, device)
        handle = driver.end_capture(handles[0], device)
        return Graph(driver, handle, device)
    finally:
        _capturing.release()


__all__ = ["GRAPHS", "LEAST_LAUNCHES", "Graph", "GraphCache", "capture"]
