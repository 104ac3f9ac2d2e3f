#!/usr/bin/python3 -IS
# SPDX-License-Identifier: Apache-2.0
"""A CNI plugin that does as a test says. It is copied into a folder, and run from there.

    FOLDER/calls             one JSON line a call: command, plugin, environment, request
    FOLDER/held/POD.IF.TYPE  what ADD takes and DEL frees
    FOLDER/behaviour         JSON: {"ADD": "hang", "TYPE/ADD": "fail"}; what is not there works

    works     with a result, that of the plugin before it if there is one
    fail      error 7, and a word on standard error        unknown   error 3
    silent    ends well without a word                     garbage   prints no JSON
    flood     prints for ever                              hang      waits for ever
    die       is killed, after its work                    child     waits for a child that hangs

FOLDER is the plugin's own.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

FOLDER = os.path.dirname(os.path.abspath(__file__))
COMMAND = os.environ["CNI_COMMAND"]
TYPE = os.path.basename(__file__)


def main() -> None:
    """Do what is asked, or what the test wants instead."""
    request = json.load(sys.stdin)
    note(request)
    behaviour = read_behaviour()
    if behaviour not in ("fail", "unknown"):
        work()
    deeds: dict[str, Callable[[], object]] = {
        "works": lambda: answer(request),
        "silent": lambda: None,
        "garbage": lambda: say("no JSON at all"),
        "fail": lambda: complain(7, "told to fail"),
        "unknown": lambda: complain(3, "no such container"),
        "hang": signal.pause,
        "child": lambda: subprocess.run(["sleep", "1000"], check=True),
        "die": lambda: os.kill(os.getpid(), signal.SIGKILL),
        "flood": flood,
    }
    deeds[behaviour]()


def note(request: dict[str, Any]) -> None:
    """Add this call to the list."""
    given = {name: value for name, value in os.environ.items() if name.startswith("CNI_")}
    call = {"command": COMMAND, "plugin": TYPE, "environment": given, "request": request}
    with open(f"{FOLDER}/calls", "a") as file:
        file.write(json.dumps(call) + "\n")


def read_behaviour() -> str:
    """Return what the test wants of this plugin and command."""
    try:
        with open(f"{FOLDER}/behaviour") as file:
            wanted = json.load(file)
    except FileNotFoundError:
        return "works"
    return str(wanted.get(f"{TYPE}/{COMMAND}") or wanted.get(COMMAND) or "works")


def work() -> None:
    """Take or free what ADD and DEL are about."""
    pod, interface = os.environ.get("CNI_CONTAINERID"), os.environ.get("CNI_IFNAME")
    held = f"{FOLDER}/held/{pod}.{interface}.{TYPE}"
    if COMMAND == "ADD":
        with open(held, "x"):
            pass
    elif COMMAND == "DEL" and os.path.exists(held):
        os.unlink(held)


def answer(request: dict[str, Any]) -> None:
    """Print a result: addresses from the configuration, or the result so far."""
    if COMMAND != "ADD":
        return
    plain = {
        "cniVersion": request["cniVersion"],
        "interfaces": [
            {"name": "veth-of-none"},
            {
                "name": os.environ["CNI_IFNAME"],
                "mac": "0a:00:00:00:00:01",
                "sandbox": os.environ["CNI_NETNS"],
            },
        ],
        "ips": [{"address": text, "interface": 1} for text in request.get("addresses", ())],
    }
    say(json.dumps(request.get("prevResult") or plain))


def complain(code: int, message: str) -> None:
    """Fail."""
    sys.stderr.write("a word on standard error\n")
    say(json.dumps({"cniVersion": "1.0.0", "code": code, "msg": message, "details": "really"}))
    sys.exit(1)


def flood() -> None:
    """Print for ever."""
    while True:
        say("x" * 65536)


def say(text: str) -> None:
    """Print a line."""
    sys.stdout.write(f"{text}\n")


main()
