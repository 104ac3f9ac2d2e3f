# SPDX-License-Identifier: Apache-2.0
"""What every use case stands on, made once by the daemon and handed to each."""

import dataclasses

from pycri.config import Settings
from pycri.model.host import HostFacts
from pycri.pods.catalogue import Catalogue
from pycri.pods.events import Events
from pycri.pods.groups import Groups
from pycri.pods.layout import Layout
from pycri.pods.watch import ExitWatch
from pycri.runtimes.client import SpawnerClient


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Foundation:
    """Settings and facts, which never change, and the parts that all share."""

    settings: Settings
    host: HostFacts
    catalogue: Catalogue
    events: Events
    spawner: SpawnerClient
    exits: ExitWatch
    layout: Layout
    groups: Groups
