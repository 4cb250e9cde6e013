"""The words about instances, services, and the hosts of instances."""

import argparse

from obelisk.cli.grammar import IMAGE, JSON, Parsers, add_actions

_INSTANCE_COMMANDS = {
    "create": (
        "make an instance of an image, here or on a host, and start it",
        """obelisk instance create web --image shop@12 --memory 512M --state 2G --port 8080:80
         obelisk instance create web --image shop@12 --host north""",
    ),
    "list": ("the instances, where they are, and how", "obelisk instance list"),
    "show": ("one of them; what a command that was killed has left of it is put right", "obelisk instance show web"),
    "start": (
        "switch one on",
        """obelisk instance start web
         obelisk instance start --all      # when this machine has started""",
    ),
    "stop": (
        "switch one off",
        """obelisk instance stop web
         obelisk instance stop --all       # before it goes down""",
    ),
    "retire": ("take one away, with its state and its snapshots", "obelisk instance retire web"),
    "console": ("what one shows, and a keyboard for it; leave with Ctrl-]", "obelisk instance console web"),
    "snapshot": ("keep this moment of one: memory and state, or state alone", "obelisk instance snapshot web --name before-import"),
    "snapshots": ("list what is kept of one", "obelisk instance snapshots web"),
    "restore": (
        "bring a moment back, in the place of the present or as another instance",
        """obelisk instance restore web before-import
         obelisk instance restore web before-import --as web-then""",
    ),
    "delete": ("remove a snapshot, and nothing else", "obelisk instance delete web before-import"),
    "verify": ("read the snapshots of one, and name what is damaged", "obelisk instance verify web"),
    "fork": ("running copies of one, which share its memory and state until they write", "obelisk instance fork web --count 5"),
    "migrate": ("move one to another host, while it runs", "obelisk instance migrate web --to south --plan"),
    "hosts": (
        "the hosts that run instances: add, list, remove",
        "obelisk instance hosts add north 192.0.2.1 --bridge br0 --certificates pki",
    ),
}
_INSTANCE_NOT_BY_NAME = ("list", "hosts")
_INSTANCE_ALL = {
    "start": "all of this machine that were on and do not run, as after its restart",
    "stop": "all of this machine, at once; `start --all` has those run again that ran",
}
DRAIN_COMMANDS = {
    "drain": ("move away all instances that run on a host, and let nothing new come to it", "obelisk host drain north --plan"),
    "undrain": ("let instances come to a host again, and bring back those that left it", "obelisk host undrain north"),
}
"""What `obelisk host` can do with a host of instances, from afar."""

_SERVICE_COMMANDS = {
    "create": ("have a port of this machine lead to instances of an image", "obelisk service create shop --port 8080:80 --image shop"),
    "deploy": (
        "have an image take the place of the one before, once it is healthy, without a gap",
        "obelisk service deploy shop shop@2 --canary 10%",
    ),
    "promote": ("give the canary a larger share of new connections, or all", "obelisk service promote shop --to 50%"),
    "rollback": ("lead new connections to what they went to before", "obelisk service rollback shop"),
    "status": ("its iterations, their shares and open connections, and why some failed", "obelisk service status shop"),
    "list": ("all services of this machine", "obelisk service list"),
    "tend": (
        "do what time has brought: retire what was replaced, start what has fallen, withdraw a canary that ails",
        "obelisk service tend --every 30s",
    ),
    "retire": ("remove a service with all its instances; open connections end", "obelisk service retire shop"),
}


def instance_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of `obelisk instance`."""
    parsers = add_actions(parser, _INSTANCE_COMMANDS, required=True)
    for name, each in parsers.items():
        each.add_argument("--json", action="store_true", help=JSON)
        each.add_argument("--store", metavar="DIR", help="use this store")
        if name not in _INSTANCE_NOT_BY_NAME:
            many = "?" if name in _INSTANCE_ALL else None
            each.add_argument("name", metavar="NAME", nargs=many, help="the name of the instance")
    create = parsers["create"]
    create.add_argument("--image", required=True, metavar="IMAGE", help=IMAGE)
    create.add_argument("--host", metavar="HOST", help="a host by its name (default: this machine); see `obelisk instance hosts`")
    create.add_argument("--memory", default="1G", metavar="SIZE", help="(default: 1G)")
    create.add_argument(
        "--port",
        action="append",
        default=[],
        metavar="[[ADDRESS:]HOST:]GUEST",
        help="here: a TCP port of 127.0.0.1, or of ADDRESS, that leads into it (HOST: by default one that is free); may be given again",
    )
    create.add_argument("--keep", type=int, default=8, metavar="N", help="here: keep so many snapshots without a name (default: 8)")
    create.add_argument("--off", action="store_true", help="here: do not start it")
    create.add_argument("--cpus", type=int, default=1, metavar="N", help="(default: 1)")
    create.add_argument("--state", default="2G", metavar="SIZE", help="how large its state may become (default: 2G)")
    create.add_argument("--credential", action="append", default=[], metavar="NAME=VALUE", help="one for the machine; may be given again")
    for name, what in _INSTANCE_ALL.items():
        parsers[name].add_argument("--all", action="store_true", help=what)
    for name in ("stop", "retire"):
        parsers[name].add_argument("--now", action="store_true", help="as a power cut does")
    parsers["stop"].add_argument(
        "--timeout", type=float, default=90, metavar="S", help="here: by force after so many seconds (default: 90)"
    )
    parsers["snapshot"].add_argument("--name", dest="as_name", metavar="SNAPSHOT", help="keep it until it is deleted, under this name")
    parsers["snapshot"].add_argument("--why", metavar="TEXT", help="a note for `snapshots`")
    parsers["snapshot"].add_argument(
        "--state-only", action="store_true", help="not its memory: while it runs, its agent holds file systems still, where it has one"
    )
    for name in ("restore", "delete"):
        parsers[name].add_argument("snapshot", metavar="SNAPSHOT", help="its name, its id, or the beginning of that")
    parsers["restore"].add_argument("--as", dest="to", metavar="NAME", help="as another instance, with an identity of its own")
    parsers["restore"].add_argument(
        "--port", action="append", default=[], metavar="[[ADDRESS:]HOST:]GUEST", help="with --as: as for `create` (default: free ports)"
    )
    parsers["fork"].add_argument("--count", type=int, default=1, metavar="N", help="how many (default: 1)")
    parsers["migrate"].add_argument("--to", required=True, metavar="HOST")
    parsers["migrate"].add_argument("--rate", type=int, metavar="MIB", help="use at most so many MiB a second of the network")
    parsers["migrate"].add_argument("--plan", action="store_true", help="only say what it would take")
    _migration_arguments(parsers["migrate"])
    hosts = parsers["hosts"]
    hosts.add_argument("verb", nargs="?", choices=("list", "add", "remove"), default="list")
    hosts.add_argument("host", nargs="?", metavar="HOST", help="the name that it is to have here")
    hosts.add_argument("address", nargs="?", metavar="ADDRESS", help="add: where this machine reaches its libvirt daemon, by TLS")
    hosts.add_argument("--peer", metavar="ADDRESS", help="add: where other hosts reach it (default: ADDRESS)")
    hosts.add_argument("--bridge", default="br0", metavar="NAME", help="add: the bridge there that instances are on (default: br0)")
    hosts.add_argument(
        "--certificates", metavar="DIR", help="add: cacert.pem, clientcert.pem and clientkey.pem (default: libvirt's own place)"
    )


def drain_arguments(parsers: Parsers) -> None:
    """Those of `DRAIN_COMMANDS`, among the parsers of `obelisk host`."""
    parsers["drain"].add_argument("--plan", action="store_true", help="only say what it would take")
    for name in DRAIN_COMMANDS:
        parsers[name].set_defaults(module="migrating")
        parsers[name].add_argument("host", metavar="HOST", help="its name; see `obelisk instance hosts`")
        parsers[name].add_argument("--store", metavar="DIR", help="use this store")
        _migration_arguments(parsers[name])


def _migration_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pause", type=float, default=0.3, metavar="S", help="for how long it may stand still, in seconds (default: 0.3)")
    parser.add_argument("--time", type=float, default=1800, metavar="S", help="how long it may take (default: 1800)")
    parser.add_argument(
        "--post-copy",
        action="store_true",
        help="when it writes faster than the network carries: go on at the other side before all its memory is there, "
        "which a failure of either host then loses",
    )
    parser.add_argument("--slow-down", action="store_true", help="when it writes too fast: give it less of the processor")


def service_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of `obelisk service`."""
    parsers = add_actions(parser, _SERVICE_COMMANDS, required=True)
    for name, each in parsers.items():
        each.add_argument("--json", action="store_true", help=JSON)
        each.add_argument("--store", metavar="DIR", help="use this store")
        if name == "tend":
            each.add_argument("name", nargs="?", metavar="NAME", help="the name of a service (default: all)")
        elif name != "list":
            each.add_argument("name", metavar="NAME", help="the name of a service")
    create, deploy = parsers["create"], parsers["deploy"]
    create.add_argument("--port", required=True, metavar="PORT[:GUEST]", help="a TCP port of this machine, and that of the instances")
    create.add_argument("--image", metavar="IMAGE", help=f"deploy it at once: {IMAGE}")
    create.add_argument(
        "--instances", type=int, default=1, metavar="N", help="so many share the connections of each iteration (default: 1)"
    )
    create.add_argument("--memory", default="512M", metavar="SIZE", help="of each instance (default: 512M)")
    create.add_argument("--cpus", type=int, default=1, metavar="N", help="of each instance (default: 1)")
    create.add_argument("--state", default="2G", metavar="SIZE", help="the disk for the state of each instance (default: 2G)")
    create.add_argument("--carry-state", action="store_true", help="a new instance begins with a copy of the state that it replaces")
    create.add_argument("--check", default="", metavar="/PATH", help="what has to answer by HTTP (default: the port accepts connections)")
    create.add_argument("--health", default="3m", metavar="TIME", help="how long a new iteration may take to be healthy (default: 3m)")
    create.add_argument("--keep", default="1h", metavar="TIME", help="how long what was replaced stays for a rollback (default: 1h)")
    create.add_argument("--drain", default="10m", metavar="TIME", help="how long its connections may then stay open (default: 10m)")
    deploy.add_argument("image", metavar="IMAGE", help=IMAGE)
    deploy.add_argument(
        "--canary", metavar="SHARE", help="give it this share of new connections, such as 10%%, until `promote` or `rollback`"
    )
    parsers["promote"].add_argument("--to", metavar="SHARE", help="only this share, such as 50%%")
    parsers["rollback"].add_argument("--with-state", action="store_true", help="also set its state back to that of before the replacement")
    parsers["tend"].add_argument("--every", metavar="TIME", help="again and again, such as 30s")
