# SPDX-License-Identifier: Apache-2.0
"""`pycri image`: the images of the node: bring them in and out by archives, list, check, remove."""

import json
import os
import sys
from typing import TYPE_CHECKING

import click

from pycri.cli.client import READ_DEADLINE_S, connected, socket_option

if TYPE_CHECKING:
    from pycri.cri.api.node_v1_pb2 import CheckedImage, ImageUsage


@click.group()
def image() -> None:
    """Images on this node."""


@image.command("import")
@click.argument("path", type=click.Path(exists=True))
@click.argument("name", default="")
@socket_option
def import_(path: str, name: str, socket_path: str) -> None:
    """Store the images of the archive at PATH: an OCI image layout, or what `docker save` writes.

    A folder, or a tar, plain or compressed. With NAME one image is stored under that; without, all
    that have names in the archive. Prints the images' ids.
    """
    from pycri.cri.api import node_v1_pb2, node_v1_pb2_grpc

    request = node_v1_pb2.ImportImageRequest(path=os.path.abspath(path), name=name)
    with connected(socket_path) as channel:
        for image_ref in node_v1_pb2_grpc.NodeStub(channel).ImportImage(request).image_refs:
            click.echo(image_ref)


@image.command("ls")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, one object an image.")
@socket_option
def list_(socket_path: str, *, as_json: bool) -> None:
    """List images with their names and sizes."""
    from pycri.cri.api import runtime_v1_pb2, runtime_v1_pb2_grpc

    with connected(socket_path) as channel:
        images = (
            runtime_v1_pb2_grpc.ImageServiceStub(channel)
            .ListImages(runtime_v1_pb2.ListImagesRequest(), timeout=READ_DEADLINE_S)
            .images
        )
    for found in images:
        names = [*found.repo_tags, *found.repo_digests]
        if as_json:
            click.echo(json.dumps({"id": found.id, "names": names, "size_bytes": found.size}))
        else:
            name = names[0] if names else "-"
            click.echo(f"{found.id[7:19]}  {found.size / 1e6:9.1f} MB  {name}")


@image.command("rm")
@click.argument("name")
@socket_option
def remove(name: str, socket_path: str) -> None:
    """Remove an image and all its names; one that is absent is fine."""
    from pycri.cri.api import runtime_v1_pb2, runtime_v1_pb2_grpc

    request = runtime_v1_pb2.RemoveImageRequest(image=runtime_v1_pb2.ImageSpec(image=name))
    with connected(socket_path) as channel:
        runtime_v1_pb2_grpc.ImageServiceStub(channel).RemoveImage(request)


@image.command("export")
@click.argument("path", type=click.Path())
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@socket_option
def export(path: str, names: tuple[str, ...], socket_path: str) -> None:
    """Write images to an archive: a tar at PATH, or a layout if PATH is a folder or ends with "/".

    It is an OCI image layout and a Docker archive at once: skopeo, podman, ctr and `docker load`
    read it. Images keep their ids; layers are not compressed.
    """
    from pycri.cri.api import node_v1_pb2, node_v1_pb2_grpc

    folder = path.endswith("/") or os.path.isdir(path)
    request = node_v1_pb2.ExportImagesRequest(
        path=os.path.abspath(path), names=names, folder=folder
    )
    with connected(socket_path) as channel:
        node_v1_pb2_grpc.NodeStub(channel).ExportImages(request)


@image.command("df")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, one object an image.")
@socket_option
def usage(socket_path: str, *, as_json: bool) -> None:
    """Show what images take on disk, share, and would give back if they were removed now."""
    from pycri.cri.api import node_v1_pb2, node_v1_pb2_grpc

    with connected(socket_path) as channel:
        answer = node_v1_pb2_grpc.NodeStub(channel).ListImageUsage(
            node_v1_pb2.ListImageUsageRequest(), timeout=READ_DEADLINE_S
        )
    if as_json:
        for found in answer.images:
            click.echo(json.dumps(_usage_object(found)))
        return
    click.echo("IMAGE           SIZE MB  SHARED MB    FREE MB  NAME")
    for found in answer.images:
        sizes = (found.size_bytes, found.shared_bytes, found.reclaimable_bytes)
        columns = "  ".join(f"{size / 1e6:9.1f}" for size in sizes)
        name = _name(found) + (" (pinned)" if found.pinned else "")
        click.echo(f"{found.image_ref[7:19]}  {columns}  {name}")
    click.echo(f"all layers    {answer.total_bytes / 1e6:9.1f}  in {answer.total_inodes} files")


def _usage_object(found: "ImageUsage") -> dict[str, object]:
    return {
        "id": found.image_ref,
        "names": list(found.names),
        "size_bytes": found.size_bytes,
        "shared_bytes": found.shared_bytes,
        "reclaimable_bytes": found.reclaimable_bytes,
        "pinned": found.pinned,
    }


@image.command("check")
@click.option("--repair", is_flag=True, help="Unlist broken images: the next pull fetches them.")
@socket_option
def check(socket_path: str, *, repair: bool) -> None:
    """Read every layer and config, and tell which images are not what they were when they came.

    Exit status 1 if there are such images and they are still listed.
    """
    from pycri.cri.api import node_v1_pb2, node_v1_pb2_grpc

    broken: set[str] = set()
    with connected(socket_path) as channel:
        request = node_v1_pb2.CheckImagesRequest(repair=repair)
        for checked in node_v1_pb2_grpc.NodeStub(channel).CheckImages(request):
            if checked.problems:
                broken.add(checked.image_ref)
            if checked.unlisted:
                broken.discard(checked.image_ref)
            click.echo(_verdict(checked))
    if broken:
        if repair:
            click.echo("containers use what is broken of those still listed", err=True)
        sys.exit(1)


def _verdict(checked: "CheckedImage") -> str:
    word = "unlisted" if checked.unlisted else "broken" if checked.problems else "ok"
    lines = [f"{word:8}  {checked.image_ref[7:19]}  {_name(checked)}"]
    if checked.not_compared:
        lines[0] += f" ({checked.not_compared} layers cannot be compared)"
    return "\n".join([*lines, *(f"          {problem}" for problem in checked.problems)])


def _name(found: "CheckedImage | ImageUsage") -> str:
    return found.names[0] if found.names else "-"
