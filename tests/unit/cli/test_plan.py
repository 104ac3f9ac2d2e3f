# SPDX-License-Identifier: Apache-2.0
"""`pycri plan`: the requests in plans/*.json give the steps in plans/*.txt.

PYCRI_UPDATE_GOLDEN=1 writes the latter anew; read their diff before committing it.
"""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from pycri.cli.main import main
from pycri.config import Settings
from pycri.cri.decode.document import decode_document
from pycri.errors import Unsupported
from pycri.images.reference import FIELD_DEFAULTS
from pycri.images.stored import StoredImages
from pycri.kernel.features import probe_host
from pycri.model.host import HostFacts
from pycri.pods.preview import Preview
from tests.unit.plan.samples import host_v1, host_v2

PLANS = Path(__file__).parent / "plans"
REQUESTS = sorted(path.stem for path in PLANS.glob("*.json"))


def steps(text: str, host: HostFacts) -> str:
    pod, container = decode_document(text)
    preview = Preview(Settings(), host, StoredImages(Path("/nowhere"), [], [], FIELD_DEFAULTS))
    return preview.pod(pod) if container is None else preview.container(pod, container)


def plan(request: str, *words: str) -> Result:
    return CliRunner().invoke(main, ["plan", *words, "-"], input=request)


def container(**config: Any) -> dict[str, Any]:
    request: dict[str, Any] = json.loads((PLANS / "container-terminal.json").read_text())
    request["config"] |= config
    return request


@pytest.mark.parametrize("name", REQUESTS)
def test_the_steps_of_a_request_are_the_golden_ones(name: str) -> None:
    # How long a filter gets is libseccomp's to say.
    text = steps((PLANS / f"{name}.json").read_text(), host_v2())
    found = re.sub(r"seccomp \d+ ", "seccomp N ", text)
    golden = PLANS / f"{name}.txt"
    if os.environ.get("PYCRI_UPDATE_GOLDEN"):
        golden.write_text(found)
    assert found == golden.read_text(), f"{name}: run with PYCRI_UPDATE_GOLDEN=1 if meant"


def test_every_golden_file_has_its_request() -> None:
    assert {path.stem for path in PLANS.glob("*.txt")} == set(REQUESTS)


@pytest.mark.parametrize("way", ["file", "standard input"])
def test_the_verb_prints_the_steps_on_this_host(way: str, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(f'state_dir = "{tmp_path}"\n')
    config = ["--config", str(tmp_path / "config.toml")]
    file = PLANS / "container-terminal.json"
    text = file.read_text()
    done = (
        CliRunner().invoke(main, ["plan", *config, str(file)])
        if way == "file"
        else plan(text, *config)
    )
    assert done.exit_code == 0, done.output
    assert done.output == steps(text, probe_host()).replace("/var/lib/pycri", str(tmp_path))


def test_values_of_variables_are_not_printed() -> None:
    text = steps((PLANS / "container.json").read_text(), host_v2())
    assert "PASSWORD" in text
    assert "hunter2" not in text


@pytest.mark.parametrize(
    ("request_text", "named"),
    [
        ("{", "request: is not JSON"),
        ("[]", "request: is not a JSON object"),
        ('{"config": {"hostnam": "x"}}', "hostnam"),
        ('{"config": {}}', "config.metadata: is missing"),
        ('{"config": {"image": {"image": "x"}}}', "sandbox_config: is missing"),
        (
            '{"config": {}, "sandbox_config": {"metadata": {"name": "x"}}}',
            "sandbox_config.metadata.uid: is missing",
        ),
        (
            json.dumps(container(linux={"resources": {"cpu_period": "5"}})),
            "config.linux.resources.cpu_period",
        ),
        (
            json.dumps(container(linux={"security_context": {"run_as_username": "kim"}})),
            "config.linux.security_context.run_as_username",
        ),
        (
            json.dumps(
                container(
                    devices=[
                        {"host_path": "/no/such", "container_path": "/dev/x", "permissions": "r"}
                    ]
                )
            ),
            "config.devices[0].host_path",
        ),
    ],
)
def test_what_is_wrong_is_named_and_ends_with_1(request_text: str, named: str) -> None:
    done = plan(request_text)
    assert done.exit_code == 1
    assert named in done.stderr
    assert done.stdout == ""


def test_what_a_node_cannot_do_is_named() -> None:
    text = json.dumps(container(linux={"resources": {"unified": {"memory.high": "1"}}}))
    with pytest.raises(Unsupported, match=r"^config\.linux\.resources\.unified"):
        steps(text, host_v1())
