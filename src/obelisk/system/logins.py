"""What `docker login`, `podman login` and `skopeo login` have stored: names and passwords for registries.

    {"auths": {HOST: {"auth": base64 of NAME:PASSWORD}}, "credHelpers": {HOST: HELPER}, "credsStore": HELPER}

A helper is the program docker-credential-HELPER, which gets the host on its standard input.
"""

import json
import os
from base64 import b64decode
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from obelisk.errors import CommandError, InputError
from obelisk.system.command import MINIMAL_ENVIRONMENT, run


@dataclass(frozen=True, slots=True)
class Login:
    """A name and a password. `identity`: the password is a token that is exchanged for others, and goes to their maker alone."""

    name: str
    password: str = field(repr=False)
    identity: bool = False


def find(host: str, *, file: Path | None = None) -> Login | None:
    """The login for a registry, as `host` or `host:port`; None: there is none.

    Looked at are `file` alone where it is given, else $REGISTRY_AUTH_FILE, podman's and Docker's files, in this order.

    Raises:
        InputError: a file that is there is damaged, or does not exist although it is given.
    """
    for path in [file] if file is not None else _places():
        if path.exists() or file is not None:
            found = _login(_read(path), host, path)
            if found is not None:
                return found
    return None


def _places() -> list[Path]:
    environment = os.environ
    places = [Path(environment["REGISTRY_AUTH_FILE"])] if environment.get("REGISTRY_AUTH_FILE") else []
    if environment.get("XDG_RUNTIME_DIR"):
        places.append(Path(environment["XDG_RUNTIME_DIR"], "containers/auth.json"))
    docker = environment.get("DOCKER_CONFIG")
    return [*places, Path(docker, "config.json") if docker else Path.home() / ".docker/config.json"]


def _read(path: Path) -> Mapping[str, Any]:
    try:
        raw = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(
            f"{path} cannot be read: {error.strerror}", code="login-file", hint="name a file as `docker login` writes it"
        ) from error
    except ValueError as error:
        raise _damaged(path, str(error)) from error
    if not isinstance(raw, dict):
        raise _damaged(path, "it is no JSON object")
    return raw


def _login(raw: Mapping[str, Any], host: str, path: Path) -> Login | None:
    keys = [host, f"https://{host}", f"https://{host}/", f"http://{host}", f"https://{host}/v1/", f"https://{host}/v2/"]
    try:
        helper = raw.get("credHelpers", {}).get(host) or raw.get("credsStore")
        for key in keys:
            entry = raw.get("auths", {}).get(key)
            if entry and entry.get("identitytoken"):
                return Login("<token>", str(entry["identitytoken"]), identity=True)
            if entry and entry.get("auth"):
                name, colon, password = b64decode(entry["auth"], validate=True).decode().partition(":")
                if not colon:
                    raise _damaged(path, f"'auth' of {key} is not NAME:PASSWORD")
                return Login(name, password)
    except (AttributeError, TypeError, ValueError) as error:
        raise _damaged(path, str(error)) from error
    return _ask(str(helper), host) if helper else None


def _ask(helper: str, host: str) -> Login | None:
    environment = {**MINIMAL_ENVIRONMENT, **os.environ}
    try:
        said = json.loads(run([f"docker-credential-{helper}", "get"], env=environment, stdin=host.encode(), timeout_s=60).stdout)
        return Login(said["Username"], said["Secret"], identity=said["Username"] == "<token>")
    except CommandError:
        return None  # which is how a helper says that it has none
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"docker-credential-{helper} gives no name and password", code="login-helper", hint="log in again, or use --credentials FILE"
        ) from error


def _damaged(path: Path, why: str) -> InputError:
    return InputError(f"{path} is damaged: {why}", code="login-file", hint="log in again, or use --credentials FILE")
