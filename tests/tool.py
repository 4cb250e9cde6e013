"""The tool as a person runs it, for the tests that go the whole way."""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Tool:
    """The tool of a checkout with a store and keys below `home`, and a spec of its own; `prefix` goes before its command line."""

    home: Path
    spec: Path
    prefix: tuple[str, ...] = ()
    checkout: Path = ROOT
    keys: Path | None = None

    @classmethod
    def with_example(cls, home: Path, name: str) -> Self:
        """A fresh store, and a copy of an example."""
        shutil.copytree(ROOT / "examples" / name, home / name)
        return cls(home, home / name)

    @property
    def store(self) -> Path:
        """Where its store is."""
        return self.home / "store"

    @property
    def environment(self) -> dict[str, str]:
        """What it runs with."""
        return {**os.environ, "OBELISK_STORE": str(self.store), "OBELISK_KEYS": str(self.keys or self.home / "keys")}

    def copied_to(self, home: Path, prefix: Sequence[str] = ()) -> Self:
        """The same with a copy of store, keys and spec in the existing directory `home`."""
        copy = "-al" if self.home.stat().st_dev == home.stat().st_dev and not prefix else "-a"
        for part in (self.store, self.home / "keys"):
            subprocess.run([*prefix, "cp", copy, part, home], check=True)
        # A spec is edited in place, which would show through a hard link.
        subprocess.run([*prefix, "cp", "-a", self.spec, home], check=True)
        return replace(self, home=home, spec=home / self.spec.name, prefix=tuple(prefix))

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Begin a command, in a process group of its own."""
        argv = [*self.prefix, str(self.checkout / "obelisk"), *words]
        return subprocess.Popen(
            argv, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )

    def finish(self, process: subprocess.Popen[str]) -> tuple[str, str]:
        """What a command says on both streams; one that the test does not live to see the end of ends with it."""
        try:
            return process.communicate()
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            raise

    def run(self, *words: str, status: int = 0) -> str:
        """What the tool says on standard output; any other exit status is a failure that shows all it said."""
        process = self.start(*words)
        stdout, stderr = self.finish(process)
        assert process.returncode == status, f"obelisk {' '.join(words)}: status {process.returncode}\n{stdout}\n{stderr}"
        return stdout + (stderr if status else "")

    def refused(self, *words: str, status: int) -> dict[str, str]:
        """The error with which a command ends: its code, message and hint."""
        said = self.run(*words, "--json", status=status)
        error: dict[str, str] = json.loads(said.splitlines()[-1])["error"]
        return error

    def build(self) -> str:
        """Build the spec; the image id."""
        return self.run("build", str(self.spec)).split()[-1]

    def events(self, *words: str) -> list[dict[str, Any]]:
        """The events of a command."""
        return [json.loads(line) for line in self.run(*words, "--json").splitlines()]

    def redone(self) -> set[str]:
        """The steps that a build of the spec had to do."""
        events = self.events("build", str(self.spec))
        return {event["task"] for event in events if event["event"] == "finished" and not event["cached"]}

    def manifest(self) -> dict[str, Any]:
        """The manifest of the spec's last image."""
        manifest: dict[str, Any] = json.loads(self.run("show", str(self.spec), "--json"))["manifest"]
        return manifest

    @contextmanager
    def changed(self, file: str, old: str, new: str) -> Iterator[None]:
        """The spec with a part of one file replaced (at its beginning, where `old` is empty), for as long as the block lasts."""
        path = self.spec / file
        before = path.read_text()
        assert old in before
        path.write_text(before.replace(old, new, 1))
        try:
            yield
        finally:
            path.write_text(before)
