# SPDX-License-Identifier: Apache-2.0
"""The build step pyproject.toml cannot express: Python modules from protos/.

`protos/pycri/cri/api/X.proto` becomes `pycri/cri/api/X_pb2.py`, `X_pb2_grpc.py` and their `.pyi`.
They are written into the source tree, ignored by git, so that wheels, editable installs and
`scripts/protos` all take the one way.
"""

import importlib.resources
import shutil
import sys
from pathlib import Path

from setuptools import Command, setup
from setuptools.command.build import build

ROOT = Path(__file__).resolve().parent
PROTOS = ROOT / "protos"


class BuildProtos(Command):
    """Generate the protobuf and gRPC modules."""

    description = "generate modules from protos/"
    user_options = []  # noqa: RUF012  the type setuptools declares
    editable_mode = False

    def initialize_options(self) -> None: ...

    def finalize_options(self) -> None: ...

    def run(self) -> None:
        from grpc_tools import protoc  # only there while building

        arguments = [
            "protoc",
            f"-I{PROTOS}",
            f"-I{importlib.resources.files('grpc_tools') / '_proto'}",
            f"--plugin=protoc-gen-mypy={_plugin('protoc-gen-mypy')}",
            f"--plugin=protoc-gen-mypy_grpc={_plugin('protoc-gen-mypy_grpc')}",
            f"--python_out={ROOT}",
            f"--grpc_python_out={ROOT}",
            f"--mypy_out=quiet:{ROOT}",
            f"--mypy_grpc_out=quiet,generate_concrete_servicer_stubs:{ROOT}",
            *(str(ROOT / path) for path in self.get_source_files()),
        ]
        if protoc.main(arguments) != 0:
            raise SystemExit("protoc failed")

    def get_source_files(self) -> list[str]:
        return sorted(str(path.relative_to(ROOT)) for path in PROTOS.rglob("*.proto"))

    def get_outputs(self) -> list[str]:
        return []

    def get_output_mapping(self) -> dict[str, str]:
        return {}


def _plugin(name: str) -> Path:
    """Return a protoc plugin's script: beside this interpreter, or in pip's build environment."""
    found = Path(sys.executable).with_name(name)
    return found if found.exists() else Path(shutil.which(name) or name)


class Build(build):
    """`build` with the modules generated before anything is copied."""

    sub_commands = [("build_protos", None), *build.sub_commands]  # noqa: RUF012  as above


setup(cmdclass={"build": Build, "build_protos": BuildProtos})
