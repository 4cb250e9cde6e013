"""Steps: produced once, published whole, distrusted when the machine may have lost them."""

import multiprocessing
import os
import threading
import time
from pathlib import Path

import pytest
from store_samples import DAY_S, key, make_old, names_below, write

from obelisk.errors import CommandError, StateError
from obelisk.events import silent
from obelisk.store import Store, session, steps
from obelisk.system import filesystem


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


def produce(output: Path) -> None:
    write(output / "result.json", b"{}")
    (output / "tree").mkdir()
    write(output / "tree" / "file", b"content")


def never(_output: Path) -> None:
    pytest.fail("the step was there already")


def test_a_step_is_produced_once(store: Store) -> None:
    output, cached = store.build_step(key("base"), produce)
    assert not cached
    assert (output / "tree" / "file").read_bytes() == b"content"
    assert store.build_step(key("base"), never) == (output, True)
    assert Store.open(store.root).find_step(key("base")) == output


def test_a_step_that_was_not_built_is_not_found(store: Store) -> None:
    assert store.find_step(key("base")) is None


@pytest.mark.parametrize("error", [ValueError("wrong"), CommandError(("mkfs",), 1, "wrong"), KeyboardInterrupt()])
def test_a_failing_step_leaves_nothing_and_can_be_tried_again(store: Store, error: BaseException) -> None:
    def fail(output: Path) -> None:
        produce(output)
        raise error

    with pytest.raises(type(error)) as caught:
        store.build_step(key("base"), fail)
    assert caught.value is error
    assert not names_below(store.root / "steps")
    assert not names_below(store.root / "locks")
    assert not list(store.root.glob("work/*/*"))
    assert store.build_step(key("base"), produce)[1] is False


def test_what_resists_its_removal_does_not_hide_the_error_and_goes_later(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def resist(path: Path) -> None:
        raise CommandError(("rm",), 1, f"{path}: Read-only file system")

    def fail(place: Path) -> None:
        write(place / "file", b"content")
        message = "wrong"
        raise ValueError(message)

    with monkeypatch.context() as patch:
        patch.setattr(session, "remove_tree", resist)
        with pytest.raises(ValueError, match="wrong"):
            store.build_step(key("base"), fail)
        with pytest.raises(ValueError, match="wrong"), store.workspace() as scratch:
            fail(scratch)
    assert not names_below(store.root / "steps")
    assert len(list(store.root.glob("work/*/*"))) == 2
    store.close()
    Store.open(store.root)
    assert not names_below(store.root / "work")


def test_steps_may_be_built_within_steps(store: Store) -> None:
    def outer(output: Path) -> None:
        inner, _ = store.build_step(key("inner"), produce)
        (output / "copy").write_bytes((inner / "result.json").read_bytes())

    assert (store.build_step(key("outer"), outer)[0] / "copy").read_bytes() == b"{}"


def test_of_two_threads_one_produces_and_both_get_the_result(store: Store) -> None:
    produced: list[int] = []

    def slowly(output: Path) -> None:
        produced.append(1)
        time.sleep(0.05)
        produce(output)

    results: list[tuple[Path, bool]] = []
    threads = [threading.Thread(target=lambda: results.append(store.build_step(key("base"), slowly))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(produced) == 1
    assert sorted(cached for _, cached in results) == [False, True, True, True]


def _build_in_process(root: Path, log: Path) -> None:
    def slowly(output: Path) -> None:
        with log.open("a") as out:
            out.write("produced\n")
        time.sleep(0.2)
        produce(output)

    with Store.open(root) as store:
        for name in ("a", "b"):
            store.build_step(key(name), slowly)


def test_of_two_processes_one_produces_and_both_go_on(tmp_path: Path) -> None:
    # Both make the store, too: at the beginning there is none.
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_build_in_process, args=(tmp_path / "store", tmp_path / "log")) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert (tmp_path / "log").read_text() == "produced\n" * 2
    assert Store.open(tmp_path / "store").verify(sink=silent) == ()


@pytest.mark.parametrize(
    "harm",
    [
        lambda step: (step / "output" / "result.json").write_bytes(b"[]"),
        lambda step: (step / "output" / "result.json").unlink(),
        lambda step: (step / "output" / "large").write_bytes(b"short"),
        lambda step: (step / "step.json").write_bytes(b""),
        lambda step: (step / "step.json").unlink(),
        lambda step: (step / "step.json").write_text("{}"),
    ],
)
def test_a_step_whose_result_files_changed_is_made_anew(store: Store, harm: object) -> None:
    def with_large(output: Path) -> None:
        produce(output)
        write(output / "large", bytes(steps.SMALL_BYTES + 1))

    output, _ = store.build_step(key("base"), with_large)
    assert callable(harm)
    harm(output.parent)
    assert store.find_step(key("base")) is None
    assert store.build_step(key("base"), with_large)[1] is False
    assert store.find_step(key("base")) is not None


def test_after_a_power_cut_only_sealed_steps_are_trusted(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.build_step(key("sealed"), produce)
    store.seal()
    store.build_step(key("not sealed"), produce)
    assert store.find_step(key("not sealed")) is not None
    monkeypatch.setattr(steps, "boot_id", lambda: "the next boot")
    assert store.find_step(key("sealed")) is not None
    assert store.find_step(key("not sealed")) is None
    store.seal()
    assert store.find_step(key("not sealed")) is None, "what was lost must not be sealed afterwards"
    assert store.verify(sink=silent) == ()
    assert store.build_step(key("not sealed"), produce)[1] is False
    assert store.find_step(key("not sealed")) is not None


def test_without_a_boot_id_each_step_is_flushed_before_it_is_published(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[Path] = []
    monkeypatch.setattr(steps, "boot_id", lambda: "")
    monkeypatch.setattr(steps, "sync_filesystem", flushed.append)
    store.build_step(key("base"), produce)
    assert len(flushed) == 1
    assert store.find_step(key("base")) is not None


def test_a_failing_disk_seals_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> None:
        raise OSError(5, "Input/output error", str(path))

    output, _ = store.build_step(key("base"), produce)
    monkeypatch.setattr(steps, "sync_filesystem", fail)
    with pytest.raises(StateError) as caught:
        store.seal()
    assert caught.value.code == "disk-failing"
    assert not (output.parent / "sealed").exists()


def test_an_alias_names_the_same_step(store: Store) -> None:
    output, _ = store.build_step(key("base"), produce)
    store.alias_step(key("same base"), key("base"))
    store.alias_step(key("again the same"), key("same base"))
    for name in ("same base", "again the same"):
        assert store.find_step(key(name)) == output
        assert store.build_step(key(name), never) == (output, True)
    assert not names_below(store.root / "locks")


def test_an_alias_leaves_a_finished_step_alone_and_replaces_a_lost_one(store: Store) -> None:
    first, _ = store.build_step(key("first"), produce)
    second, _ = store.build_step(key("second"), produce)
    store.alias_step(key("first"), key("second"))
    assert store.find_step(key("first")) == first
    (first / "result.json").unlink()
    store.alias_step(key("first"), key("second"))
    assert store.find_step(key("first")) == second


def test_an_alias_of_nothing_is_refused(store: Store) -> None:
    with pytest.raises(StateError) as caught:
        store.alias_step(key("alias"), key("nothing"))
    assert caught.value.code == "step-missing"


def test_a_dangling_alias_is_made_anew(store: Store) -> None:
    output, _ = store.build_step(key("base"), produce)
    store.alias_step(key("alias"), key("base"))
    (output / "result.json").unlink()
    assert store.find_step(key("alias")) is None
    assert store.build_step(key("alias"), produce)[1] is False
    assert store.find_step(key("alias")) is not None


def test_finding_a_step_records_its_use(store: Store) -> None:
    store.build_step(key("base"), produce)
    store.alias_step(key("alias"), key("base"))
    make_old(store)
    store.find_step(key("alias"))
    since = time.time() - DAY_S
    assert (store.root / "steps" / key("base") / "step.json").stat().st_mtime > since
    assert (store.root / "steps" / key("alias")).lstat().st_mtime > since


def test_a_workspace_is_removed_whatever_happens_in_it(store: Store) -> None:
    def use() -> None:
        with store.workspace() as scratch:
            assert scratch.is_relative_to(store.root)
            (scratch / "directory").mkdir(mode=0o500)
            raise ValueError

    with pytest.raises(ValueError, match=r"^$"):
        use()
    assert not list(store.root.glob("work/*/*"))


def test_open_removes_what_dead_processes_left_and_spares_the_living(store: Store) -> None:
    dead = store.root / "work" / "1-dead"
    dead.mkdir()
    write(dead / "file", b"left over")
    with store.workspace() as scratch:
        Store.open(store.root)
        assert scratch.is_dir()
        assert not dead.exists()


def test_space_and_boot_are_read_from_the_system(tmp_path: Path) -> None:
    left = filesystem.space(tmp_path / "not" / "yet")
    assert left.mount_point.is_mount()
    assert 0 < left.free_bytes <= left.total_bytes
    assert len(filesystem.boot_id()) == 36
    filesystem.sync_filesystem(tmp_path)
    with pytest.raises(FileNotFoundError):
        filesystem.sync_filesystem(tmp_path / "missing")


def test_the_tree_of_a_step_is_closed_to_other_users(store: Store) -> None:
    store.build_step(key("base"), produce)
    for name in ("steps", "work"):
        assert (store.root / name).stat().st_mode & 0o077 == 0
    assert os.access(store.root, os.X_OK)
