"""The pods' network: one network namespace a session, joined by a bridge in a namespace of the workspace's own.

Nothing is added to the machine's own namespace. Knows nothing of sessions beyond a number for each.
"""

from __future__ import annotations

import os
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path

NETNS_FOLDER = Path("/run/netns")


class NetworkError(RuntimeError):
    """A namespace or one of its links could not be made."""


@dataclass(frozen=True)
class Place:
    """Where one session is on the network; `namespace` is empty where there are no namespaces."""

    address: str
    number: int
    namespace: str = ""

    @property
    def inode(self) -> int:
        """The number by which /proc names the namespace."""
        return (NETNS_FOLDER / self.namespace).stat().st_ino


class LoopbackNetwork:
    """The fallback: every session gets an address of 127.66/16, which Linux answers on without set-up."""

    isolation = "processes"

    def __init__(self) -> None:
        self._count = 0
        self._lock = threading.Lock()

    def reserve(self) -> Place:
        """Return the next free place; costs nothing."""
        with self._lock:
            self._count += 1
            return Place(f"127.66.{self._count // 250}.{2 + self._count % 250}", self._count)

    def attach(self, place: Place) -> None:
        """Make the place real."""

    def detach(self, place: Place) -> None:
        """Undo `attach`."""

    def set_link(self, place: Place, up: bool) -> None:
        """Cut or heal the session's cable: there is none here."""
        raise NetworkError(f"{place.address}: a session's network can be cut only where namespaces can be made")

    def close(self) -> None:
        """Undo everything."""


class NamespaceNetwork:
    """Network namespaces `NAME-N`, with veth pairs into the bridge of namespace `NAME-bridge`."""

    isolation = "namespaces"

    def __init__(self, name: str) -> None:
        self._name = name
        self._bridge = f"{name}-bridge"
        self._count = 0
        self._lock = threading.Lock()
        _ip("netns", "add", self._bridge)
        _batch(self._bridge, "link set lo up", "link add pods type bridge", "link set pods up")

    def reserve(self) -> Place:
        """Return the next free place; costs nothing."""
        with self._lock:
            self._count += 1
            number = self._count
        return Place(f"100.66.{1 + number // 250}.{2 + number % 250}", number, f"{self._name}-{number}")

    def attach(self, place: Place) -> None:
        """Make the namespace, its address, loopback and default route (which tells a pod its own address)."""
        _ip("netns", "add", place.namespace)
        _batch(
            self._bridge,
            f"link add pod{place.number} type veth peer name eth0 netns {place.namespace}",
            f"link set pod{place.number} master pods up",
        )
        _batch(
            place.namespace,
            "link set lo up",
            f"address add {place.address}/16 dev eth0",
            "link set eth0 up",
            "route add default dev eth0",
        )

    def detach(self, place: Place) -> None:
        """Delete the namespace and with it its link."""
        subprocess.run(
            ["ip", "-n", self._bridge, "link", "del", f"pod{place.number}"], capture_output=True, check=False
        )
        subprocess.run(["ip", "netns", "del", place.namespace], capture_output=True, check=False)

    def set_link(self, place: Place, up: bool) -> None:
        """Cut (`up` false) or heal the session's cable."""
        _batch(self._bridge, f"link set pod{place.number} {'up' if up else 'down'}")

    def close(self) -> None:
        """Delete every namespace of this workspace."""
        delete_namespaces(self._name)


Network = LoopbackNetwork | NamespaceNetwork


def namespaces(prefix: str) -> list[str]:
    """Return the names of the machine's named namespaces that belong to a workspace name or prefix of one."""
    if not NETNS_FOLDER.is_dir():
        return []
    return sorted(path.name for path in NETNS_FOLDER.iterdir() if path.name.startswith(prefix))


def delete_namespaces(name: str) -> None:
    """Delete all namespaces of one workspace; the names of another one never start with `NAME-`."""
    commands = "".join(f"netns del {found}\n" for found in namespaces(f"{name}-"))
    if commands:
        subprocess.run(["ip", "-force", "-batch", "-"], input=commands, text=True, capture_output=True, check=False)


def open_network(name: str, isolation: str) -> Network:
    """Return a network with namespaces, or, where they cannot be made and `isolation` is "auto", the fallback."""
    if isolation == "processes":
        return LoopbackNetwork()
    try:
        if os.geteuid() != 0:
            raise NetworkError("only root may make network namespaces")
        network = NamespaceNetwork(name)
        try:
            _probe(network)
        except Exception:
            network.close()
            raise
        return network
    except (NetworkError, OSError) as error:
        if isolation == "namespaces":
            raise NetworkError(f"no namespaces here: {error}") from error
        return LoopbackNetwork()


def pod_command(place: Place) -> list[str]:
    """Return what to put before a command so that it is the first process of a pod at `place`."""
    enter = ["nsenter", f"--net={NETNS_FOLDER / place.namespace}"]
    return [*enter, "unshare", "--pid", "--mount-proc", "--uts", "--ipc", "--fork", "--kill-child"]


def _probe(network: NamespaceNetwork) -> None:
    """Prove that a pod can be made here: a container may allow the one kind of namespace and not the other."""
    place = network.reserve()
    network.attach(place)
    done = subprocess.run([*pod_command(place), "true"], capture_output=True, text=True, check=False)
    network.detach(place)
    if done.returncode != 0:
        raise NetworkError(done.stderr.strip() or "a pod could not be made")


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise NetworkError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


def _batch(namespace: str, *lines: str) -> None:
    done = subprocess.run(
        ["ip", "-n", namespace, "-batch", "-"], input="\n".join(lines), capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise NetworkError(f"{namespace}: {done.stderr.strip()}")
