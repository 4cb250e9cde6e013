"""The words of the command line. Commands are imported only when they run, so that `--help` answers at once."""

import argparse
import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

from obelisk import __version__
from obelisk.cli.grammar import IMAGE, JSON, Commands, Parsers, add_actions
from obelisk.errors import ObeliskError

_IMAGE_ON_HOST = "with --channel the name of an application; else a directory with the image of one"
_REPO = "directory of a repository, or HOST:PATH, rsync://… or rclone:REMOTE:PATH (default: $OBELISK_REPO, or ./repo)"
_EXPIRE = "for how long a role's metadata is signed, such as timestamp=7d; may be repeated"
_EDGES = "from what to make ready-made upgrades: previous, the last N, versions (@VERSION), none (default: previous)"
_MIRRORS = "with --channel: the repository's address, or its directory; may be repeated (default: what it follows, or the running image)"
_ROOT = "with --channel: the repository's metadata/1.root.json, with which trust begins (default: what it follows, or the running image)"

_EPILOG = """\
from one file to a running machine:
  obelisk new shop --role server     write shop/obelisk.toml and what it refers to
  obelisk lock shop                  pin every package by version and SHA-256
  obelisk build shop                 assemble, seal and sign the image
  obelisk test shop                  prove it in a VM and sign the proof
  obelisk run shop --port 8080:80    look at it in a VM

and to the hosts:
  obelisk keys init --root /media/stick                                     the keys that sign releases
  obelisk release shop --to repo --channel testing --root /media/stick      make it available
  obelisk promote 1 --from testing --to stable                              the same bits, for more hosts
  obelisk repo serve repo                                                   try it out; any web server will do

The store is at $OBELISK_STORE (default ~/.local/share/obelisk), keys at $OBELISK_KEYS (default ~/.config/obelisk/keys).
"""


_HOST_EPILOG = """\
on this machine:
  obelisk host status                what runs here, and what it would fall back to
  obelisk host upgrade stable        what the channel has, installed beside the running image
  obelisk host upgrade /mnt/shop-2   the same from a directory with an image
  obelisk host rollback              go back to the one before
  obelisk install shop /dev/sdb --erase sdb   the running image onto another disk
"""


@dataclass(frozen=True, slots=True)
class _Command:
    """One command: the function of `module` that runs it, and how it is explained."""

    module: str
    summary: str
    example: str


_COMMANDS = {
    "new": _Command("making", "write a new spec", "obelisk new shop --role server"),
    "lock": _Command("making", "pin every package of a spec", "obelisk lock shop --update nginx"),
    "build": _Command("making", "build the image of a spec", "obelisk build shop --reproduce"),
    "keys": _Command("making", "make or show the keys that sign images and releases", "obelisk keys init --root /media/stick"),
    "test": _Command("proving", "boot an image in a VM, try it, sign a proof", "obelisk test shop --junit report.xml"),
    "run": _Command("running", "boot an image in a VM to look at it", "obelisk run shop --port 8080:80"),
    "images": _Command("showing", "list the images in the store", "obelisk images --json"),
    "show": _Command("showing", "tell what an image is and holds", "obelisk show shop"),
    "diff": _Command("showing", "tell two images apart", "obelisk diff repo@stable shop@2"),
    "release": _Command("releasing", "make a proven image available in a channel", "obelisk release shop --to repo --channel testing"),
    "promote": _Command("releasing", "make a release of one channel available in another", "obelisk promote 12 --from testing --to stable"),
    "withdraw": _Command("releasing", "take a release back", 'obelisk withdraw 12 --why "loses mail" --hosts back'),
    "retire": _Command("releasing", "discontinue releases that nothing needs", "obelisk retire --keep 3 --older-than 90d"),
    "repo": _Command("releasing", "look after a repository of releases", "obelisk repo verify repo"),
    "export": _Command("showing", "write an image to a file", "obelisk export shop --format qcow2 --output shop.qcow2"),
    "push": _Command(
        "registry",
        "send an image, its proofs and bills of materials to an OCI registry",
        """obelisk push shop localhost:5000/shop:1
         obelisk push shop@2 registry.example.org/os/shop --credentials login.json""",
    ),
    "pull": _Command(
        "registry",
        "fetch an image and its proofs from an OCI registry",
        """obelisk pull localhost:5000/shop:1
         obelisk pull registry.example.org/os/shop:2 --tester tester.pub""",
    ),
    "install": _Command("showing", "write an image onto a disk", "obelisk install shop /dev/sdb --erase sdb"),
    "gc": _Command("showing", "free the space of what nothing needs", "obelisk gc --dry-run"),
    "verify": _Command("showing", "read the whole store and name what is damaged", "obelisk verify --repair"),
    "service": _Command("services", "replace instances of images behind a port, without a gap", "obelisk service deploy shop shop@2"),
    "app": _Command("sandboxing", "run applications in sandboxes", "obelisk app run calc -- '6 * 7'"),
    "instance": _Command("instances", "run instances of images, copy them, move them live", "obelisk instance create web --image shop"),
    "host": _Command("hosting", "look after a machine that runs an image", "obelisk host upgrade stable --reboot"),
}

_KEY_COMMANDS = {
    "init": ("make the keys that sign releases", "obelisk keys init --root /media/stick --root-keys 3 --threshold 2"),
    "rotate": ("put a new key in the place of another", "obelisk keys rotate targets --repo repo --root /media/stick"),
    "token": ("use a key that a PKCS#11 token has, in new repositories and from the next rotation on", "obelisk keys token targets 2"),
    "show": ("whose keys count in a repository, and until when its metadata holds", "obelisk keys show repo"),
    "trust": ("let these keys sign a repository that another directory of keys has made", "obelisk keys trust repo"),
}

_REPO_COMMANDS = {
    "init": ("begin a repository, before the first image that follows it is built", "obelisk repo init repo --root /media/stick"),
    "list": ("what its channels have", "obelisk repo list repo"),
    "verify": ("read every file, document and signature, and name what is wrong", "obelisk repo verify repo"),
    "stats": ("what each release and each edge costs", "obelisk repo stats repo"),
    "refresh": ("sign anew what expires; run it daily", "obelisk repo refresh repo"),
    "sysupdate": (
        "let a stock systemd-sysupdate follow a channel",
        "obelisk repo sysupdate repo --channel stable --url https://releases.example/os --transfers transfers",
    ),
    "serve": ("serve it by HTTP, for trying out", "obelisk repo serve repo --port 8000"),
}

# On a machine that runs an image, and on which nothing is built.
_HOST_ONLY = {
    "install": _Command("hosting", "write the running image onto another disk", "obelisk install shop /dev/sdb --erase sdb"),
    "host": _COMMANDS["host"],
}
_APPLICATIONS = _Command("installing", "look after the applications of this machine", "obelisk app install shop --channel stable")

_HOST_COMMANDS = {
    "status": ("what runs here, what it would fall back to, and how it is", "obelisk host status --json"),
    "upgrade": ("install an image beside the running one; the next boot tries it", "obelisk host upgrade stable --reboot"),
    "rollback": ("restart into the prior image that was healthy", "obelisk host rollback --with-state"),
    "history": ("every image that this machine ran, why, and how it went", "obelisk host history"),
    "verify": ("read every block of the slots and name what is damaged", "obelisk host verify --repair /mnt/shop-2"),
    "drift": ("every path in the state that nothing declares", "obelisk host drift"),
    "snapshot": ("snapshots of the state: create, list, restore, delete", "obelisk host snapshot create before-import"),
    "reset": ("start the next boot with fresh state", "obelisk host reset --yes --keep /var/lib/obelisk --reboot"),
    "recovery-key": ("make the key that opens the encrypted state when the TPM does not; it is shown once", "obelisk host recovery-key"),
    "enrol-tpm": ("have this machine's TPM open the encrypted state again; asks for the recovery key", "obelisk host enrol-tpm"),
    "firmware": (
        "give firmware and boot loader now what the running image brings; a TPM then opens encrypted state only after `enrol-tpm`",
        "obelisk host firmware --yes",
    ),
    "settle": ("bless the running image, which is healthy; the machine itself runs this", "obelisk host settle"),
    "condemn": ("note that the running image is not healthy; the machine itself runs this", "obelisk host condemn"),
    "follow": ("do what the followed channel asks, and restart; the machine itself runs this", "obelisk host follow"),
    "damaged": ("leave the running image, of which a block is damaged; the machine itself runs this", "obelisk host damaged"),
    "migrate": ("bring the state to the version of the image; the machine itself runs this before systemd", "obelisk host migrate"),
}

_APP_COMMANDS = {
    "run": ("start an application, confined to what it is granted", "obelisk app run calc -- '6 * 7'"),
    "ready": ("check and compile it; prints a program that starts it without Obelisk", "obelisk app ready calc"),
    "show": ("what it may do, and which layers of confinement hold on this machine", "obelisk app show calc"),
    "diff": ("what the second of two images may do that the first may not, and the reverse", "obelisk app diff calc@1 calc@2"),
    "audit": (
        "start it, and tell what it was refused, by which layer, and the grant that would allow it",
        "obelisk app audit calc -- '6 * 7'",
    ),
    "learn": (
        "the fewest grants with which its tests pass, and a start with these words; each is shown to be needed",
        "obelisk app learn calc -- '6 * 7'",
    ),
    "clear": ("undo `ready`; data is kept", "obelisk app clear calc"),
    "export": ("write what it is granted in a format of others; what does not fit is told", "obelisk app export calc --format systemd"),
    "import": ("read such a format; prints the tables of a spec, and what was left out", "obelisk app import config.json"),
    "install": (
        "have it on this machine: a service of systemd's, or a command; the next version in its place, tried first",
        """obelisk app install shop@2
         obelisk app install shop --channel stable --from https://releases.example/apps --root 1.root.json""",
    ),
    "upgrade": ("take what the channels have that installed applications follow", "obelisk app upgrade shop"),
    "rollback": ("bring the version back that was installed before", "obelisk app rollback shop --with-data"),
    "remove": ("undo `install`; data is kept", "obelisk app remove shop"),
    "list": ("what is installed, and how it is", "obelisk app list"),
    "prepare": ("have what is installed ready to start; its unit runs this after a restart of the machine", "obelisk app prepare shop"),
}
_APP_BY_NAME = ("rollback", "remove", "prepare")
_APP_ON_HOSTS = ("install", "upgrade", "rollback", "remove", "list", "prepare")


def main(words: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    parser = _parser()
    arguments = parser.parse_args(words)
    if arguments.command is None:
        parser.print_help()
        return 2
    if "explain" in arguments and arguments.action is None:
        arguments.explain.print_help()
        return 2
    module = arguments.module if "module" in arguments else _commands()[arguments.command].module
    command = importlib.import_module(f"obelisk.cli.{module}")
    try:
        status: int = getattr(command, arguments.command)(arguments)
    except ObeliskError as error:
        _explain(error, json_wanted=arguments.json)
        return error.exit_status
    except KeyboardInterrupt:
        print("\nobelisk: interrupted; what was finished is kept, and the next run goes on from there", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 141
    return status


def _commands() -> dict[str, _Command]:
    if find_spec("obelisk.cli.making") is not None:
        return _COMMANDS
    return _HOST_ONLY if find_spec("obelisk.cli.installing") is None else _HOST_ONLY | {"app": _APPLICATIONS}


def _explain(error: ObeliskError, *, json_wanted: bool) -> None:
    if json_wanted:
        import json

        print(json.dumps({"error": {"code": error.code, "message": error.message, "hint": error.hint}}), file=sys.stderr)
        return
    colour = sys.stderr.isatty()
    name = "\033[1;31merror\033[0m" if colour else "error"
    print(f"{name}: {error.message}", file=sys.stderr)
    if error.hint:
        print(f" hint: {error.hint}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    formatter = argparse.RawDescriptionHelpFormatter
    known = _commands()
    builder = known is _COMMANDS
    parser = argparse.ArgumentParser(
        prog="obelisk",
        description="Immutable operating-system images, described in one file.",
        epilog=_EPILOG if builder else _HOST_EPILOG,
        formatter_class=formatter,
    )
    parser.add_argument("--version", action="version", version=f"obelisk {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    parsers = {}
    for name, command in known.items():
        parsers[name] = commands.add_parser(
            name, help=command.summary, description=f"{command.summary}.", epilog=f"example: {command.example}", formatter_class=formatter
        )
        if name not in {"app", "host", "instance", "service"}:
            parsers[name].add_argument("--json", action="store_true", help=JSON)
            if builder:
                parsers[name].add_argument("--store", metavar="DIR", help="use this store")
    if "app" in known:
        _app_arguments(parsers["app"], builder=builder)
    install = parsers["install"]
    install.add_argument("image", metavar="IMAGE", help=IMAGE if builder else "the running image: its name, or name_version")
    install.add_argument("target", metavar="DEVICE|FILE", help="a whole disk, or a file to make one in")
    install.add_argument("--erase", metavar="NAME", help="the name of the disk or file (sdb for /dev/sdb), all of which goes")
    if builder:
        from obelisk.cli import instance_grammar  # hosts have it not

        instance_grammar.drain_arguments(_host_arguments(parsers["host"], instance_grammar.DRAIN_COMMANDS))
        instance_grammar.instance_arguments(parsers["instance"])
        instance_grammar.service_arguments(parsers["service"])
        _builder_arguments(parsers)
    else:
        _host_arguments(parsers["host"], {})
    return parser


def _host_arguments(parser: argparse.ArgumentParser, more: Commands) -> Parsers:
    parsers = add_actions(parser, _HOST_COMMANDS | more, required=True)
    for each in parsers.values():
        each.add_argument("--json", action="store_true", help=JSON)
    for name in ("upgrade", "snapshot", "reset"):
        parsers[name].add_argument("--reboot", action="store_true", help="restart as soon as everything is ready")
    parsers["upgrade"].add_argument(
        "source",
        nargs="?",
        metavar="SOURCE",
        help="a channel (default: the one that the image follows), or a directory with an image's manifest.json and parts",
    )
    for name in ("upgrade", "verify"):
        parsers[name].add_argument(
            "--from",
            dest="mirrors",
            action="append",
            default=[],
            metavar="ADDRESS",
            help="ask this mirror, http(s)://… or a directory, in the place of those that the image names; may be given again",
        )
    # As if somebody had asked for an upgrade with a restart, and for nothing else.
    parsers["follow"].set_defaults(source=None, mirrors=[], check=False, retry=None, rehearse=False, reboot=True)
    parsers["upgrade"].add_argument("--check", action="store_true", help="only say what the channel has for this host")
    parsers["upgrade"].add_argument("--retry", metavar="VERSION", help="try this version again, although it failed here before")
    parsers["upgrade"].add_argument(
        "--rehearse", action="store_true", help="first boot it in a VM over a copy of the state, and go on only when it is healthy there"
    )
    parsers["rollback"].add_argument("--with-state", action="store_true", help="also bring back the state as that image left it")
    parsers["rollback"].add_argument("--no-reboot", action="store_true", help="leave the restart to you")
    parsers["verify"].add_argument(
        "--repair", metavar="SOURCE", help="write what is damaged again: from a channel's repository, or from the directory of that image"
    )
    parsers["snapshot"].add_argument("verb", choices=("create", "list", "restore", "delete"))
    parsers["snapshot"].add_argument("name", nargs="?", metavar="NAME", help="its number, its name, or both as `list` shows them")
    parsers["snapshot"].add_argument("--why", metavar="TEXT", help="a note for `list`")
    parsers["reset"].add_argument("--keep", action="append", metavar="PATH", help="keep this file or directory")
    parsers["reset"].add_argument("--yes", action="store_true", help="delete the state of this machine")
    parsers["firmware"].add_argument("--yes", action="store_true", help="also where the next boot will ask for the recovery key")
    return parsers


def _app_arguments(parser: argparse.ArgumentParser, *, builder: bool) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    parsers = {}
    for name, (summary, example) in _APP_COMMANDS.items():
        if not builder and name not in _APP_ON_HOSTS:
            continue
        parsers[name] = actions.add_parser(
            name,
            help=summary,
            description=f"{summary}.",
            epilog=f"example: {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parsers[name].add_argument("--json", action="store_true", help=JSON)
        if name == "import":
            continue
        if builder:
            parsers[name].add_argument("--store", metavar="DIR", help="use this store")
        if name in _APP_BY_NAME:
            parsers[name].add_argument("name", metavar="NAME", help="the name of an installed application")
        elif name not in {"list", "upgrade"}:
            parsers[name].add_argument("image", metavar="OLD" if name == "diff" else "IMAGE", help=IMAGE if builder else _IMAGE_ON_HOST)
    _installed_arguments(parsers)
    if not builder:
        return
    for name in ("run", "audit"):
        parsers[name].add_argument("words", nargs=argparse.REMAINDER, metavar="-- WORDS", help="what the application is told")
    parsers["learn"].add_argument("words", nargs="*", metavar="-- WORDS", help="what it is told in one start more, which has to succeed")
    parsers["diff"].add_argument("other", metavar="NEW")
    parsers["export"].add_argument("--format", required=True, choices=("systemd", "oci", "flatpak"))
    parsers["export"].add_argument("--output", metavar="FILE", help="write it there (default: standard output)")
    parsers["import"].add_argument("file", metavar="FILE", help="a config.json of an OCI bundle, or the metadata of a Flatpak application")
    parsers["import"].add_argument("--format", choices=("oci", "flatpak"), help="what it is (default: by its content)")


def _installed_arguments(parsers: Parsers) -> None:
    for name in ("install", "upgrade"):
        parsers[name].add_argument(
            "--approve", action="store_true", help="also when it may do more than the version that is installed; `app diff` tells what"
        )
        parsers[name].add_argument(
            "--in-place", action="store_true", help="stop the installed version without running the next one beside it first"
        )
    parsers["install"].add_argument(
        "--channel", metavar="NAME", help="take the application of that name (IMAGE) from this channel, and follow it from now on"
    )
    parsers["install"].add_argument("--from", action="append", default=[], dest="mirrors", metavar="ADDRESS", help=_MIRRORS)
    parsers["install"].add_argument("--root", metavar="FILE", help=_ROOT)
    parsers["upgrade"].add_argument("name", nargs="?", metavar="NAME", help="the name of an installed application (default: all)")
    parsers["upgrade"].add_argument("--check", action="store_true", help="only say what the channel has")
    parsers["upgrade"].add_argument("--retry", metavar="VERSION", help="try this version again, although it failed here before")
    parsers["rollback"].add_argument("--with-data", action="store_true", help="also bring back the data as that version left it")
    parsers["remove"].add_argument("--data", action="store_true", help="remove its data as well")


def _builder_arguments(parsers: Parsers) -> None:
    def spec_argument(name: str) -> None:
        parsers[name].add_argument("spec", nargs="?", default=".", metavar="SPEC", help="directory of an obelisk.toml (default: this one)")

    def image_argument(name: str) -> None:
        parsers[name].add_argument("image", metavar="IMAGE", help=IMAGE)

    parsers["new"].add_argument("directory", metavar="DIRECTORY", help="is made; its name becomes the image's")
    parsers["new"].add_argument("--role", "--kind", choices=("server", "workstation", "app"), default="server")
    for name in ("lock", "build"):
        spec_argument(name)
    parsers["lock"].add_argument(
        "--update", nargs="*", metavar="PACKAGE", help="take the newest of these packages (of all, when none is named); others stay"
    )
    parsers["build"].add_argument("--reproduce", action="store_true", help="build once more in a fresh place and compare bit by bit")
    for name in ("test", "run", "show", "export"):
        image_argument(name)
    parsers["test"].add_argument("--report", metavar="FILE", help="write the report as JSON")
    parsers["test"].add_argument("--junit", metavar="FILE", help="write the report as JUnit XML")
    parsers["run"].add_argument("--port", action="append", default=[], metavar="HOST:GUEST", help="forward a TCP port of 127.0.0.1")
    parsers["run"].add_argument(
        "--credential", action="append", default=[], metavar="NAME=VALUE", help="give the machine a credential, such as system.hostname"
    )
    parsers["run"].add_argument("--memory", type=int, default=1024, metavar="MIB")
    parsers["run"].add_argument(
        "--disk",
        metavar="FILE",
        help="keep the machine's disk, state included, in this qcow2 file, and beside it the firmware's variables and the TPM, if any",
    )
    parsers["run"].add_argument(
        "--site", metavar="DIR", help="serve this directory, such as a repository, to the machine: http://10.0.2.80/"
    )
    ways = parsers["run"].add_mutually_exclusive_group()
    ways.add_argument("--command", dest="inside", metavar="COMMAND", help="run this in the machine, print what it says, and switch off")
    ways.add_argument(
        "--firmware", action="store_true", help="start it as a machine does, by its firmware and boot loader, without a shell of ours"
    )
    for side in ("before", "after"):
        parsers["diff"].add_argument(side, metavar=side.upper(), help=f"{IMAGE}; or REPO@VERSION or REPO@CHANNEL")
    parsers["export"].add_argument("--format", choices=("raw", "qcow2", "erofs", "oci"), default="raw")
    parsers["export"].add_argument("--output", required=True, metavar="FILE")
    _release_arguments(parsers)
    image_argument("push")
    parsers["push"].add_argument("place", metavar="PLACE", help="registry/repository:tag; the tag may be left out where it is the version")
    parsers["pull"].add_argument("place", metavar="PLACE", help="registry/repository:tag, or registry/repository@sha256:digest")
    parsers["pull"].add_argument(
        "--tester", action="append", metavar="FILE", help="take the image only with a proof that the key in this file (PEM) has signed"
    )
    for name in ("push", "pull"):
        parsers[name].add_argument("--credentials", metavar="FILE", help="a file with the login, as `docker login` writes it")
        parsers[name].add_argument("--plain-http", action="store_true", help="use no TLS (which this machine itself needs none for)")
    parsers["gc"].add_argument("--dry-run", action="store_true", help="only say what would go")
    parsers["gc"].add_argument("--all", action="store_true", help="keep nothing that can be made again")
    parsers["gc"].add_argument("--keep-days", type=int, metavar="DAYS")
    parsers["verify"].add_argument("--repair", action="store_true", help="move damaged files away, so that they are made again")


def _release_arguments(parsers: Parsers) -> None:
    keys = add_actions(parsers["keys"], _KEY_COMMANDS, required=False)
    repo = add_actions(parsers["repo"], _REPO_COMMANDS, required=True)
    for parser in (*keys.values(), *repo.values()):
        parser.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help=JSON)
        parser.add_argument("--store", metavar="DIR", default=argparse.SUPPRESS, help="use this store")
    release, promote, withdraw, retire = (parsers[name] for name in ("release", "promote", "withdraw", "retire"))
    release.add_argument("image", metavar="IMAGE", help=IMAGE)
    release.add_argument("--to", metavar="REPO", dest="repo", help=f"{_REPO}; made when there is none")
    release.add_argument("--channel", required=True, metavar="NAME", help="the channel that hosts follow")
    release.add_argument("--minimum", metavar="VERSION", default="", help="the oldest version whose hosts can take it (default: any)")
    release.add_argument("--allow-test-key", action="store_true", help="release an image that is signed by a test key")
    release.add_argument("--expire", action="append", default=[], metavar="ROLE=TIME", help=_EXPIRE)
    for parser in (release, promote):
        parser.add_argument("--edges", default="previous", metavar="LIST", help=_EDGES)
        parser.add_argument(
            "--approve-growth",
            default="",
            metavar="WHY",
            help="release an application although it may do more than what the channel has; recorded",
        )
    promote.add_argument("version", metavar="VERSION")
    promote.add_argument("--from", required=True, dest="source", metavar="CHANNEL")
    promote.add_argument("--to", required=True, dest="target", metavar="CHANNEL")
    withdraw.add_argument("version", metavar="VERSION")
    withdraw.add_argument(
        "--hosts", choices=("stay", "back"), default="stay", help="what hosts do that run it: stay until there is a newer one"
    )
    withdraw.add_argument("--channel", metavar="NAME", help="from this channel only (default: all)")
    retire.add_argument("--keep", type=int, required=True, metavar="N", help="how many releases each channel keeps")
    retire.add_argument("--older-than", default="0d", metavar="TIME", help="only what was listed longer ago than this, such as 90d")
    retire.add_argument("--dry-run", action="store_true", help="only say what would go")
    retire.add_argument("--now", action="store_true", help="free the space at once, and not after an hour, when readers have finished")
    for parser in (promote, withdraw, retire):
        parser.add_argument("--repo", metavar="REPO", help=_REPO)
    for parser in (promote, withdraw):
        parser.add_argument("--name", metavar="NAME", help="the image's name, when the repository has several")
    for parser in (release, promote, withdraw, retire):
        parser.add_argument("--by", metavar="WHO", help="who does it (default: $OBELISK_BY, or your login name)")
        parser.add_argument("--why", default="", metavar="TEXT", help="a reason, which is recorded")
    _repo_arguments(repo)
    for parser in (release, repo["init"], repo["refresh"], keys["init"], keys["rotate"], keys["token"]):
        parser.add_argument(
            "--root", action="append", default=[], metavar="DIR", help="where root keys are, such as on a stick; may be repeated"
        )
    keys["init"].add_argument("--root-keys", type=int, default=1, metavar="N", help="how many root keys there are (default: 1)")
    keys["init"].add_argument("--threshold", type=int, default=1, metavar="N", help="how many of them have to sign together (default: 1)")
    keys["rotate"].add_argument("role", choices=("root", "targets", "snapshot", "timestamp", "tester", "secure-boot", "platform"))
    keys["rotate"].add_argument("--repo", metavar="REPO", help=_REPO)
    keys["rotate"].add_argument(
        "--drop", action="append", default=[], metavar="KEY", help="root, tester: the key to go, by the beginning of its id"
    )
    keys["rotate"].add_argument("--add", action="append", default=[], metavar="FILE", help="tester: a public key (PEM) to come in")
    keys["rotate"].add_argument("--new-root", metavar="DIR", help="root: where new keys are made (default: the first --root)")
    keys["rotate"].add_argument("--threshold", type=int, metavar="N", help="root: how many have to sign together from now on")
    keys["rotate"].add_argument("--force", action="store_true", help="tester: also when releases are left without a proof that counts")
    step = keys["rotate"].add_mutually_exclusive_group()
    step.add_argument("--finish", action="store_true", help="secure-boot: the new key signs from now on; every host has been brought it")
    step.add_argument(
        "--revoke", action="store_true", help="secure-boot: have hosts refuse what the old key signed, once they start nothing of it"
    )
    for name in ("init", "rotate"):
        keys[name].add_argument("--passphrase", action="store_true", help="protect new keys by a passphrase")
    keys["token"].add_argument("role", choices=("root", "targets", "snapshot", "timestamp"))
    keys["token"].add_argument("key", metavar="ID[?label=TOKEN]", help="a key of ECDSA on P-256; $PYKCS11LIB names the token's module")
    keys["show"].add_argument("repo", nargs="?", metavar="REPO", help="a repository (default: only the keys that are here)")
    keys["trust"].add_argument("repo", metavar="REPO")


def _repo_arguments(repo: Parsers) -> None:
    follow = repo["sysupdate"]
    follow.add_argument("--channel", required=True, metavar="NAME")
    follow.add_argument("--name", metavar="NAME", help="the image's name, when the repository has several")
    follow.add_argument("--transfers", metavar="DIR", help="also write there what hosts need for it: transfer files and a keyring")
    follow.add_argument("--url", metavar="ADDRESS", help="where hosts reach the repository: https://…")
    follow.add_argument("--slots", type=int, default=2, metavar="N", help="how many versions a host's disk holds (default: 2)")
    follow.add_argument("--tries", type=int, default=3, metavar="N", help="how many boots a new version gets (default: 3)")
    follow.add_argument("--stop", action="store_true", help="offer it no longer")
    for name in ("list", "verify", "stats", "refresh", "serve", "sysupdate"):
        repo[name].add_argument("repo", nargs="?", metavar="REPO", help=_REPO)
    repo["refresh"].add_argument("--all", action="store_true", help="sign everything anew, root as well where its keys are here")
    repo["refresh"].add_argument("--expire", action="append", default=[], metavar="ROLE=TIME", help=_EXPIRE)
    repo["serve"].add_argument("--port", type=int, default=8000, metavar="PORT")
    repo["serve"].add_argument("--bind", default="127.0.0.1", metavar="ADDRESS", help="default: this machine alone")
    repo["init"].add_argument("repo", metavar="REPO", help="a directory, which is made")
    repo["init"].add_argument("--expire", action="append", default=[], metavar="ROLE=TIME", help=_EXPIRE)
