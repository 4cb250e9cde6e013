"""`obelisk service create|deploy|promote|rollback|status|tend|retire|list`: names behind which iterations replace each other."""

import os
import re
import sys
import time
from argparse import Namespace
from pathlib import Path

from obelisk.cli.instances import engine
from obelisk.cli.places import find_machine, open_store
from obelisk.cli.publisher import duration
from obelisk.cli.terminal import answer, reporting
from obelisk.errors import InputError, ObeliskError, StateError
from obelisk.events import Sink
from obelisk.instance.lodging import Lodging
from obelisk.instance.service import Means, Services
from obelisk.instance.traffic import PacketFilter
from obelisk.model.instance import parse_size
from obelisk.model.service import ALL, SERVICES, Iteration, Phase, Service, Terms
from obelisk.store import StoredImage

_PERCENT = re.compile(r"([0-9]{1,3})%?")
_PORTS = re.compile(r"([0-9]{1,5})(?::([0-9]{1,5}))?")
_MINUTE_S, _HOUR_S = 60, 3600


def service(arguments: Namespace) -> int:
    """Run one of the commands about services."""
    if os.geteuid() != 0:
        raise StateError("only root may lead connections elsewhere", code="service-root", hint="use sudo")
    with reporting(json_wanted=arguments.json) as sink:
        return _ACTIONS[arguments.action](arguments, _kept(arguments, sink))


def _create(arguments: Namespace, services: Services) -> int:
    image = _image(arguments) if arguments.image else None
    made = services.create(_terms(arguments))
    if image is not None:
        made = services.deploy(arguments.name, image.id, image.manifest.label)
    return _told(arguments, services, made, f"port {made.terms.port} of this machine is that of {arguments.name}")


def _deploy(arguments: Namespace, services: Services) -> int:
    image = _image(arguments)
    made = services.deploy(arguments.name, image.id, image.manifest.label, percent=_percent(arguments.canary, "--canary"))
    return _told(arguments, services, made, f"{image.manifest.label} takes new connections")


def _promote(arguments: Namespace, services: Services) -> int:
    return _told(
        arguments, services, services.promote(arguments.name, percent=_percent(arguments.to, "--to")), "the canary has its new share"
    )


def _rollback(arguments: Namespace, services: Services) -> int:
    return _told(arguments, services, services.rollback(arguments.name, with_state=arguments.with_state), "rolled back")


def _status(arguments: Namespace, services: Services) -> int:
    return _told(arguments, services, services.settle(arguments.name), "")


def _list(arguments: Namespace, services: Services) -> int:
    found = [services.look(name) for name in services.names()]
    lines = [f"{each.terms.name:<20} {each.terms.port:>5}  {_served(each)}" for each in found]
    answer("\n".join(lines) or "there is no service", json_wanted=arguments.json, services=[each.to_json() for each in found])
    return 0


def _tend(arguments: Namespace, services: Services) -> int:
    every_s = int(duration(arguments.every, "--every").total_seconds()) if arguments.every else 0
    while True:
        names = (arguments.name,) if arguments.name else services.names()
        troubles = [error for name in names if (error := _trouble(services, name, alone=bool(arguments.name))) is not None]
        if not every_s:
            break
        for error in troubles:
            print(f"obelisk: {error.message}", file=sys.stderr)
        time.sleep(every_s)
    if troubles:
        raise troubles[0]
    answer("", json_wanted=arguments.json, tended=list(names))
    return 0


def _trouble(services: Services, name: str, *, alone: bool) -> ObeliskError | None:
    """Tend one; what kept from it. What somebody else's command does is no trouble, and one service's trouble is not another's."""
    try:
        services.tend(name)
    except ObeliskError as error:
        if error.code == "service-busy" and not alone:
            return None
        return error
    return None


def _retire(arguments: Namespace, services: Services) -> int:
    services.retire(arguments.name)
    answer(f"{arguments.name} is retired", json_wanted=arguments.json, retired=arguments.name)
    return 0


def _kept(arguments: Namespace, sink: Sink) -> Services:
    """The services of this machine, with instances by the embedded engine."""
    place = Path(os.environ.get("OBELISK_SERVICES") or SERVICES).absolute()
    return Services(place, Means(Lodging(engine(arguments, sink)), PacketFilter(), lambda: int(time.time())), sink)


def _image(arguments: Namespace) -> StoredImage:
    return find_machine(open_store(arguments), arguments.image)


def _terms(arguments: Namespace) -> Terms:
    ports = _PORTS.fullmatch(arguments.port)
    if ports is None:
        raise InputError(f"{arguments.port!r} is no port", code="port", hint="for example --port 8080, or --port 8080:80")
    return Terms(
        arguments.name,
        int(ports[1]),
        int(ports[2] or ports[1]),
        instances=arguments.instances,
        memory_bytes=parse_size(arguments.memory),
        cpus=arguments.cpus,
        state_bytes=parse_size(arguments.state),
        carries=arguments.carry_state,
        check=arguments.check,
        health_s=_seconds(arguments.health, "--health"),
        keep_s=_seconds(arguments.keep, "--keep"),
        drain_s=_seconds(arguments.drain, "--drain"),
    )


def _seconds(text: str, option: str) -> int:
    return int(duration(text, option).total_seconds())


def _percent(text: str | None, option: str) -> int:
    if text is None:
        return ALL
    found = _PERCENT.fullmatch(text)
    if found is None:
        raise InputError(f"{option}: {text!r} is no share", code="share-invalid", hint="for example 10%")
    return int(found[1])


def _told(arguments: Namespace, services: Services, service: Service, said: str) -> int:
    open_connections = services.open_connections(service)
    now = int(time.time())
    lines = [said] if said else []
    lines += [f"{service.terms.name}: port {service.terms.port}, to port {service.terms.guest_port} of instances; {_served(service)}"]
    lines += [_line(service, each, open_connections.get(each.number, 0), now) for each in service.iterations]
    counted = {str(number): count for number, count in open_connections.items()}
    answer("\n".join(lines), json_wanted=arguments.json, service=service.to_json(), open_connections=counted)
    return 0


def _served(service: Service) -> str:
    current, canary = service.standing(Phase.CURRENT), service.standing(Phase.CANARY)
    if current is None:
        return "nothing is deployed"
    return f"{current.label} serves" + (f", {canary.label} {canary.share} % of it" if canary is not None else "")


def _line(service: Service, iteration: Iteration, count: int, now: int) -> str:
    shares = {share.address: share.percent for share in service.applied or ()}
    share = sum(shares.get(address, 0) for address in iteration.addresses) if iteration.phase is not Phase.GONE else 0
    words = f"  {iteration.number:>4}  {iteration.label:<24} {iteration.phase.value:<9}"
    words += f" {share:>3} %  {count:>5} open" if iteration.phase is not Phase.GONE else ""
    if iteration.phase in {Phase.KEPT, Phase.DRAINING}:
        words += f"  for {_time(max(iteration.until - now, 0))} more"
    return words + ("  " + " ".join(iteration.reason.split()) if iteration.reason else "")


def _time(seconds: int) -> str:
    if seconds < _MINUTE_S:
        return f"{seconds} s"
    return f"{seconds // _MINUTE_S} min" if seconds < _HOUR_S else f"{seconds // _HOUR_S} h {seconds % _HOUR_S // _MINUTE_S} min"


_ACTIONS = {
    "create": _create,
    "deploy": _deploy,
    "promote": _promote,
    "rollback": _rollback,
    "status": _status,
    "list": _list,
    "tend": _tend,
    "retire": _retire,
}
