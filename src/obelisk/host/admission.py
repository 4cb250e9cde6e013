"""Whether an image may be installed on a host now, and into which slot: a decision over facts, with a reason for each refusal."""

from dataclasses import dataclass

from obelisk.errors import InputError, ObeliskError, StateError, TrustError
from obelisk.model.host import PARTIAL, Entry, Progress, Slot
from obelisk.model.image import Manifest, PartKind
from obelisk.model.state import FIRST, Encryption
from obelisk.model.version import compare

ARCHITECTURE = "amd64"


@dataclass(frozen=True, slots=True)
class Facts:
    """What a host knows about itself. `booted` is the slot that it runs from, `good` are labels of images that were healthy here.

    `failed` and `unfit` are ids of images that fell back here, and whose rehearsal failed here. `state_version` is that of its state,
    `encryption` what its volume has.
    """

    name: str
    version: str
    root_hash: str
    slots: tuple[Slot, ...]
    booted: Slot
    entries: tuple[Entry, ...]
    progress: Progress
    failed: frozenset[str]
    good: frozenset[str]
    state_version: int = FIRST
    unfit: frozenset[str] = frozenset()
    encryption: Encryption = Encryption.NONE

    @property
    def label(self) -> str:
        """`name_version` of the running image."""
        return f"{self.name}_{self.version}"

    @property
    def on_trial(self) -> bool:
        """The running image is not blessed yet."""
        return any(entry.label == self.label and entry.counted for entry in self.entries)


def refusal(facts: Facts, manifest: Manifest, *, retry: bool) -> ObeliskError | None:  # noqa: PLR0911 - one return a reason
    """Why the image must not be installed here; None when it may be."""
    if manifest.architecture != ARCHITECTURE:
        return InputError(f"the image is for {manifest.architecture}, this machine is {ARCHITECTURE}", code="architecture")
    if manifest.is_application:
        return InputError(f"{manifest.label} is an application, and no system to run", code="application", hint="obelisk app install")
    if manifest.name != facts.name:
        return InputError(
            f"this host runs {facts.name}, the image is {manifest.name}",
            code="other-image",
            hint="another image takes another disk: `obelisk install`",
        )
    if facts.on_trial:
        return StateError(
            f"{facts.label} is still on trial: until it is blessed, its fallback must stay",
            code="on-trial",
            hint="wait until `obelisk host status` says that it is healthy, or `obelisk host rollback`",
        )
    order = compare(manifest.version, facts.version)
    if order == 0:
        return InputError(
            f"the image has the version of the running one ({facts.version}) and is another",
            code="same-version",
            hint="raise `version` in the spec and build again",
        )
    if order < 0:
        return InputError(
            f"version {manifest.version} is older than the running {facts.version}",
            code="downgrade",
            hint="`obelisk host rollback` goes back; anything else is a new version",
        )
    if (reason := _state_refusal(facts, manifest)) is not None:
        return reason
    if manifest.id in facts.failed and not retry:
        return StateError(
            f"{manifest.label} was tried on this host and fell back",
            code="failed-before",
            hint=f"`obelisk host history` says why; name it to try it again: --retry {manifest.version}",
        )
    if manifest.id in facts.unfit and not retry:
        return StateError(
            f"{manifest.label} failed its rehearsal on this host",
            code="unfit-before",
            hint=f"`obelisk host history` says why; name it to rehearse or to install it all the same: --retry {manifest.version}",
        )
    return None


def _state_refusal(facts: Facts, manifest: Manifest) -> ObeliskError | None:
    """Why this host's state is none that the image can use."""
    if manifest.state_version < facts.state_version:
        return StateError(
            f"the image works with state of version {manifest.state_version}, this host's is of version {facts.state_version}",
            code="state-older",
            hint="say that version under [state] of its spec, and build it again as a newer one",
        )
    if manifest.state_oldest > facts.state_version:
        return StateError(
            f"the image migrates state of version {manifest.state_oldest} and later, this host's is of version {facts.state_version}",
            code="state-gap",
            hint="upgrade to an image between first, whose migrations begin there",
        )
    if manifest.state_encryption is not facts.encryption:
        return StateError(
            f"the image has state with encryption = {manifest.state_encryption}, this host's has encryption = {facts.encryption}",
            code="state-encryption",
            hint="say the same under [state] of its spec; a host that is to change it is installed anew",
        )
    return None


def choose_slot(facts: Facts, manifest: Manifest) -> Slot:
    """The slot to write: never the booted one; one that holds nothing of use before one that holds a good image.

    Raises:
        StateError: there is none, or the image fits into none.
    """
    others = [slot for slot in facts.slots if slot.root.number != facts.booted.root.number]
    if not others:
        raise StateError("this disk has one slot only", code="slot-missing", hint="restart: the next boot completes the disk")
    wanted = {kind: manifest.part(kind).size_bytes for kind in (PartKind.ROOT, PartKind.VERITY)}
    fitting = [s for s in others if s.root.size_bytes >= wanted[PartKind.ROOT] and s.tree.size_bytes >= wanted[PartKind.VERITY]]
    if not fitting:
        most = max(slot.root.size_bytes for slot in others)
        raise StateError(
            f"the image's root has {wanted[PartKind.ROOT] >> 20} MiB, a slot of this host {most >> 20}",
            code="slot-small",
            hint="make the image smaller, or install it anew on this machine with a larger `size_budget`",
        )

    def use(slot: Slot) -> tuple[bool, bool, bool]:
        return slot.label in facts.good, slot.label is not None, slot.root.label != PARTIAL + manifest.label

    # Of two good ones, the older goes.
    fitting.sort(key=use)
    best = [slot for slot in fitting if use(slot) == use(fitting[0])]
    chosen = best[0]
    for slot in best[1:]:
        if compare(_version(slot), _version(chosen)) < 0:
            chosen = slot
    return chosen


def _version(slot: Slot) -> str:
    return (slot.label or "").rpartition("_")[2]


def require_trusted(manifest: Manifest, *, secure_boot: bool, signed: bool) -> None:
    """Refuse a UKI that the firmware would refuse.

    A loader whose newest entry is refused starts another without a reset, and what then looks like a success of the refused one bricks
    machines. So it must not come so far.

    Raises:
        TrustError: Secure Boot is on and no certificate of the firmware signed it.
    """
    if secure_boot and not signed:
        raise TrustError(
            f"{manifest.label} is signed by a key that this machine's firmware does not trust",
            code="uki-unsigned",
            hint="build it with the keys of this host's image, or enrol its certificate in the firmware first",
        )
