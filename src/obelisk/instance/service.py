"""Keeps services: does, step by step, what `obelisk.model.rollout` says is to be done, and notes each step before and after it.

    PLACE/<name>/service.json     the value that is the truth about the service; written durably
                /lock             held by whoever works on it
    PLACE/lock                    held while a service comes or goes, so that no two have the same port

A command that is killed leaves the value of before or after a step, never anything else. The next command, or `tend`, which a timer runs,
makes of it what `recovered` says. Nothing runs between commands: connections are led by the kernel.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from obelisk.errors import InputError, ObeliskError, StateError
from obelisk.events import Note, Sink, task
from obelisk.instance import proving
from obelisk.instance.proving import Answers, Seen
from obelisk.instance.traffic import Traffic
from obelisk.model import rollout
from obelisk.model.canonical import canonical
from obelisk.model.rollout import Create, Forget, Healthy, Prove, Restore, Retire, Save, Shift, Step
from obelisk.model.service import ALL, SCHEMA, SERVICE_FILE, Iteration, Phase, Service, Terms, check_terms, parse_service
from obelisk.system.files import locked, sync_directory, write_durably
from obelisk.system.namespace import remove_tree


class Instances(Protocol):
    """What a service asks of an engine. All of it may be repeated, and be cut at any instant and then repeated."""

    def create(self, name: str, image: str, terms: Terms, *, state: tuple[str, str] | None) -> None:
        """Have an instance of the image of that id, and have it run. A new one begins with a copy of `state`: an instance, a snapshot.

        Raises:
            ObeliskError: it cannot be made or started.
        """

    def look(self, name: str, /) -> Seen:
        """How it is; not running when there is none."""

    def save(self, name: str, snapshot: str) -> None:
        """Take a snapshot of its state while it runs, in the place of one of the same name."""

    def forget(self, name: str, snapshot: str) -> None:
        """Have no such snapshot."""

    def restore(self, name: str, snapshot: str) -> None:
        """Set its state back to that of the snapshot, whether it runs or not; it may have to be started again by `create`."""

    def retire(self, name: str) -> None:
        """Have no such instance; programs in it are told to end, and have a moment for that."""


@dataclass(frozen=True, slots=True)
class Means:
    """By what services are kept: instances, the network, what a healthy instance answers, and the time, in seconds since 1970."""

    instances: Instances
    traffic: Traffic
    now: Callable[[], int]
    answers: Answers = proving.answers


class Services:
    """The services below a directory."""

    def __init__(self, place: Path, means: Means, sink: Sink) -> None:
        self._place = place
        self._means = means
        self._sink = sink

    def names(self) -> tuple[str, ...]:
        """All services, in the order of their names."""
        return tuple(sorted(file.parent.name for file in self._place.glob(f"*/{SERVICE_FILE}")))

    def look(self, name: str) -> Service:
        """What is known of a service, at once, whoever works on it.

        Raises:
            InputError: there is none.
            TrustError: what is stored is none.
        """
        file = self._place / name / SERVICE_FILE
        try:
            return parse_service(file.read_bytes(), file)
        except (FileNotFoundError, NotADirectoryError) as error:
            known = ", ".join(self.names())
            raise InputError(
                f"there is no service {name}",
                code="service-missing",
                hint=f"there are {known}" if known else f"obelisk service create {name}",
            ) from error

    def create(self, terms: Terms) -> Service:
        """A new service without an iteration: nothing is at its port yet.

        Raises:
            InputError: the name is taken, or the terms cannot be.
            StateError: the port is.
            MissingFeatureError: connections cannot be led here.
        """
        check_terms(terms)
        self._place.mkdir(parents=True, exist_ok=True)
        with locked(self._place / "lock"):
            for name in self.names():
                there = self.look(name)
                if name == terms.name:
                    raise InputError(
                        f"there is a service {name}", code="service-taken", hint=f"obelisk service retire {name}, or take another name"
                    )
                if there.terms.port == terms.port:
                    raise StateError(f"port {terms.port} is that of the service {name}", code="port-taken", hint="name another port")
            self._means.traffic.require(terms)
            (self._place / terms.name).mkdir(exist_ok=True)
            sync_directory(self._place)
            return self._store(Service(terms))

    def deploy(self, name: str, image: str, label: str, *, percent: int = ALL) -> Service:
        """Make an iteration of the image, prove it, and lead `percent` of new connections to it. One that was cut goes on.

        Raises:
            StateError: it did not become healthy: it took no connection, is removed, and its reason is noted.
        """
        with self._changing(name, image=image) as service:
            found = service.at_work
            if found is None or found.image != image or found.back is not Phase.LEAVING:
                self._means.traffic.require(service.terms)
                begun = self._store(rollout.deploy(self._run(service), image, label, percent=percent, now=self._means.now()))
                return self._judged(self._run(begun), begun.iterations[-1], f"{label} took no connection")
            return self._judged(self._run(service), found, f"{label} took no connection")

    def promote(self, name: str, *, percent: int = ALL) -> Service:
        """Lead more, or all, new connections to the canary, if it still is healthy.

        Raises:
            StateError: there is none; or it is not healthy, and has no share any more.
        """
        with self._changing(name) as service:
            begun = self._store(rollout.promote(self._run(service), percent=percent, now=self._means.now()))
            return self._judged(self._run(begun), begun.at_work, "the canary is withdrawn")

    def rollback(self, name: str, *, with_state: bool = False) -> Service:
        """Lead new connections to what they went to before.

        Raises:
            StateError: there is nothing to go back to; or it is not healthy, and everything stays as it is.
        """
        with self._changing(name) as service:
            begun = self._store(rollout.rollback(self._run(service), with_state=with_state, now=self._means.now()))
            return self._judged(self._run(begun), begun.at_work, "nothing was rolled back")

    def retire(self, name: str) -> None:
        """Remove a service with all its instances. Open connections end."""
        with self._changing(name) as service:
            self._end(self._store(rollout.retire(service)))

    def settle(self, name: str) -> Service:
        """What a service has come to. What a cut command left is undone or finished first, unless somebody works on it right now."""
        try:
            with self._changing(name) as left:
                return self._run(left)
        except StateError as error:
            if error.code != "service-busy":
                raise
            return self.look(name)

    def tend(self, name: str) -> Service:
        """Do what time has brought, and what others have left or broken: what the timer is for.

        Iterations whose time is up go; instances that serve and do not run are started; a canary that is not healthy has no share any more;
        connections are led as they are to be.
        """
        with self._changing(name) as left:
            service = self._run(left)
            for phase in (Phase.CURRENT, Phase.CANARY):
                found = service.standing(phase)
                if found is not None:
                    service = self._run(self._store(self._tended(service, found)))
            return service

    def open_connections(self, service: Service) -> dict[int, int]:
        """How many connections are open at each iteration that has instances, by its number."""
        there = [iteration for iteration in service.iterations if iteration.phase is not Phase.GONE]
        counted = self._means.traffic.open_connections([address for each in there for address in each.addresses])
        return {each.number: sum(counted.get(address, 0) for address in each.addresses) for each in there}

    # One command's work

    @contextmanager
    def _changing(self, name: str, *, image: str = "") -> Iterator[Service]:
        """The service as it is now, with what others left set right as a value; nobody else works on it during the block."""
        self.look(name)
        with self._alone(name):
            service = self.look(name)
            if service.retiring:
                self._end(service)
                raise InputError(
                    f"{name} was being retired, and now is gone", code="service-missing", hint=f"obelisk service create {name}"
                )
            try:
                yield self._noticed(self._store(rollout.recovered(service, image=image, now=self._means.now())))
            except KeyboardInterrupt:
                left = self.look(name)
                if not left.retiring:
                    self._run(self._store(rollout.recovered(left, now=self._means.now())))
                raise

    @contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        with ExitStack() as held:
            try:
                held.enter_context(locked(self._place / name / "lock", wait=False))
            except StateError as error:
                raise StateError(
                    f"another command works on the service {name}",
                    code="service-busy",
                    hint=f"obelisk service status {name} tells how far it is",
                ) from error
            except FileNotFoundError:
                self.look(name)  # it has just been retired, and this says so
                raise
            yield

    def _tended(self, service: Service, found: Iteration) -> Service:
        """The service after a look at an iteration that serves."""
        instances, now = self._means.instances, self._means.now()
        if any(not instances.look(instance).running for instance in found.instances):
            return rollout.lost(service, found.number, now=now)
        if found.phase is Phase.CANARY:
            fault = proving.fault(found.instances, service.terms, instances.look, self._means.answers)
            return rollout.withdrawn(service, found.number, fault, now=now) if fault else service
        return service

    def _noticed(self, service: Service) -> Service:
        """The service after time, and other programs, have had their way."""
        if service.applied is not None and not self._means.traffic.leads(service.terms, service.applied):
            service = replace(service, applied=None)
        ending = [address for each in service.iterations if each.phase is Phase.DRAINING for address in each.addresses]
        open_connections = self._means.traffic.open_connections(ending) if ending else {}
        return self._store(rollout.aged(service, open_connections, now=self._means.now()))

    def _run(self, service: Service) -> Service:
        """Do all that is to be done. What cannot be removed now is told, and stays to be removed."""
        stuck: set[Step] = set()
        while True:
            step = next((each for each in rollout.steps(service) if each not in stuck), None)
            if step is None:
                return service
            service = self._store(rollout.begun(service, step))
            try:
                healthy = self._do(service, step)
            except (ObeliskError, OSError) as error:
                after = rollout.failed(service, step, str(error), now=self._means.now())
                if after is not None:
                    service = self._store(after)
                elif isinstance(step, Retire | Forget):
                    stuck.add(step)
                    self._sink(Note(f"it is tried again later: {error}"))
                else:
                    raise
            else:
                service = self._store(rollout.ended(service, step, healthy=healthy, now=self._means.now()))

    def _do(self, service: Service, step: Step) -> Healthy | None:
        """The effect of a step."""
        instances = self._means.instances
        match step:
            case Create(number, instance, state):
                with task(self._sink, f"service/{instance}", f"Making {instance}"):
                    instances.create(instance, service.find(number).image, service.terms, state=state)
            case Prove(number):
                found = service.find(number)
                with task(self._sink, f"service/prove/{number}", f"Waiting until {found.label} is healthy"):
                    return proving.wait_until_healthy(found.instances, service.terms, instances.look, self._means.answers)
            case Save() | Forget() | Restore():
                self._keep_state(service, step)
            case Shift(shares):
                self._means.traffic.lead(service.terms, shares)
            case Retire(number, instance):
                self._remove(service.find(number), instance)
        return None

    def _remove(self, iteration: Iteration, instance: str) -> None:
        # What it was reached at when it was proven; before that, nobody was led to it.
        addresses = dict(zip(iteration.instances, iteration.addresses, strict=False))
        with task(self._sink, f"service/{instance}", f"Removing {instance}"):
            if instance in addresses:
                self._means.traffic.release(addresses[instance], open_too=False)
            self._means.instances.retire(instance)
            if instance in addresses:
                self._means.traffic.release(addresses[instance], open_too=True)

    def _keep_state(self, service: Service, step: Save | Forget | Restore) -> None:
        iteration = service.find(step.number)
        about, do = {
            Save: ("Saving the state of", self._means.instances.save),
            Forget: ("Forgetting a state of", self._means.instances.forget),
            Restore: ("Setting back the state of", self._means.instances.restore),
        }[type(step)]
        with task(self._sink, f"service/{step.name}", f"{about} {iteration.label}"):
            for instance in iteration.instances:
                do(instance, step.name)

    def _judged(self, service: Service, about: Iteration | None, otherwise: str) -> Service:
        """The service, unless what was done about that iteration has failed."""
        if about is None:
            return service
        found = next((each for each in service.iterations if each.number == about.number), None)
        if found is None or found.phase not in {Phase.CURRENT, Phase.CANARY}:
            reason = found.reason if found is not None else ""
            raise StateError(
                f"{otherwise}: {reason}", code="service-unhealthy", hint=f"obelisk service status {service.terms.name} keeps the reason"
            )
        return service

    def _end(self, service: Service) -> None:
        """Finish what `retire` began.

        Raises:
            StateError: an instance cannot be removed.
        """
        service = self._run(service)
        left = [instance for iteration in service.iterations for instance in iteration.made]
        if left:
            raise StateError(f"{left[0]} could not be removed", code="service-instances", hint="see to that, and retire the service again")
        place = self._place / service.terms.name
        (place / SERVICE_FILE).unlink()
        sync_directory(place)
        remove_tree(place)

    def _store(self, service: Service) -> Service:
        file = self._place / service.terms.name / SERVICE_FILE
        data = canonical({"schema": SCHEMA, **service.to_json()})
        if not file.exists() or file.read_bytes() != data:
            write_durably(file, data)
        return service
