# SPDX-License-Identifier: Apache-2.0
"""`pycri serve`: be the daemon."""

from pathlib import Path

import click


@click.command()
@click.option(
    "--config",
    "path",
    type=click.Path(path_type=Path),
    help="Settings file; its config.d is read, too.  [default: /etc/pycri/config.toml]",
)
def serve(path: Path | None) -> None:
    """Answer the kubelet on the CRI socket until SIGTERM."""
    from pycri import config, logs

    settings = config.load(path)
    logs.configure(settings.log_level, settings.log_format)

    from pycri.cri.front_client import forked_front

    # Forked before the daemon is loaded: the front needs, and keeps, half as much.
    watched = bool(settings.prometheus.address or settings.tracing.endpoint)
    with forked_front(watched=watched) as front:
        from pycri.daemon import run

        run(settings, front)
