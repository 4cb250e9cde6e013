"""What an application image says about itself: how it starts, where it writes, and which powers it asks for. Sealed with the image."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from obelisk.errors import InputError, TrustError
from obelisk.model import policy as policies
from obelisk.model.canonical import Json, canonical
from obelisk.model.policy import Policy

SCHEMA = "obelisk.application/1"
WRITABLE = ("/var/", "/srv/", "/opt/", "/run/", "/tmp/", "/home/app/")  # noqa: S108 - paths inside the sandbox
"""Where an application may have directories of its own; the rest is its image, or the kernel's."""
CREDENTIALS = "/run/credentials"
"""Where an application finds its secrets."""

# What every application has to show before it is proven.
SOUND = "every block of the root is what its hash tree says"
CONFINED = "starts in its sandbox"


@dataclass(frozen=True, slots=True)
class Service:
    """What an application says of itself as a service.

    `sockets`: systemd listens at its ports and hands the sockets to it, one a port, in ascending order. `health` is an address that a
    healthy one answers with a status below 400; empty for none. It is healthy when it answers, and has stayed up for `steady_s`.
    It gets `health_s` for the answer and `stop_s` to end when it is asked to, both in seconds.
    """

    sockets: bool = False
    health: str = ""
    health_s: int = 60
    steady_s: int = 5
    stop_s: int = 30

    def to_json(self) -> Json:
        """The service as plain data."""
        return {each.name: getattr(self, each.name) for each in fields(self)}


@dataclass(frozen=True, slots=True)
class Application:
    """How an application starts. Paths are absolute, inside the image.

    `command` is followed by the words that a person gives. `scratch` are directories in memory, new at each start; `data` are those that
    outlive it and the image. Everything else of the image is read-only. `credentials` are names of secrets that the operator provides.
    Without `service` it is a command that people start.
    """

    command: tuple[str, ...]
    environment: tuple[tuple[str, str], ...] = ()
    directory: str = "/"
    scratch: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
    policy: Policy = field(default_factory=Policy)
    credentials: tuple[str, ...] = ()
    service: Service | None = None

    def to_json(self) -> Json:
        """The application as plain data, ready for `canonical`."""
        return {
            "schema": SCHEMA,
            "command": list(self.command),
            "environment": dict(self.environment),
            "directory": self.directory,
            "scratch": sorted(self.scratch),
            "data": sorted(self.data),
            "credentials": sorted(self.credentials),
            "policy": self.policy.to_json(),
            **({} if self.service is None else {"service": self.service.to_json()}),
        }

    def to_bytes(self) -> bytes:
        """The application as it is stored."""
        return canonical(self.to_json())


def parse_application(data: bytes) -> Application:
    """The application that the bytes of an image describe.

    Raises:
        TrustError: they describe none that this version can run.
    """
    try:
        raw: Mapping[str, Any] = json.loads(data)
        if raw["schema"] != SCHEMA:
            raise TrustError(
                f"the application has schema {raw['schema']!r}, this version reads {SCHEMA!r}",
                code="application-schema",
                hint="use the version of obelisk that made the image, or build it again",
            )
        return Application(
            command=tuple(raw["command"]),
            environment=tuple(sorted(raw["environment"].items())),
            directory=raw["directory"],
            scratch=tuple(raw["scratch"]),
            data=tuple(raw["data"]),
            policy=policies.from_json(raw["policy"]),
            credentials=tuple(raw.get("credentials", ())),
            service=Service(**raw["service"]) if "service" in raw else None,
        )
    except InputError as error:
        raise TrustError(f"the application's policy: {error.message}", code=f"application-{error.code}", hint=error.hint) from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise TrustError(f"the application is damaged: {error}", code="application-damaged", hint="run `obelisk verify`") from error


def effective(asked: Policy, operator: Mapping[str, Any]) -> Policy:
    """What holds on this machine: what the image asks for, narrowed by `allow` of the operator's file, then widened by `override`.

    Each of the two is a policy as `Policy.to_json` writes it; without `allow`, the image gets what it asks for.

    Raises:
        InputError: the file says something that does not exist.
    """
    if unknown := operator.keys() - {"allow", "override"}:
        raise InputError(f"there is no table {', '.join(sorted(unknown))}", code="policy-value", hint="there are [allow] and [override]")
    held = asked
    if "allow" in operator:
        held = policies.meet(held, policies.from_json(operator["allow"]))
    if "override" in operator:
        told = operator["override"]
        # A limit of which nothing is said stays; one of the defaults would widen it.
        limits = {**asdict(held.limits), **told.get("limits", {})}
        held = policies.join(held, policies.from_json({**told, "limits": limits}))
    return held
