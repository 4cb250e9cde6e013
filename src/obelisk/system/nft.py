"""nft(8): tables of the packet filter, changed in one transaction. All of it is about the network namespace of this process."""

import json

from obelisk.errors import CommandError, MissingFeatureError, StateError
from obelisk.system.command import find_program, run

PROGRAM = "nft"
# It ends with whoever started it: what it would still do after that could undo what the next one does.
_BOUND = ("setpriv", "--pdeathsig", "KILL", "--", PROGRAM)
_TIMEOUT_S = 60


def require() -> None:
    """Find out whether rules can be loaded at all.

    Raises:
        MissingFeatureError: nft is not installed, or the kernel has no packet filter.
        StateError: this user may not.
    """
    _find()
    try:
        run([PROGRAM, "list", "tables"], timeout_s=_TIMEOUT_S)
    except CommandError as error:
        if "not permitted" in error.output:
            raise StateError("only root may lead connections elsewhere", code="service-root", hint="use sudo") from error
        raise MissingFeatureError(
            f"this kernel has no packet filter: {error.output.strip()}", code="kernel-nftables", hint="load nf_tables"
        ) from error


def load(script: str) -> None:
    """Do what a script says, all of it at one instant or, when any of it is wrong, none.

    Raises:
        CommandError: nft or the kernel refuses it.
        MissingFeatureError: nft is not installed.
    """
    _find()
    run([*_BOUND, "-f", "-"], stdin=script.encode(), timeout_s=_TIMEOUT_S, show=PROGRAM)


def elements(table: str, name: str) -> dict[int, str] | None:
    """A map of numbers to addresses and ports in a table of the family ip, values as `address:port`; None where there is no such map.

    Raises:
        MissingFeatureError: nft is not installed.
    """
    try:
        said = run([PROGRAM, "--json", "list", "map", "ip", table, name], timeout_s=_TIMEOUT_S).stdout
    except CommandError:
        return None
    found = next(entry["map"] for entry in json.loads(said)["nftables"] if "map" in entry)
    return {int(key): "{}:{}".format(*value["concat"]) for key, value in found.get("elem", ())}


def _find() -> None:
    if find_program(PROGRAM) is None:
        raise MissingFeatureError("nft is not installed", code="program-missing", hint="install the package nftables")
