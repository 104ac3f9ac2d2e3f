# SPDX-License-Identifier: Apache-2.0
"""`pycri wipe`: leave nothing of pycri on the node but its images."""

from pathlib import Path

import click


@click.command()
@click.option("--config", "path", type=click.Path(path_type=Path), help="Settings file.")
def wipe(path: Path | None) -> None:
    """End every pod, remove network, spawner and run folder; the daemon must be stopped."""
    from pycri import config, logs

    settings = config.load(path)
    logs.configure("error")

    from pycri import daemon

    daemon.wipe(settings)
