"""A build is a graph of steps, each named by the hash of its inputs.

A step's key covers its name, its revision, its options and the keys of the steps it needs, so a key can be computed before anything has
run, and equal keys mean equal results. Finished steps lie in the store; what is there is not done again. Independent steps run side by
side. A step writes into a fresh directory which appears under its key all at once, so being killed costs the unfinished steps only.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Protocol

from obelisk.events import Finished, Sink, Started, Task, task
from obelisk.model.canonical import Json, digest


class StepStore(Protocol):
    """What the graph needs of the store."""

    def find_step(self, key: str) -> Path | None:
        """The finished output of a step."""

    def build_step(self, key: str, produce: Callable[[Path], None]) -> tuple[Path, bool]:
        """The output of a step, made by `produce` unless it is there already; whether it was."""


Produce = Callable[[Path, Mapping[str, Path], Task], None]


@dataclass(frozen=True, slots=True)
class Step:
    """One step: `produce(work, outputs_of_needs, task)` fills the directory `work`."""

    name: str
    title: str
    options: Json
    needs: tuple["Step", ...]
    produce: Produce
    revision: int = 1

    @property
    def key(self) -> str:
        """Names the step by its inputs: 64 hexadecimal digits."""
        return digest(
            {"step": self.name, "revision": self.revision, "options": self.options, "needs": {need.name: need.key for need in self.needs}}
        )


def execute(steps: Sequence[Step], store: StepStore, sink: Sink, *, jobs: int = 2) -> dict[str, Path]:
    """Bring every step to its end and return the output directories by step name.

    `steps` is in an order in which every step follows what it needs. A step whose output is only wanted by finished steps is still
    reported, as cached, but never run.

    Raises:
        ObeliskError: the first error of a step; steps that are running are finished first, none is started any more.
    """
    outputs: dict[str, Path] = {}
    waiting = list(steps)
    running: dict[Future[tuple[str, Path]], str] = {}
    with ThreadPoolExecutor(max_workers=jobs) as pool:
        while waiting or running:
            for step in tuple(waiting):  # in order, so what is found done here frees what follows it in the same pass
                if any(need.name not in outputs for need in step.needs):
                    continue
                waiting.remove(step)
                found = store.find_step(step.key)
                if found is not None:
                    outputs[step.name] = found
                    sink(Started(step.name, step.title))
                    sink(Finished(step.name, 0.0, cached=True))
                else:
                    needs = {need.name: outputs[need.name] for need in step.needs}
                    running[pool.submit(_run, step, store, sink, needs)] = step.name
            if not running:
                continue
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                running.pop(future)
                name, output = future.result()
                outputs[name] = output
    return outputs


def _run(step: Step, store: StepStore, sink: Sink, needs: Mapping[str, Path]) -> tuple[str, Path]:
    began = monotonic()
    with task(sink, step.name, step.title) as running:
        output, waited = store.build_step(step.key, lambda work: step.produce(work, needs, running))
        if waited:
            running.detail = f"made by another process, {monotonic() - began:.1f} s"
    return step.name, output
