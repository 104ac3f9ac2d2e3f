# SPDX-License-Identifier: Apache-2.0
"""The command `pycri`: its verbs, and how an error leaves it.

Data goes to stdout, diagnostics to stderr. Exit status: 0 good, 1 failed, 2 wrong usage. A verb
imports what it needs when it runs: `serve` must start the spawner before grpc is loaded, and
`--help` should cost nothing.
"""

from typing import Any

import click

from pycri.cli.check import check
from pycri.cli.config import config
from pycri.cli.image import image
from pycri.cli.network import network
from pycri.cli.plan import plan
from pycri.cli.pull import pull
from pycri.cli.registry import registry
from pycri.cli.serve import serve
from pycri.cli.timeline import timeline
from pycri.cli.version import version
from pycri.cli.wipe import wipe
from pycri.errors import PycriError


class Verbs(click.Group):
    """A group whose verbs may raise our errors: they become one line on stderr and exit 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except PycriError as error:
            raise click.ClickException("; ".join([str(error), *_notes(error)])) from error


def _notes(error: PycriError) -> list[str]:
    return getattr(error, "__notes__", [])


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """A container runtime for Kubernetes nodes."""


for verb in (serve, check, plan, pull, image, registry, network, config, version, timeline, wipe):
    main.add_command(verb)
