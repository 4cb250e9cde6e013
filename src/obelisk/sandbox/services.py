"""Services of this machine that applications are granted by name: what `obelisk service` leads to instances, and installed applications."""

from pathlib import Path

from obelisk.errors import StateError
from obelisk.model.application import parse_application
from obelisk.model.policy import Contact, Listen, Policy
from obelisk.model.service import SERVICE_FILE, parse_service
from obelisk.sandbox.installed import parse_state


def ports(policy: Policy, services: Path, installed: Path, *, is_root: bool) -> tuple[int, ...]:
    """The ports of the services that are granted, in order. `services` has those of instances, `installed` the applications.

    Raises:
        StateError: there is no such service, or two, or the application is to listen at its port itself.
    """
    found = tuple(sorted({_port_of(power.name, services, installed, is_root=is_root) for power in policy.of(Contact)}))
    if taken := {*found} & {power.port for power in policy.of(Listen)}:
        raise StateError(
            f"port {min(taken)} is that of a service which is granted by name, and it is to listen there itself",
            code="port-taken",
            hint="let one of them have another port",
        )
    return found


def without_missing(policy: Policy, services: Path, installed: Path) -> Policy:
    """The policy without services that are not there: for trials, which have nobody to talk to."""
    there = {
        power
        for power in policy.of(Contact)
        if _of_instances(services / power.name / SERVICE_FILE) or _of_application(installed / power.name)
    }
    return policy.with_powers(power for power in policy.powers if not isinstance(power, Contact) or power in there)


def _port_of(name: str, services: Path, installed: Path, *, is_root: bool) -> int:
    found = [port for port in (_of_instances(services / name / SERVICE_FILE), _of_application(installed / name)) if port]
    if len(found) == 1:
        return found[0]
    if found:
        raise StateError(f"there are two services {name}, of instances and of an application", code="service-twice", hint="rename one")
    known = "" if is_root else "; those of instances are root's, for root to look at"
    raise StateError(
        f"the service {name} is granted, and there is none with a port of its own on this machine{known}",
        code="service-missing",
        hint=f"obelisk service list; obelisk app list; or leave service:{name} out",
    )


def _of_instances(file: Path) -> int:
    try:
        return parse_service(file.read_bytes(), file).terms.port
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return 0


def _of_application(place: Path) -> int:
    """The port of one that is installed as a service and listens at a single one; else 0."""
    try:
        current = parse_state((place / "state.json").read_bytes()).current
        app = parse_application((place / "images" / current / "application.json").read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return 0
    listens = [power.port for power in app.policy.of(Listen)] if app.service is not None else []
    return listens[0] if len(listens) == 1 else 0
