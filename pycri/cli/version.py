# SPDX-License-Identifier: Apache-2.0
"""`pycri version`."""

import click

from pycri import __version__


@click.command()
def version() -> None:
    """Print the version."""
    click.echo(f"pycri {__version__}")
