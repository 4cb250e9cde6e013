"""The reference of `obelisk.toml`, written from the schema: `python -m obelisk.spec.reference > docs/spec.md`."""

import sys
from collections.abc import Iterator, Mapping

from obelisk.spec.positions import spell
from obelisk.spec.reader import inline
from obelisk.spec.shape import Kind, Shape, spec_shape

_HEAD = """\
# The spec: obelisk.toml

One file says what an image is made of, and how to tell that it works. It is [TOML](https://toml.io); paths in it start at its own
directory and stay below it. `obelisk new NAME` writes one that builds and passes its tests; the only key that must be there is `name`.
Editors complete and check it with the JSON Schema `src/obelisk/spec/schema.json`, of which `obelisk new` puts a copy beside the spec.
This page is written from that schema.

A wrong spec is answered by every problem at once, each as `file:line:key: what is wrong`, with the nearest key or value that would be
right:

    shop/obelisk.toml:4:pakages: there is no such key (did you mean `packages`?)
    shop/obelisk.toml:9:services.enable[0]: must be a unit with its suffix, such as nginx.service, not 'nginx'
"""

_RULES = """\
## Rules that hold between keys

**Places.** The image is `/usr`, `/etc`, `/srv`, `/opt` and what else you put at the root. Neither `tree` nor `files` may go below

- `/proc`, `/sys`, `/dev`, which the kernel fills, and `/run`, `/tmp`, which are memory: let a unit or tmpfiles.d make things there;
- `/var`, `/home`, `/root`, which are the machine's state: an image never changes state, so files there would reach no machine that runs
  already. Put content below `/srv` or `/usr`, SSH keys under `users.NAME.ssh_keys`, and let a unit or tmpfiles.d make what must be below
  `/var` at boot;
- `/boot`, `/efi`, where the boot partition is mounted.

Files that other keys write are refused as well: `/etc/hostname`, `/etc/localtime`, `/etc/locale.conf`, the account files, `os-release`,
the machine id and SSH host keys.

**Collisions.** `/bin`, `/sbin` and `/lib` are links into `/usr`, so `/bin/x` and `/usr/bin/x` are one place. One place named twice, in
`files`, in `tree` or in both, and a file where a directory is needed are errors. Replacing a package's file is normal below `/etc`;
elsewhere it must be listed under `allow.replace`. Replacing a directory is never possible.

**The tree.** Modes come out the same from any checkout: 0755 for executable files and directories, 0644 for the rest, owned by root;
a directory that packages brought keeps its mode and owner. A file that not everyone may read is refused: say its mode under `files`.
Symbolic links are kept as they are. setuid and setgid files and device nodes need `allow`; sockets and pipes are refused. `.git`,
`.gitkeep`, `.DS_Store`, `*~`, `.#*`, `#*#` and `.*.swp` stay out.

**Accounts.** Ids from 1000 to 59999 are yours; lower ones belong to packages, and the lock records them so that they do not shift either.
No two users and no two groups share an id. A user without `gid` gets a group of the same name and id.

**The command line.** It is signed with the image. Words that start something else than the verified root, lay something over it or open
a root shell are refused: `root=`, `roothash=`, `init=`, `rdinit=`, `initrd=`, `ro`, `rw`, `systemd.verity*`, `systemd.unit=`,
`systemd.volatile=`, `systemd.debug_shell`, `rd.break`, `single` and their relatives.

**What makes a new lock, and what a new image.** `distribution`, `role`, `packages`, `recommends`, `boot.kernel` and `sources` ask for a
new lock. Every other key makes a new image, except `mirror`, `snapshot`, the `uri` of a source, `tests` and `size_budget`, which change no
byte of it: a lock and an image move between mirrors. The order of keys and of lists, apart from `scripts` and `boot.cmdline`, changes
nothing.

## Errors

| code | meaning |
| --- | --- |
| `spec-not-found` | there is no spec at that path |
| `spec-syntax` | the file is no TOML, or no UTF-8; the place is `file:line:column` |
| `spec-key` | a key that does not exist here |
| `spec-missing` | a key that must be there |
| `spec-value` | a value of the wrong type or form |
| `spec-conflict` | two entries that cannot both hold |
| `spec-file` | a file that the spec refers to is missing, unreadable or not what it must be |
| `spec-forbidden` | something that an image may not hold, or only with `allow` |

All of them end `obelisk` with exit status 2.
"""

_TYPES = {Kind.TEXT: "text", Kind.WHOLE: "whole number", Kind.FLAG: "true or false"}


def reference() -> str:
    """The text of docs/spec.md."""
    root = spec_shape()
    single = {key: shape for key, shape in root.properties.items() if not _is_section(shape)}
    lines = [_HEAD, "## Keys at the top of the file\n", *_table(single, root.required)]
    for key, shape in root.properties.items():
        if _is_section(shape):
            lines += _section(key, shape)
    return "\n".join([*lines, _RULES])


def _is_section(shape: Shape) -> bool:
    return shape.kind is Kind.TABLE or (shape.items is not None and shape.items.kind is Kind.TABLE)


def _section(key: str, shape: Shape) -> Iterator[str]:
    inner = shape.entries or shape.items or shape
    heading = f"[[{key}]]" if shape.items else f"[{key}.NAME]" if shape.entries else f"[{key}]"
    yield f"## `{heading}`\n"
    yield f"{shape.description}\n"
    if shape.names is not None:
        yield f"NAME is {shape.names.rule}.\n"
    for example in shape.examples:
        entries = ((f"[[{key}]]", entry) for entry in example) if shape.items else ((f"[{spell((key, n))}]", e) for n, e in example.items())
        for header, entry in entries:
            yield "\n".join(["```toml", header, *(f"{spell((k,))} = {inline(v)}" for k, v in entry.items()), "```\n"])
    yield from _table({name: each for name, each in inner.properties.items() if not _is_section(each)}, inner.required)
    for name, each in inner.properties.items():
        if _is_section(each):
            yield from _section(f"{key}.{name}", each)


def _table(shapes: Mapping[str, Shape], required: tuple[str, ...]) -> Iterator[str]:
    yield "| key | type | default | example | |"
    yield "| --- | --- | --- | --- | --- |"
    for key, shape in shapes.items():
        default = "required" if key in required else f"`{inline(shape.default)}`" if shape.default is not None else ""
        example = f"`{inline(shape.examples[0])}`" if shape.examples else ""
        cells = (f"`{key}`", _type(shape), default, example, " ".join(filter(None, (shape.description, _must(shape)))))
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
    yield ""


def _type(shape: Shape) -> str:
    if shape.items is not None:
        return "list of whole numbers" if shape.items.kind is Kind.WHOLE else "list of texts"
    return " or ".join(f"`{word}`" for word in shape.enum) or _TYPES[shape.kind]


def _must(shape: Shape) -> str:
    rule = shape.rule or (shape.items.rule or _choice(shape.items) if shape.items else "")
    return f"{'Each is' if shape.items else 'It is'} {rule}." if rule else ""


def _choice(shape: Shape) -> str:
    return f"one of {', '.join(f'`{word}`' for word in shape.enum)}" if shape.enum else ""


if __name__ == "__main__":
    sys.stdout.write(reference())
