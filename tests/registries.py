"""Debian's docker-registry, for tests that send images through a real one."""

import json
import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tool import ROOT

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"


@dataclass
class Registry:
    """docker-registry with its files below `place`."""

    place: Path
    host: str

    def get(self, path: str) -> dict[str, Any]:
        """What it answers, as JSON."""
        request = urllib.request.Request(f"http://{self.host}/v2/{path}", headers={"Accept": f"{MANIFEST}, {INDEX}"})
        with urllib.request.urlopen(request) as answer:  # noqa: S310
            found: dict[str, Any] = json.load(answer)
        return found

    def blob(self, digest: str) -> Path:
        """Where it keeps a blob."""
        sha256 = digest.removeprefix("sha256:")
        return self.place / f"data/docker/registry/v2/blobs/sha256/{sha256[:2]}/{sha256}/data"


def program() -> Path:
    """Debian's docker-registry, unpacked and not installed: where it is installed, it serves the whole machine from then on."""
    place = ROOT / ".cache/docker-registry"
    if not place.exists():
        place.parent.mkdir(exist_ok=True)
        with TemporaryDirectory(dir=place.parent) as work:
            download = ["apt-get", "--quiet", "download", "docker-registry"]
            if subprocess.run(download, cwd=work, check=False).returncode != 0:  # nobody has asked the archive yet
                subprocess.run([*([] if os.geteuid() == 0 else ["sudo"]), "apt-get", "--quiet", "update"], check=True)
                subprocess.run(download, cwd=work, check=True)
            (package,) = Path(work).glob("*.deb")
            subprocess.run(["dpkg-deb", "--extract", package, Path(work, "tree")], check=True)
            Path(work, "tree").rename(place)
    return place / "usr/bin/docker-registry"


@contextmanager
def running(place: Path, *, htpasswd: str = "") -> Iterator[Registry]:
    """A registry for as long as the block lasts."""
    place.mkdir(exist_ok=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        host = f"127.0.0.1:{free.getsockname()[1]}"
    settings: dict[str, Any] = {
        "version": "0.1",
        "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(place / "data")}},
        "http": {"addr": host},
    }
    if htpasswd:
        (place / "htpasswd").write_text(htpasswd)
        settings["auth"] = {"htpasswd": {"realm": "tests", "path": str(place / "htpasswd")}}
    (place / "config.json").write_text(json.dumps(settings))  # which is YAML too
    with (
        (place / "log").open("wb") as log,
        subprocess.Popen(["setpriv", "--pdeathsig", "KILL", program(), "serve", place / "config.json"], stdout=log, stderr=log) as server,
    ):
        try:
            for _turn in range(300):
                assert server.poll() is None, (place / "log").read_text()
                try:
                    socket.create_connection(("127.0.0.1", int(host.rpartition(":")[2])), timeout=1).close()
                except OSError:
                    time.sleep(0.1)
                else:
                    break
            yield Registry(place, host)
        finally:
            server.kill()
