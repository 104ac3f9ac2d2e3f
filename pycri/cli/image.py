# SPDX-License-Identifier: Apache-2.0
"""`pycri image`: bring an image in without a registry, list, remove."""

import os

import click

from pycri.cli.client import READ_DEADLINE_S, connected, socket_option


@click.group()
def image() -> None:
    """Images on this node."""


@image.command("import")
@click.argument("path", type=click.Path(exists=True))
@click.argument("name")
@socket_option
def import_(path: str, name: str, socket_path: str) -> None:
    """Store the OCI image layout at PATH, a folder or a tar, under NAME.

    Prints the image's id.
    """
    from pycri.cri.api import node_v1_pb2, node_v1_pb2_grpc

    request = node_v1_pb2.ImportImageRequest(path=os.path.abspath(path), name=name)
    with connected(socket_path) as channel:
        click.echo(node_v1_pb2_grpc.NodeStub(channel).ImportImage(request).image_ref)


@image.command("ls")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, one object an image.")
@socket_option
def list_(socket_path: str, *, as_json: bool) -> None:
    """List images with their names and sizes."""
    import json

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
