# SPDX-License-Identifier: Apache-2.0
"""What the programs of this package have in common as processes; see `programs.py`, who asks."""

import errno
import json
import os
import resource
from collections.abc import Callable, Mapping
from typing import Final

from pycri.errors import CorruptImage
from pycri.kernel.priority import work_behind

Answer = Mapping[str, int | str]
_FULL_DISK: Final = (errno.ENOSPC, errno.EDQUOT)
_MOST_MEMORY: Final = 1024**3
"""Of address space: zstd may want 128 MiB; what a layer's names take is up to the archive."""


def answer(work: Callable[[], Answer], *, bounded: bool) -> None:
    """Print what came of `work`, done at low priority, bounded in memory if so.

    A bad layer is an answer, not a failure.
    """
    work_behind()
    os.umask(0)
    if bounded:
        resource.setrlimit(resource.RLIMIT_AS, (_MOST_MEMORY, _MOST_MEMORY))
    os.write(1, json.dumps(_answer(work)).encode())


def _answer(work: Callable[[], Answer]) -> Answer:
    try:
        return work()
    except CorruptImage as error:
        return {"kind": "corrupt", "message": str(error)}
    except MemoryError:
        words = f"the layer's tar takes more than {_MOST_MEMORY} bytes of memory to unpack"
        return {"kind": "corrupt", "message": words}
    except OSError as error:
        kind = "full" if error.errno in _FULL_DISK else "failed"
        return {"kind": kind, "message": str(error)}
