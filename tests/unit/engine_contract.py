"""What holds for every engine of instances, as cases that run against each: a class with tests, and the means that they need.

An instance under test has a word in its memory and one in its state, which tests set and read while it runs.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta

import pytest

from obelisk.errors import InputError, ObeliskError, StateError, TrustError
from obelisk.instance.engine import Forks
from obelisk.model.instance import MIB, Consistency, Copy, Instance, Kind, Phase, Port, Wanted, Wish


class Subject(ABC):
    """An engine, and ways into its instances that no engine offers."""

    engine: Forks
    image: str

    @abstractmethod
    def set_words(self, name: str, *, memory: str, state: str) -> None:
        """Have a running instance hold these."""

    @abstractmethod
    def words(self, name: str) -> tuple[str, str]:
        """What a running instance holds in memory and in state. Waits until it answers."""

    @abstractmethod
    def spoil(self, name: str, snapshot: str) -> None:
        """Damage a file of a snapshot."""

    @abstractmethod
    def busy(self, name: str) -> AbstractContextManager[object]:
        """As while another command works on the instance."""

    def wish(self, name: str, *, memory_bytes: int = 128 * MIB, state_bytes: int = 128 * MIB, keep: int = 8) -> Wish:
        """An instance with one port."""
        return Wish(name, self.image, memory_bytes, 1, state_bytes, (Port(0, 80),), keep=keep)

    def running(self, name: str, *, memory: str = "", state: str = "") -> Instance:
        """A new instance that runs, and holds these."""
        self.engine.create(self.wish(name))
        self.engine.start(name)
        self.set_words(name, memory=memory, state=state)
        return self.engine.instance(name)


class EngineContract(ABC):
    """The cases. Each begins without instances, and leaves what it made to the fixture."""

    @pytest.fixture
    @abstractmethod
    def subject(self) -> Subject | Iterator[Subject]:
        """The engine under test."""

    def test_what_cannot_be_is_refused_before_anything_is_made(self, subject: Subject) -> None:
        engine = subject.engine
        engine.create(subject.wish("web"))
        for wish, code in (
            (subject.wish("web"), "name-taken"),
            (subject.wish("Web!"), "instance-name"),
            (Wish("other", "f" * 64), "image-missing"),
            (subject.wish("other", memory_bytes=MIB), "instance-memory"),
            (subject.wish("other", memory_bytes=1 << 50), "no-memory"),
            (subject.wish("other", state_bytes=1 << 50), "no-space"),
        ):
            assert _refused(lambda wish=wish: engine.create(wish), InputError, StateError) == code
        for call in (engine.instance, engine.status, engine.start, engine.stop, engine.retire, engine.snapshots, engine.verify):
            assert _refused(lambda call=call: call("other"), InputError) == "instance-unknown"
        assert [each.name for each in engine.instances()] == ["web"]

    def test_an_instance_starts_stops_and_keeps_its_state(self, subject: Subject) -> None:
        engine = subject.engine
        made = engine.create(subject.wish("web"))
        assert (engine.status("web").phase, made.on) == (Phase.STOPPED, False)
        assert engine.stop("web")
        status = engine.start("web")
        assert (status.running, status.process > 0, engine.instance("web").on) == (True, True, True)
        port = engine.instance("web").wish.ports[0]
        assert status.address == f"127.0.0.1:{port.host}"
        assert port.host > 0
        subject.set_words("web", memory="m", state="s")
        assert engine.start("web").process == status.process  # it runs already
        engine.stop("web", timeout_s=30)
        assert (engine.status("web").phase, engine.instance("web").on) == (Phase.STOPPED, False)
        engine.stop("web", to_return=True)
        assert not engine.instance("web").on  # it was off, and nobody has it return
        engine.start("web")
        assert subject.words("web") == ("", "s")
        engine.stop("web", timeout_s=30, to_return=True)
        assert (engine.status("web").phase, engine.instance("web").on) == (Phase.STOPPED, True)
        engine.retire("web")
        assert engine.instances() == ()

    def test_a_second_command_is_refused_while_one_works(self, subject: Subject) -> None:
        engine = subject.engine
        engine.create(subject.wish("web"))
        with subject.busy("web"):
            assert _refused(lambda: engine.start("web"), StateError) == "instance-busy"
            assert _refused(lambda: engine.retire("web"), StateError) == "instance-busy"
            assert not engine.status("web").running
            assert _refused(lambda: engine.create(subject.wish("web")), InputError) == "name-taken"
        engine.retire("web")

    def test_a_moment_comes_back_with_its_memory(self, subject: Subject) -> None:
        engine = subject.engine
        made = subject.running("web", memory="one", state="first")
        kept = engine.snapshot("web", Wanted(name="before", description="an import"))
        assert (kept.kind, kept.consistency, kept.name, kept.description) == (Kind.MEMORY, Consistency.WHOLE, "before", "an import")
        assert subject.words("web") == ("one", "first")
        subject.set_words("web", memory="two", state="second")
        later = engine.snapshot("web", Wanted())
        assert (later.parent, [each.id for each in engine.snapshots("web")]) == (kept.id, [kept.id, later.id])
        assert _refused(lambda: engine.snapshot("web", Wanted(name="before")), InputError) == "snapshot-taken"
        assert _refused(lambda: engine.restore("web", "nothing"), InputError) == "snapshot-unknown"
        assert engine.restore("web", "before").running
        assert subject.words("web") == ("one", "first")
        # Deleting one touches no other, nor what runs on from it.
        engine.delete("web", "before")
        assert [each.id for each in engine.snapshots("web")] == [later.id]
        assert subject.words("web") == ("one", "first")
        engine.restore("web", later.id)
        assert subject.words("web") == ("two", "second")
        engine.stop("web", timeout_s=0)
        engine.restore("web", later.id)
        assert subject.words("web") == ("two", "second")
        assert engine.instance("web").uuid == made.uuid

    def test_state_alone_is_kept_running_or_not(self, subject: Subject) -> None:
        engine = subject.engine
        subject.running("web", memory="one", state="first")
        running = engine.snapshot("web", Wanted(Kind.STATE, "running"))
        assert running.consistency is Consistency.CRASH
        engine.stop("web", timeout_s=30)
        assert _refused(lambda: engine.snapshot("web", Wanted()), StateError) == "not-running"
        off = engine.snapshot("web", Wanted(Kind.STATE, "off"))
        assert off.consistency is Consistency.OFF
        engine.start("web")
        subject.set_words("web", memory="two", state="second")
        assert engine.restore("web", "running").running
        assert subject.words("web") == ("", "first")
        # Another instance begins with that state.
        engine.stop("web", timeout_s=0)
        other = engine.create(subject.wish("other"), state=off)
        assert other.origin == f"web/{off.id}"
        engine.retire("web")
        engine.start("other")
        assert subject.words("other") == ("", "first")

    def test_a_damaged_snapshot_is_named_and_changes_nothing(self, subject: Subject) -> None:
        engine = subject.engine
        subject.running("web", memory="one", state="first")
        kept, whole = engine.snapshot("web", Wanted()), engine.snapshot("web", Wanted(name="whole"))
        assert engine.verify("web") == ()
        subject.spoil("web", kept.id)
        assert [found.snapshot for found in engine.verify("web")] == [kept.id]
        assert _refused(lambda: engine.restore("web", kept.id), TrustError) == "snapshot-damaged"
        assert _refused(lambda: engine.restore_as("web", kept.id, Copy("other")), TrustError) == "snapshot-damaged"
        assert subject.words("web") == ("one", "first")
        assert [each.name for each in engine.instances()] == ["web"]
        engine.delete("web", kept.id)
        assert [each.id for each in engine.snapshots("web")] == [whole.id]

    def test_retention_keeps_the_newest_and_all_with_a_name(self, subject: Subject) -> None:
        engine = subject.engine
        engine.create(subject.wish("web", keep=2))
        named = engine.snapshot("web", Wanted(Kind.STATE, "named"))
        made = [engine.snapshot("web", Wanted(Kind.STATE)).id for _ in range(3)]
        assert [each.id for each in engine.snapshots("web")] == [named.id, *made[1:]]

    def test_copies_are_their_own_and_outlive_the_original(self, subject: Subject) -> None:
        engine = subject.engine
        made = subject.running("web", memory="one", state="first")
        assert _refused(lambda: engine.fork("web", [Copy("web-1"), Copy("web")]), InputError) == "name-taken"
        assert [each.name for each in engine.instances()] == ["web"]
        copies = engine.fork("web", [Copy("web-1", (Port(0, 80),)), Copy("web-2", (Port(0, 80),))])
        everyone = (made, *copies)
        for what in ("uuid", "mac", "generation", "name"):
            assert len({getattr(each, what) for each in everyone}) == 3, what
        assert len({each.wish.ports[0].host for each in everyone}) == 3
        for name in ("web", "web-1", "web-2"):
            assert subject.words(name) == ("one", "first")
        subject.set_words("web-1", memory="two", state="second")
        assert subject.words("web") == ("one", "first")
        assert subject.words("web-2") == ("one", "first")
        kept = engine.snapshot("web-1", Wanted())
        again = engine.restore_as("web-1", kept.id, Copy("again", (Port(0, 80),)))
        assert (again.uuid not in {each.uuid for each in everyone}, engine.status("again").running) == (True, True)
        engine.retire("web")
        engine.retire("web-1")
        assert subject.words("again") == ("two", "second")
        assert subject.words("web-2") == ("one", "first")
        engine.stop("web-2", timeout_s=30)
        engine.start("web-2")
        assert subject.words("web-2") == ("", "first")

    def test_only_what_runs_is_forked(self, subject: Subject) -> None:
        subject.engine.create(subject.wish("web"))
        assert _refused(lambda: subject.engine.fork("web", [Copy("web-1")]), StateError) == "not-running"

    def test_records_say_when(self, subject: Subject) -> None:
        made = subject.engine.create(subject.wish("web"))
        kept = subject.engine.snapshot("web", Wanted(Kind.STATE))
        assert made.created.tzinfo is UTC
        assert kept.at - made.created >= timedelta(0)
        assert kept.at > datetime(2020, 1, 1, tzinfo=UTC)


def _refused(call: object, *kinds: type[ObeliskError]) -> str:
    """The code of the error that a call raises."""
    assert callable(call)
    with pytest.raises(kinds) as caught:
        call()
    return caught.value.code
