# SPDX-License-Identifier: Apache-2.0
"""`pycri registry`: what this node knows of registries."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from pycri.images.explain import Explanation, HostExplanation


@click.group()
def registry() -> None:
    """Registries, as this node is told to use them."""


@registry.command()
@click.argument("image")
@click.option("--config", "path", type=click.Path(path_type=Path), help="Settings file to read.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def explain(image: str, path: Path | None, *, as_json: bool) -> None:
    """Print which hosts a pull of IMAGE would ask, in which order, with what, and why.

    Secrets are not printed, and no host is asked. Exit status 1 if a host could not be used.
    """
    import asyncio

    import msgspec

    from pycri.config import load
    from pycri.images import explain as images_explain
    from pycri.images.reference import NameDefaults, parse_reference

    images = load(path).images
    defaults = NameDefaults(prefix=images.default_prefix, aliases=images.aliases)
    explained = asyncio.run(
        images_explain.explain(
            parse_reference(image, defaults), Path(images.certs_dir), Path(images.credentials_file)
        )
    )
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(explained), indent=2))
    else:
        click.echo("\n".join(_render(explained)))
    if any(host.problems for host in explained.hosts):
        raise click.exceptions.Exit(1)


def _render(explained: "Explanation") -> list[str]:
    lines = [
        f"image     {explained.image}",
        f"registry  {explained.registry}, described by {explained.described_by}",
    ]
    for number, host in enumerate(explained.hosts, 1):
        lines += ["", f"{number}. {host.url}", *(f"   {line}" for line in _render_host(host))]
    return lines


def _render_host(host: "HostExplanation") -> list[str]:
    rows = {
        "is": host.role,
        "asked for": host.asked_for,
        "TLS": host.tls,
        "credentials": host.credentials,
        "headers": ", ".join(host.headers),
        "proxy": host.proxy,
        "dial": f"given up after {host.dial_timeout_s:g} s",
        "PROBLEM": "; ".join(host.problems),
    }
    return [f"{name:<11} {value}" for name, value in rows.items() if value]
