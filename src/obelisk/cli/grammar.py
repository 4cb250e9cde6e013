"""What the words of the command line are made of, on hosts too."""

import argparse

IMAGE = "directory of a spec, image id or its beginning, name, or name@version"
JSON = "events and results as JSON lines, for programs"

Commands = dict[str, tuple[str, str]]
"""Actions of a command: what each does, and an example."""
Parsers = dict[str, argparse.ArgumentParser]


def add_actions(parser: argparse.ArgumentParser, commands: Commands, *, required: bool) -> Parsers:
    """A parser for each action. Where one is `required`, the help is shown without one."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    if required:
        parser.set_defaults(explain=parser)
    formatter = argparse.RawDescriptionHelpFormatter
    return {
        name: actions.add_parser(name, help=summary, description=f"{summary}.", epilog=f"example: {example}", formatter_class=formatter)
        for name, (summary, example) in commands.items()
    }
