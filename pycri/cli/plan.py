# SPDX-License-Identifier: Apache-2.0
"""`pycri plan`: what a request would do on this node, step by step, without doing it."""

from pathlib import Path
from typing import TextIO

import click


@click.command()
@click.argument("request", type=click.File("r", encoding="utf-8"))
@click.option("--config", "path", type=click.Path(path_type=Path), help="Settings file to read.")
def plan(request: TextIO, path: Path | None) -> None:
    """Print every step that a request would take, in order.

    REQUEST is a file, or - for standard input, with the JSON form of a RunPodSandboxRequest, or
    of a CreateContainerRequest with its sandbox_config.
    """
    from pycri.config import load
    from pycri.cri.decode.document import decode_document
    from pycri.images.reference import NameDefaults
    from pycri.images.stored import StoredImages
    from pycri.kernel.features import probe_host
    from pycri.pods.preview import Preview

    pod, container = decode_document(request.read())
    settings = load(path)
    defaults = NameDefaults(prefix=settings.images.default_prefix, aliases=settings.images.aliases)
    images = StoredImages.read(Path(settings.images_dir), Path(settings.database_path), defaults)
    preview = Preview(settings, probe_host(), images)
    text = preview.pod(pod) if container is None else preview.container(pod, container)
    click.echo(text, nl=False)
