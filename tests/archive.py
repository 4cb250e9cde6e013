"""A small apt archive with packages that the test makes, signed with a key of its own, and served on loopback."""

import hashlib
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Archive:
    """An archive in `directory` with one suite, `stable`, and one component, `main`; its public key is `key`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "pool").mkdir(parents=True)
        self.key = directory / "key.asc"
        # The agent's socket lies here, and the path of a socket must be short.
        self._gnupg = Path(tempfile.mkdtemp(prefix="obelisk-gpg-"))
        self._gpg("--quick-generate-key", "--passphrase", "", "archive@localhost", "ed25519", "sign", "never")
        self.key.write_bytes(self._gpg("--armor", "--export"))

    def close(self) -> None:
        """End the agent that gpg left running, and forget the key."""
        subprocess.run(["gpgconf", "--homedir", self._gnupg, "--kill", "all"], check=True, capture_output=True)
        shutil.rmtree(self._gnupg)

    def add(self, name: str, version: str, *, depends: str = "", postinst: str = "") -> Path:
        """Put a package into the pool; `publish` makes it known."""
        control = f"Package: {name}\nVersion: {version}\nArchitecture: amd64\nMaintainer: Nobody <nobody@localhost>\n"
        control += (f"Depends: {depends}\n" if depends else "") + f"Description: {name} for a test\n"
        with tempfile.TemporaryDirectory() as scratch:
            tree = Path(scratch, "tree")
            (tree / "DEBIAN").mkdir(parents=True, mode=0o755)
            tree.chmod(0o755)
            (tree / "DEBIAN/control").write_text(control)
            if postinst:
                (tree / "DEBIAN/postinst").write_text(f"#!/bin/sh\nset -e\n{postinst}\n")
                (tree / "DEBIAN/postinst").chmod(0o755)
            (tree / "usr/share" / name).mkdir(parents=True)
            (tree / "usr/share" / name / "version").write_text(f"{version}\n")
            deb = self.directory / f"pool/{name}_{version}_amd64.deb"
            subprocess.run(["dpkg-deb", "--build", "--root-owner-group", tree, deb], check=True, capture_output=True)
        return deb

    def publish(self) -> None:
        """Write and sign the indexes of what is in the pool."""
        stanzas = []
        for deb in sorted((self.directory / "pool").glob("*.deb")):
            fields = subprocess.run(["dpkg-deb", "--field", deb], check=True, capture_output=True, text=True).stdout
            data = deb.read_bytes()
            stanzas.append(f"{fields.rstrip()}\nFilename: pool/{deb.name}\nSize: {len(data)}\nSHA256: {hashlib.sha256(data).hexdigest()}\n")
        index = self.directory / "dists/stable/main/binary-amd64/Packages"
        index.parent.mkdir(parents=True, exist_ok=True)
        index.write_text("\n".join(stanzas))
        packages = index.read_bytes()
        release = f"Suite: stable\nCodename: stable\nArchitectures: amd64\nComponents: main\nDate: {formatdate(usegmt=True)}\nSHA256:\n"
        release += f" {hashlib.sha256(packages).hexdigest()} {len(packages)} main/binary-amd64/Packages\n"
        plain = self.directory / "dists/stable/Release"
        plain.write_text(release.replace("GMT", "UTC"))
        (self.directory / "dists/stable/InRelease").write_bytes(self._gpg("--clearsign", "--output", "-", str(plain)))

    @contextmanager
    def served(self) -> Iterator[str]:
        """Serve it at the address that this gives."""
        with serving(self.directory) as uri:
            yield uri

    def _gpg(self, *words: str) -> bytes:
        argv = ["gpg", "--homedir", str(self._gnupg), "--batch", "--quiet", "--pinentry-mode", "loopback", *words]
        return subprocess.run(argv, check=True, capture_output=True).stdout


@contextmanager
def serving(directory: Path) -> Iterator[str]:
    """Serve the files of a directory at the address that this gives."""
    handler = partial(_Quiet, directory=str(directory))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_args: object) -> None:
        """Say nothing."""
