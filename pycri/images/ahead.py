# SPDX-License-Identifier: Apache-2.0
"""Work in a thread of its own, ahead of who takes its results.

Reading, decompressing and hashing a layer happen in C, without the interpreter's lock: so they use
a processor beside the one that makes the files. How far ahead they get is bounded. The threads are
for processes that end: one whose work waits for input is left behind when nobody takes its results.
"""

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import Final, TypeVar

T = TypeVar("T")
_DEPTH: Final = 4
"""Results that wait for their taker."""


class _Failed:
    def __init__(self, error: BaseException) -> None:
        self.error = error


class _End:
    pass


_Results = queue.Queue[T | _Failed | _End]


def ahead(work: Iterable[T]) -> Iterator[T]:
    """Begin to iterate over `work` in a thread; return an iterator over what it yields.

    What it raises is raised at its place among the results. Closing the iterator ends the thread
    as soon as it has its next result.
    """
    results: _Results[T] = queue.Queue(_DEPTH)
    unwanted = threading.Event()

    def run() -> None:
        try:
            for result in work:
                results.put(result)
                if unwanted.is_set():
                    return
            results.put(_End())
        except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
            results.put(_Failed(error))

    threading.Thread(target=run, daemon=True).start()
    return _take(results, unwanted)


def _take(results: _Results[T], unwanted: threading.Event) -> Iterator[T]:
    try:
        while not isinstance(result := results.get(), _End):
            if isinstance(result, _Failed):
                raise result.error
            yield result
    finally:
        unwanted.set()
        while not results.empty():
            results.get_nowait()
