"""A repository is cut between any two writes, and readers look at it in between: they see what was or what is to be, whole."""

import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from unittest import mock

import repository_samples as samples
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from repository_samples import NOW

from obelisk.errors import InputError, StateError
from obelisk.model.release import File, Hosts
from obelisk.release.checking import Kind, verify
from obelisk.release.keys import Role
from obelisk.release.publishing import promote, release, withdraw
from obelisk.release.retiring import retire
from obelisk.release.rotating import refresh, rotate
from obelisk.release.shelf import Shelf

CHANNELS = ("testing", "stable")
CUTS = st.one_of(st.none(), st.integers(0, 14))
CONTENTS = st.lists(st.sampled_from([bytes([number]) * samples.BLOCK for number in range(6)]), min_size=1, max_size=5).map(b"".join)

View = tuple[tuple[object, ...], ...]


class Cut(BaseException):
    """The power goes."""


class CuttingShelf(Shelf):
    """A shelf that shows itself to readers before each of its changes, and ends with one of them."""

    def __init__(self, root: Path, look: Callable[[], None]) -> None:
        super().__init__(root)
        self.look = look
        self.left: int | None = None

    def _step(self, name: str) -> None:
        self.look()
        if self.left == 0:
            draft = self.path(name).with_name(f".{Path(name).name}.0123456789abcdef.tmp")
            if draft.parent.is_dir():
                draft.write_bytes(b"half of it")
            raise Cut
        if self.left is not None:
            self.left -= 1

    def write(self, name: str, data: bytes) -> None:
        self._step(name)
        super().write(name, data)

    def take(self, source: Path, file: File) -> None:
        self._step(file.path)
        super().take(source, file)

    def remove(self, name: str) -> int:
        self._step(name)
        return super().remove(name)


class Publishing(RuleBasedStateMachine):
    """One publisher, who is cut now and then and tries again; a host that always looks; and one that has just read the timestamp."""

    @initialize()
    def begin(self) -> None:
        self.fsync = mock.patch.object(os, "fsync")
        self.fsync.start()
        self.directory = tempfile.TemporaryDirectory()
        self.place = Path(self.directory.name)
        self.seen: list[View] = []
        self.shelf = CuttingShelf(self.place / "repo", self._look)
        self.who = samples.publisher(self.place, samples.keyring(self.place), shelf=self.shelf)
        self.versions = 0
        self.minutes = 0
        self.host: samples.Client | None = None
        self._publish("testing", b"the first")
        self.host = samples.client(self.place)

    def teardown(self) -> None:
        if hasattr(self, "directory"):
            self.fsync.stop()
            self.directory.cleanup()

    def _look(self) -> None:
        if self.host is not None:
            self.seen.append(self._view(self.host))

    def _view(self, host: samples.Client) -> View:
        host.refresh()
        return tuple((channel, host.current(channel), host.channel(channel)) for channel in CHANNELS)

    def _publish(self, channel: str, content: bytes) -> object:
        wanted = samples.wanted(self.place, str(self.versions + 1), channel, content=content)
        done = release(self.who, wanted, samples.founding())
        self.versions += 1
        return done

    def _attempt(self, act: Callable[[], object], cut: int | None, *, stale: bool = True) -> None:
        assert self.host is not None
        self.minutes += 1
        self.who = samples.at(self.who, NOW + timedelta(minutes=self.minutes))
        before = self._view(self.host)
        timestamp = self.shelf.metadata("timestamp.json")
        self.seen = []
        self.shelf.left = cut
        try:
            act()
        except Cut:
            self.shelf.left = None
            after_cut = self._view(samples.client(self.place))
            assert after_cut == self._view(self.host)
            self._again(act)
        except (InputError, StateError):
            assert self._view(self.host) == before
        self.shelf.left = None
        after = self._view(self.host)
        assert set(self.seen) <= {before, after}
        assert sorted(self.seen, key=lambda view: view == after and view != before) == self.seen
        if stale and timestamp is not None:
            slow = samples.client(self.place)
            slow.fetcher.instead = {"metadata/timestamp.json": timestamp}
            assert self._view(slow) == before

    def _again(self, act: Callable[[], object]) -> None:
        try:
            act()
        except (InputError, StateError) as refused:
            # What was cut after its last write is done.
            assert refused.code in {"release-listed", "release-withdrawn", "release-not-newer"}, refused  # noqa: PT017

    @rule(channel=st.sampled_from(CHANNELS), content=CONTENTS, cut=CUTS)
    def publish(self, channel: str, content: bytes, cut: int | None) -> None:
        self._attempt(lambda: self._publish(channel, content), cut)

    @rule(back=st.integers(0, 2), cut=CUTS)
    def promote(self, back: int, cut: int | None) -> None:
        self._attempt(lambda: promote(self.who, str(self.versions - back), "testing", "stable"), cut)

    @rule(back=st.integers(0, 3), hosts=st.sampled_from(Hosts), channel=st.sampled_from([None, *CHANNELS]), cut=CUTS)
    def withdraw(self, back: int, hosts: Hosts, channel: str | None, cut: int | None) -> None:
        self._attempt(lambda: withdraw(self.who, str(self.versions - back), hosts=hosts, channel=channel), cut)

    @rule(keep=st.integers(1, 3), grace=st.sampled_from([timedelta(0), timedelta(hours=1)]), cut=CUTS)
    def retire(self, keep: int, grace: timedelta, cut: int | None) -> None:
        self._attempt(lambda: retire(self.who, keep=keep, before=self.who.act.at, grace=grace), cut, stale=bool(grace))

    @rule(role=st.sampled_from([Role.TARGETS, Role.SNAPSHOT, Role.TIMESTAMP]), cut=CUTS)
    def rotate(self, role: Role, cut: int | None) -> None:
        self._attempt(lambda: rotate(self.who, role), cut, stale=False)

    @rule(cut=CUTS)
    def refresh(self, cut: int | None) -> None:
        self._attempt(lambda: refresh(self.who, {}), cut)

    @invariant()
    def what_hosts_need_is_whole(self) -> None:
        if getattr(self, "host", None) is not None:
            findings = verify(Shelf(self.shelf.root), self.who.delivery, self.who.act.at, self.who.sink)
            assert [finding for finding in findings if finding.kind is not Kind.SUPERFLUOUS] == []


Publishing.TestCase.settings = settings(max_examples=12, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck))
test_readers_see_what_was_or_what_is = Publishing.TestCase


def test_what_a_cut_leaves_behind_is_swept(tmp_path: Path) -> None:
    shelf = CuttingShelf(tmp_path / "repo", lambda: None)
    who = samples.publisher(tmp_path, samples.keyring(tmp_path), shelf=shelf)
    release(who, samples.wanted(tmp_path, "1"), samples.founding())
    writes = 0
    while True:
        shelf.left = writes
        try:
            release(who, samples.wanted(tmp_path, "2", edges="none"), samples.founding())
        except Cut:
            writes += 1
            continue
        break
    assert writes > 8
    shelf.left = writes - 1
    with suppress(Cut):
        withdraw(who, "2", hosts=Hosts.STAY)
    shelf.left = None
    retire(samples.at(who, NOW + timedelta(days=2)), keep=1, before=NOW + timedelta(days=2), grace=timedelta(0))
    assert verify(shelf, who.delivery, NOW, who.sink) == ()


def test_a_founding_that_was_cut_is_begun_again(tmp_path: Path) -> None:
    shelf = CuttingShelf(tmp_path / "repo", lambda: None)
    who = samples.publisher(tmp_path, samples.keyring(tmp_path), shelf=shelf)
    for cut in range(40):
        shelf.left = cut
        try:
            release(who, samples.wanted(tmp_path, "1"), samples.founding())
        except Cut:
            continue
        break
    else:
        raise AssertionError
    host = samples.client(tmp_path)
    host.refresh()
    assert host.current("stable") is not None
    release(replace(who, shelf=Shelf(shelf.root)), samples.wanted(tmp_path, "2"), samples.founding())
