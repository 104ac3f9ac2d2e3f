# SPDX-License-Identifier: Apache-2.0
"""Settings: defaults, merging, and errors that name the file and the key."""

import tomllib
from pathlib import Path

import msgspec
import pytest

from pycri import config
from pycri.errors import InvalidSettings


def write(folder: Path, text: str, name: str = "config.toml") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_printed_defaults_load_to_the_same_tree(tmp_path: Path) -> None:
    text = config.render_settings(config.Settings())
    assert config.load(write(tmp_path, text)) == config.Settings()


def test_printed_settings_keep_what_was_changed(tmp_path: Path) -> None:
    settings = config.Settings(
        run_dir='/a "b"',
        network=config.NetworkSettings(mtu=1400),
        images=config.ImageSettings(progress_timeout_s=5),
    )
    assert config.load(write(tmp_path, config.render_settings(settings))) == settings


def test_printed_defaults_explain_every_key() -> None:
    lines = config.render_settings(config.Settings()).splitlines()
    table = tomllib.loads(config.render_settings(config.Settings()))
    keys = [key for key, value in table.items() if not isinstance(value, dict)]
    keys += [key for key, value in table["network"].items() if not isinstance(value, dict)]
    for key in keys:
        at = next(i for i, line in enumerate(lines) if line.startswith(f"{key} = "))
        assert lines[at - 1].startswith("# "), key


def test_later_files_of_config_d_win_key_by_key(tmp_path: Path) -> None:
    main = write(tmp_path, '[network]\nmtu = 1400\nbridge = "one"\n')
    write(tmp_path, "[network]\nmtu = 1300\n", "config.d/20.toml")
    write(tmp_path, '[network]\nmtu = 1200\ntable = "two"\n', "config.d/10.toml")
    network = config.load(main).network
    assert (network.mtu, network.bridge, network.table) == (1300, "one", "two")


def test_every_path_follows_the_two_roots() -> None:
    settings = config.Settings(state_dir="/a", run_dir="/b")
    paths = {
        name: getattr(settings, name)
        for name in dir(config.Settings)
        if isinstance(getattr(config.Settings, name, None), property)
    }
    assert paths["socket_path"] == "/b/pycri.sock"
    assert len(paths) >= 6
    assert all(path.startswith(("/a/", "/b/")) for path in paths.values())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('sockett = "/x"', "sockett: unknown key; did you mean socket?"),
        ('[network]\nbrige = "x"', "network.brige: unknown key; did you mean network.bridge?"),
        ("[metrics]", "metrics: unknown key"),
        ('[network]\nmtu = "x"', "network.mtu: Expected `int`, got `str`"),
        ("network = 3", "network: Expected `object`, got `int`"),
        ('[network]\nrange = "10.0.0.1/8"', "network: range: 10.0.0.1/8 has host bits set"),
        ('[network]\nrange = "10.0.0.0/31"', "network: range: 10.0.0.0/31 has no room"),
        ('[network]\nbridge = "a-name-too-long-for-linux"', "network.bridge: Expected `str`"),
        ('state_dir = "relative"', "state_dir: Expected `str` matching"),
        ('log_level = "loud"', "log_level: Invalid enum value 'loud'"),
        ("x =", "not TOML: "),
    ],
)
def test_a_wrong_file_is_named_with_the_key(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(InvalidSettings) as caught:
        config.load(path)
    assert str(caught.value).startswith(f"{path}: {message}")


def test_a_named_file_must_exist(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match=r"absent\.toml: No such file"):
        config.load(tmp_path / "absent.toml")


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        config.Settings().run_dir = "/elsewhere"  # type: ignore[misc]
    assert msgspec.structs.replace(config.Settings(), run_dir="/x").pins_dir == "/x/ns"


@pytest.mark.parametrize(
    "rule", ["*", "docker.io", "node:5000", "*.example.test", "docker.io/library/web", "a.b/c"]
)
def test_an_image_rule_names_a_registry_or_a_repository(rule: str, tmp_path: Path) -> None:
    text = f'[images.policy.rules]\n"{rule}" = "verify"\n'
    assert config.load(write(tmp_path, text)).images.policy.rules == {rule: "verify"}


@pytest.mark.parametrize("rule", ["", "**", "a*b", "docker.io/", "docker.io/web:1", "https://a.b"])
def test_an_image_rule_that_could_never_fit_is_refused(rule: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match=r"images\.policy\.rules"):
        config.load(write(tmp_path, f'[images.policy.rules]\n"{rule}" = "verify"\n'))
