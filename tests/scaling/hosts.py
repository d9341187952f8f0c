"""Hosts: a network each for scheduler, workers and command, and cables that can be pulled."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from .machines import Machines

_NET = "10.213.97"


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def can_make_hosts() -> bool:
    """Whether this machine lets us make network namespaces."""
    name = f"fc{os.getpid()}x"
    try:
        _ip("netns", "add", name)
        _ip("netns", "del", name)
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


class Hosts(Machines):
    """As `Machines`: the scheduler on a host of its own, each worker too, and one for the command.

    Every host is a network namespace with one address; a bridge in another one joins them. Files
    are shared.
    """

    def __init__(self, folder: Path, workers: int) -> None:
        super().__init__(folder)
        self._prefix = f"fc{os.getpid()}"
        self._names = ["scheduler", "command", *(f"worker{i}" for i in range(workers))]
        self.address = self._address("scheduler")

    def __enter__(self) -> Hosts:
        try:
            self._space("switch", "add")
            self._in("switch", "link", "add", "bridge", "type", "bridge")
            self._in("switch", "link", "set", "bridge", "up")
            for name in self._names:
                self._join(name)
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, *about: object) -> None:
        super().__exit__(*about)
        self._remove()

    def on(self, host: str) -> list[str]:
        """What to put before a command that is to run there."""
        return ["ip", "netns", "exec", f"{self._prefix}{host}"]

    def pull(self, host: str) -> None:
        """Pull a host's cable: nothing arrives any more, and nobody is told."""
        self._in("switch", "link", "set", host, "down")

    def plug(self, host: str) -> None:
        self._in("switch", "link", "set", host, "up")

    def _on(self, kind: str) -> list[str]:
        return self.on("scheduler" if kind == "scheduler" else f"worker{len(self.workers)}")

    def _join(self, name: str) -> None:
        """A host, and its cable; the end in the switch has its name."""
        self._space(name, "add")
        _ip("-n", f"{self._prefix}switch", "link", "add", name, "type", "veth",
            "peer", "name", "cable", "netns", f"{self._prefix}{name}")  # fmt: skip
        self._in("switch", "link", "set", name, "master", "bridge", "up")
        self._in(name, "link", "set", "lo", "up")
        self._in(name, "address", "add", f"{self._address(name)}/24", "dev", "cable")
        self._in(name, "link", "set", "cable", "up")

    def _address(self, name: str) -> str:
        return f"{_NET}.{self._names.index(name) + 1}"

    def _space(self, name: str, what: str) -> None:
        _ip("netns", what, f"{self._prefix}{name}")

    def _in(self, host: str, *words: str) -> None:
        _ip("-n", f"{self._prefix}{host}", *words)

    def _remove(self) -> None:
        for name in ["switch", *self._names]:
            try:
                self._space(name, "del")
            except subprocess.CalledProcessError:
                continue
