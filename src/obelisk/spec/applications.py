"""The part of a spec that only applications have, and what they have nothing of."""

from collections.abc import Iterator

from obelisk.model.application import CREDENTIALS, WRITABLE, Application, Service
from obelisk.model.policy import (
    FLAGS,
    LEAST_DATA_BYTES,
    LISTS,
    NO_LIMIT,
    Connect,
    Contact,
    Layer,
    Limits,
    Listen,
    Policy,
    Power,
    Reach,
    policy,
    power_of,
    powers_of,
)
from obelisk.model.spec import Boot, Hardening, Host, Role, Services, Spec, State, Upgrade
from obelisk.spec.problems import Findings
from obelisk.spec.reader import Table, seconds, size


def application(root: Table, spec: Spec, findings: Findings) -> Application | None:
    """What `app`, `grants` and `limits` say; None for a machine, which must not have them."""
    app = root.table("app")
    command = app.texts("command")
    granted = _policy(root, findings)
    if spec.role is not Role.APP:
        said = {
            "app": bool(command) or spec.image is not None or spec.bare,
            "grants": bool(granted.powers or granted.may_miss),
            "limits": granted.limits != Limits(),
        }
        for key in (key for key, present in said.items() if present):
            findings.report((key,), f"`{key}` goes with the role `app` only", code="spec-conflict", hint='role = "app"')
        return None
    if spec.image is not None or spec.bare:
        _check_root(root, spec, findings)
    if not command and spec.image is None and not app.find("image", str):
        findings.report(("role",), "an app needs a command", code="spec-missing", hint='[app], command = ["/usr/bin/git"]')
    elif command and not command[0].startswith("/"):
        findings.report(app.at("command", 0), f"'{command[0]}' is no absolute path", code="spec-value", hint=f"/usr/bin/{command[0]}")
    for key in _machine_keys(root, spec):
        findings.report((key,), f"`{key}` is for machines, and an app is none", code="spec-conflict", hint="leave it out")
    _check_places(app, findings)
    _check_bound(root.table("limits"), app, findings)
    environment = tuple(sorted((name, value) for name, _, value in (each.partition("=") for each in app.texts("environment"))))
    return Application(
        command,
        environment,
        app.find("directory", str) or "/",
        app.texts("scratch"),
        app.texts("data"),
        granted,
        app.texts("credentials"),
        _service(app, granted, findings),
    )


def _service(app: Table, granted: Policy, findings: Findings) -> Service | None:
    said = Service(
        sockets=app.get("sockets", bool),
        health=app.find("health", str) or "",
        health_s=seconds(app.get("health_timeout", str)),
        steady_s=seconds(app.get("steady", str)),
        stop_s=seconds(app.get("stop_timeout", str)),
    )
    if not app.get("service", bool):
        if said != Service():
            findings.report(
                ("app",),
                "`sockets`, `health`, `health_timeout`, `steady` and `stop_timeout` are about a service",
                code="spec-conflict",
                hint="service = true",
            )
        return None
    ports = {power.port for power in granted.of(Listen)}
    if said.sockets and (not ports or granted.of((Connect, Reach, Contact))):
        message = "a service that is handed its sockets has `listen` among its grants, and no `connect`"
        findings.report(app.at("sockets"), message, code="spec-conflict", hint="[grants], listen = [8080]")
    if said.health and int(said.health.removeprefix("http://localhost:").partition("/")[0]) not in ports:
        message = "`app.health` asks at a port at which it does not listen"
        findings.report(app.at("health"), message, code="spec-conflict", hint="grants.listen names its ports")
    return said


def _check_root(root: Table, spec: Spec, findings: Findings) -> None:
    """What makes no sense where the root has no packages, or has two origins."""
    key = "image" if spec.image is not None else "root"
    said = {
        "packages": bool(spec.packages),
        "sources": bool(spec.sources),
        "recommends": spec.recommends,
        "tree": spec.bare and root.find("tree", str) is not None,
        "app": spec.image is not None and spec.bare,
    }
    for other in (other for other, present in said.items() if present):
        message = (
            f"`{other}` does not go with `app.{key}`, which is the whole root" if other != "app" else "`app.image` and `app.root` are two"
        )
        findings.report((other,), message, code="spec-conflict", hint="keep one of them")


def _check_places(app: Table, findings: Findings) -> None:
    for key in ("scratch", "data"):
        for number, path in enumerate(app.texts(key)):
            if not path.startswith(WRITABLE) or f"{path}/".startswith(f"{CREDENTIALS}/"):
                message = f"'{path}' cannot be written: it belongs to the image or to the kernel"
                findings.report(app.at(key, number), message, code="spec-value", hint=f"it can lie below {', '.join(WRITABLE)}")
    for number, path in enumerate(app.texts("data")):
        if path in app.texts("scratch"):
            findings.report(
                app.at("data", number), f"'{path}' is also listed in app.scratch", code="spec-conflict", hint="keep one of them"
            )


def _check_bound(limits: Table, app: Table, findings: Findings) -> None:
    said, least = limits.find("data", str), f"{LEAST_DATA_BYTES >> 20}M"
    if said and size(said) < LEAST_DATA_BYTES:
        findings.report(limits.at("data"), f"a volume of {said} has no room", code="spec-value", hint=f"at least {least}, or leave it out")
    if said and not app.texts("data"):
        findings.report(limits.at("data"), "it keeps no data that this could bound", code="spec-conflict", hint="[app], data = [...]")


def _policy(root: Table, findings: Findings) -> Policy:
    grants, limits = root.table("grants"), root.table("limits")
    return policy(
        _powers(grants, findings),
        Limits(
            memory_bytes=size(limits.get("memory", str)),
            processes=limits.get("processes", int),
            open_files=limits.get("open_files", int),
            scratch_bytes=size(limits.get("scratch", str)),
            total_memory_bytes=size(total) if (total := limits.find("total_memory", str)) else NO_LIMIT,
            cpu_percent=limits.find("cpu_percent", int) or NO_LIMIT,
            data_bytes=size(kept) if (kept := limits.find("data", str)) else NO_LIMIT,
        ),
        (Layer(layer) for layer in grants.texts("may_miss")),
    )


def _powers(grants: Table, findings: Findings) -> Iterator[Power]:
    for key in LISTS:
        for number, value in enumerate(grants.get(key, list)):
            try:
                yield power_of(key, value)
            except ValueError as error:
                findings.report(grants.at(key, number), str(error), code="spec-value", hint="docs/sandbox.md tells what can be granted")
    yield from powers_of({key: grants.get(key, bool) for key in FLAGS})


def _machine_keys(root: Table, spec: Spec) -> Iterator[str]:
    """Keys that say something about a machine."""
    said = {
        "boot": spec.boot != Boot(),
        "services": spec.services != Services(),
        "users": bool(spec.users),
        "groups": bool(spec.groups),
        "health": bool(spec.health),
        "upgrade": spec.upgrade != Upgrade(),
        "host": spec.host != Host(),
        "state": spec.state != State(),
        "hardening": spec.hardening != Hardening(),
        "hostname": root.find("hostname", str) is not None,
    }
    return (key for key, present in said.items() if present)
