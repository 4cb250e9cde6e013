"""What is wrong with a spec: collected while reading, raised as one error that names every place.

A problem knows the key it is about; lines are added when the error is made, from the position index. Nothing is read here.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from difflib import get_close_matches

from obelisk.errors import InputError
from obelisk.spec.positions import KeyPath, Positions, spell


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing to fix. `path` is the key it is about, `code` is stable, `hint` names the remedy where the message does not."""

    path: KeyPath
    message: str
    code: str
    hint: str = ""


class SpecError(InputError):
    """A spec cannot be used: each line of the message is one problem with its place, in the order of the file.

    `code` and `place` are those of the first problem.
    """

    def __init__(self, name: str, problems: Iterable[Problem], positions: Positions) -> None:
        placed = sorted(((positions.line(problem.path), problem) for problem in dict.fromkeys(problems)), key=lambda pair: pair[0])
        self.problems = tuple(problem for _line, problem in placed)
        places = [f"{name}:{line}:{spell(problem.path)}".rstrip(":") for line, problem in placed]
        first = self.problems[0]
        if len(placed) == 1:
            super().__init__(first.message, code=first.code, hint=first.hint, place=places[0])
            return
        told = [f"{p.message} ({p.hint})" if p.hint else p.message for p in self.problems]
        others = "".join(f"\n{place}: {message}" for place, message in zip(places[1:], told[1:], strict=True))
        super().__init__(told[0] + others, code=first.code, hint=f"fix these {len(placed)} places", place=places[0])


@dataclass(frozen=True, slots=True)
class Findings:
    """Collects problems; everything that reads a spec reports to one of these and goes on."""

    problems: list[Problem] = field(default_factory=list)

    def report(self, path: KeyPath, message: str, *, code: str, hint: str = "") -> None:
        """Note a problem with what `path` names."""
        self.problems.append(Problem(path, message, code=code, hint=hint))


def closest(word: str, known: Iterable[str]) -> set[str]:
    """The known word most like `word`, or nothing when none is like it."""
    return set(get_close_matches(word, list(known), n=1, cutoff=0.55))


def nearest(word: str, known: Iterable[str]) -> str:
    """A question that names the known word most like `word`, or nothing when none is like it."""
    return "".join(f"did you mean `{close}`?" for close in closest(word, known))
