# SPDX-License-Identifier: Apache-2.0
"""`pycri config`: the settings as the daemon would see them."""

from pathlib import Path

import click


@click.command()
@click.option("--default", "show_default", is_flag=True, help="Show the defaults instead.")
@click.option("--config", "path", type=click.Path(path_type=Path), help="Settings file to read.")
def config(path: Path | None, *, show_default: bool) -> None:
    """Print the settings in force, as TOML with the help of each key."""
    from pycri.config import Settings, load, render_settings

    settings = Settings() if show_default else load(path)
    click.echo(render_settings(settings), nl=False)
