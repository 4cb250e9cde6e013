"""The published schema and the reader say the same, and the schema is fit to be published."""

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from spec_samples import EVERYTHING, load_text, refused, write

from obelisk.model.spec import Compression, Role, Spec, TestCase, User
from obelisk.spec import load, schema
from obelisk.spec.problems import Findings
from obelisk.spec.reader import inline, read
from obelisk.spec.shape import Kind, Shape, spec_shape

VALIDATOR = Draft202012Validator(schema())

ACCEPTED = [
    'name = "a"',
    'name = "a-1"\nversion = "1.2-rc3"',
    'name = "a"\ndistribution = "debian:forky"',
    'name = "a"\npackages = []\nscripts = []',
    'name = "a"\nlocale = "C"\ntimezone = "America/Argentina/Buenos_Aires"',
    'name = "a"\nfiles = {"/etc/x y" = {content = "1", mode = "755"}}',
    'name = "a"\n[health]\n[tests]\n[allow]\n[boot]\n[services]\n[users]',
    'name = "a"\nhealth.x.tcp = "db.example:1"',
    'name = "a"\nusers = {a = {uid = 59999}, b = {uid = 1000, gid = 1}}',
    'name = "a"\nhealth = {x = {http = "http://localhost/", status = 599}, y = {http = "http://localhost/", status = 100}}',
    'name = "a"\nrelease = {repositories = ["http://a"], root = "keys/root.json"}',
    EVERYTHING,
]

REFUSED = [
    "",
    "name = 1",
    "name = true",
    "name = 1.5",
    'name = "Shop"',
    'name = "-shop"',
    'name = "shop-"',
    'name = "1shop"',
    f'name = "{"a" * 25}"',
    'name = "ä"',
    'nam = "a"',
    'name = "a"\nversion = "1_2"',
    'name = "a"\nversion = "1+3"',
    'name = "a"\nversion = ""',
    'name = "a"\nversion = 1',
    'name = "a"\ndistribution = "debian"',
    'name = "a"\ndistribution = "debian:sid"',
    'name = "a"\nrole = "desktop"',
    'name = "a"\npackages = "nginx"',
    'name = "a"\npackages = ["nginx=1.2"]',
    'name = "a"\npackages = ["nginx-"]',
    'name = "a"\npackages = ["nginx:i386"]',
    'name = "a"\npackages = ["nginx", "nginx"]',
    'name = "a"\npackages = [1]',
    'name = "a"\npackages = [["nginx"]]',
    'name = "a"\nrecommends = 1',
    'name = "a"\nrecommends = "true"',
    'name = "a"\ntree = "/srv"',
    'name = "a"\ntree = "../tree"',
    'name = "a"\ntree = "tree/.."',
    'name = "a"\nhostname = "my_host"',
    'name = "a"\nhostname = ".host"',
    f'name = "a"\nhostname = "{"a.b" * 25}"',
    'name = "a"\nlocale = "german"',
    'name = "a"\ntimezone = "../etc/passwd"',
    'name = "a"\nsize_budget = "2GB"',
    'name = "a"\nsize_budget = "2"',
    'name = "a"\nsize_budget = "0G"',
    'name = "a"\nsize_budget = 2',
    'name = "a"\ncompression = "gzip"',
    'name = "a"\nmirror = "mirror.example"',
    'name = "a"\nmirror = "http://"',
    'name = "a"\nmirror = "ftp://mirror.example/"',
    'name = "a"\nsnapshot = "http://a b/"',
    'name = "a"\nboot = "fast"',
    'name = "a"\nboot.loader = "grub"',
    'name = "a"\nboot.cmdline = "quiet"',
    'name = "a"\nboot.cmdline = ["a b"]',
    'name = "a"\nboot.cmdline = [""]',
    'name = "a"\nboot.cmdline = [\'a="b"\']',
    'name = "a"\nservices.enable = ["nginx"]',
    'name = "a"\nservices.enable = ["../x.service"]',
    'name = "a"\nusers = []',
    'name = "a"\n[users.a]',
    'name = "a"\nusers.a.uid = 999',
    'name = "a"\nusers.a.uid = 60000',
    'name = "a"\nusers.a.uid = "1000"',
    'name = "a"\nusers.a.uid = true',
    'name = "a"\n[users.A]\nuid = 1000',
    'name = "a"\nusers.a = {uid = 1000, gid = 0}',
    'name = "a"\nusers.a = {uid = 1000, gid = true}',
    'name = "a"\nhealth.x = {http = "http://localhost/", status = 600}',
    'name = "a"\nusers.a = {uid = 1000, groups = ["a b"]}',
    'name = "a"\nusers.a = {uid = 1000, ssh_keys = "x"}',
    'name = "a"\nusers.a = {uid = 1000, shell = "bash"}',
    'name = "a"\nusers.a = {uid = 1000, comment = "a:b"}',
    'name = "a"\nusers.a = {uid = 1000, password = "secret"}',
    'name = "a"\nusers.a = {uid = 1000, password = "$1$abc$0123456789012345678901"}',
    'name = "a"\ngroups.a.gid = 1',
    'name = "a"\nfiles."etc/motd".content = ""',
    'name = "a"\nfiles."/etc/../motd".content = ""',
    'name = "a"\nfiles."/etc//motd".content = ""',
    'name = "a"\nfiles."/etc/motd/".content = ""',
    'name = "a"\nfiles."/".content = ""',
    'name = "a"\n[files."/etc/motd"]',
    'name = "a"\nfiles."/etc/motd" = {content = "", source = "files/motd"}',
    'name = "a"\nfiles."/etc/motd" = {content = "", mode = 0o644}',
    'name = "a"\nfiles."/etc/motd" = {content = "", mode = "0689"}',
    'name = "a"\nsources.x = {uri = "http://a/", suites = [], key = "keys/good.asc"}',
    'name = "a"\nsources.x = {uri = "http://a/", suites = ["s"], components = ["main"]}',
    'name = "a"\nscripts = ["scripts/build.sh"]',
    'name = "a"\nscripts = {run = "scripts/build.sh"}',
    'name = "a"\n[[scripts]]',
    'name = "a"\n[health.x]',
    'name = "a"\nhealth.x = {unit = "a.service", tcp = "localhost:1"}',
    'name = "a"\nhealth.x = {unit = "a.service", status = 200}',
    'name = "a"\nhealth.x = {tcp = "localhost:1", contains = ""}',
    'name = "a"\nhealth.x.http = "https://localhost/"',
    'name = "a"\nhealth.x.http = "localhost"',
    'name = "a"\nhealth.x = {http = "http://localhost/", status = 99}',
    'name = "a"\nhealth.x.tcp = "localhost"',
    'name = "a"\nhealth.x.command = " "',
    'name = "a"\nhealth.x = {command = "true", timeout = 30}',
    'name = "a"\nhealth.x = {command = "true", timeout = "2 minutes"}',
    'name = "a"\nhealth.x = {command = "true", timeout = "0s"}',
    'name = "a"\n[health."x y"]\ncommand = "true"',
    'name = "a"\n[tests.x]\nexpect = "y"',
    'name = "a"\nallow.setuid = ["usr/bin/x"]',
    'name = "a"\nallow = ["/usr/bin/x"]',
    'name = "a"\nname2 = 1979-05-27',
    "name = 1979-05-27T07:32:00Z",
]


def test_the_schema_is_a_valid_schema_with_a_description_and_example_of_every_key() -> None:
    Draft202012Validator.check_schema(schema())

    def visit(shape: Shape, at: str) -> None:
        for key, inner in shape.properties.items():
            assert inner.description.endswith("."), f"{at}.{key} has no description"
            section = inner.kind is Kind.TABLE and not inner.entries
            assert inner.examples or section, f"{at}.{key} has no example"
            visit(inner, f"{at}.{key}")
        for nested in filter(None, (shape.entries, shape.items)):
            visit(nested, at)

    visit(spec_shape(), "")


def test_a_copy_of_the_schema_may_be_changed_by_its_owner() -> None:
    schema()["properties"].clear()
    assert "name" in schema()["properties"]


def nested(path: tuple[str, ...], value: dict[str, Any]) -> dict[str, Any]:
    """A document with `value` at `path` and a name."""
    for key in reversed(path):
        value = {key: value}
    return {"name": "a", **value}


def examples(shape: Shape, path: tuple[str, ...], fixed: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A document for every example of every key, with `fixed` beside it where its table wants that."""
    for key, inner in shape.properties.items():
        rivals = {*shape.choice, *shape.needs} if key in {*shape.choice, *shape.needs} else set()
        beside = {other: value for other, value in fixed.items() if other not in rivals}
        beside |= {need: shape.properties[need].examples[0] for need in shape.needs.get(key, ())}
        for value in inner.examples:
            yield nested(path, beside | {key: value})
        if inner.entries:
            name, entry = next(iter(inner.examples[0].items()))
            yield from examples(inner.entries, (*path, key, name), entry)
        elif inner.kind is Kind.TABLE:
            yield from examples(inner, (*path, key), {need: inner.properties[need].examples[0] for need in inner.required})


def test_every_example_of_the_schema_is_accepted_where_it_stands() -> None:
    documents = list(examples(spec_shape(), (), {}))
    assert len(documents) > 50
    for document in documents:
        findings = Findings()
        read(document, spec_shape(), findings)
        assert ([error.message for error in VALIDATOR.iter_errors(document)], findings.problems) == ([], []), document


@pytest.mark.parametrize("text", ACCEPTED)
def test_schema_and_parser_accept_the_same(tmp_path: Path, text: str) -> None:
    assert list(VALIDATOR.iter_errors(tomllib.loads(text))) == []
    assert load_text(tmp_path, text).file == tmp_path / "obelisk.toml"


@pytest.mark.parametrize("text", REFUSED)
def test_schema_and_parser_refuse_the_same(tmp_path: Path, text: str) -> None:
    assert not VALIDATOR.is_valid(tomllib.loads(text))
    assert refused(tmp_path, text).code in {"spec-key", "spec-missing", "spec-value", "spec-conflict"}


JUNK: st.SearchStrategy[Any] = st.one_of(
    st.none(), st.booleans(), st.integers(-1, 70000), st.just(1.5), st.sampled_from(["", "a", "/a", "a.service", "1s", "..", "x" * 300])
)
JUNK = st.one_of(JUNK, st.lists(JUNK, max_size=2), st.dictionaries(st.sampled_from(["a", "run", "/x"]), JUNK, max_size=2))


def documents(shape: Shape) -> st.SearchStrategy[Any]:
    """Values that are mostly like `shape`, so that what is wrong is wrong deep inside as well."""
    like: st.SearchStrategy[Any]
    if shape.kind is Kind.TABLE and shape.entries:
        names = st.sampled_from(["a", "/etc/a", "/etc/..", "A b"])
        like = st.dictionaries(names, documents(shape.entries), max_size=2)
    elif shape.kind is Kind.TABLE:
        keys = {key: documents(inner) for key, inner in shape.properties.items()}
        required = {key: keys.pop(key) for key in shape.required}
        like = st.fixed_dictionaries(required, optional=keys | {"unknown": st.just(1)} if shape.required == () else keys)
    elif shape.items:
        like = st.lists(documents(shape.items), max_size=2)
    else:
        like = st.sampled_from([*shape.examples, *([shape.default] if shape.default is not None else [])] or ["a"])
    return st.integers(0, 15).flatmap(lambda number: JUNK if number == 0 else like)


@settings(max_examples=150, deadline=None)
@given(documents(spec_shape()).filter(lambda document: isinstance(document, dict)))
def test_the_reader_refuses_exactly_what_the_schema_refuses(document: dict[str, Any]) -> None:
    findings = Findings()
    read(document, spec_shape(), findings)
    assert bool(findings.problems) == (not VALIDATOR.is_valid(document))


def test_absent_keys_mean_what_the_model_says_they_mean(tmp_path: Path) -> None:
    spec = load_text(
        tmp_path, 'name = "a"\nusers.u.uid = 1000\ntests.t.command = "true"\nfiles."/etc/x".content = ""\nhealth.h.command = "x"'
    )
    defaults = Spec(file=spec.file, name="a", version="1", distribution=spec.distribution, role=Role.SERVER)
    for name in Spec.__slots__:
        if name not in {"users", "tests", "files", "health"}:
            assert getattr(spec, name) == getattr(defaults, name), name
    assert str(spec.distribution) == "debian:trixie"
    assert spec.compression is Compression.NONE
    assert spec.users == (User("u", 1000, home="/home/u"),)
    assert spec.tests == (TestCase("t", "true"),)
    assert (spec.files[0].mode, spec.files[0].owner, spec.files[0].group) == (0o644, "root", "root")
    assert spec.health[0].timeout_s == 120


@pytest.mark.parametrize("keyword", ["format", "anyOf", "not"])
def test_a_keyword_that_the_reader_does_not_know_is_refused_rather_than_ignored(monkeypatch: pytest.MonkeyPatch, keyword: str) -> None:
    changed = schema()
    changed["properties"]["name"][keyword] = "x"
    monkeypatch.setattr("obelisk.spec.shape.schema", lambda: changed)
    with pytest.raises(ValueError, match=keyword):
        spec_shape.__wrapped__()


@given(
    st.recursive(
        st.one_of(
            st.booleans(),
            st.integers(),
            st.text(st.characters(exclude_characters="\r", codec="utf-8", min_codepoint=10).filter(lambda c: c == "\n" or c.isprintable())),
        ),
        lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text('a.é" '), inner)),
        max_leaves=5,
    )
)
def test_examples_are_written_as_toml(value: object) -> None:
    assert tomllib.loads(f"x = {inline(value)}") == {"x": value}


def test_a_spec_may_be_named_by_its_file_or_its_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "shop", 'name = "a"')
    monkeypatch.chdir(tmp_path)
    spec = load(Path("shop"))
    assert spec == load(Path("shop/obelisk.toml")) == load(tmp_path / "shop")
    assert spec.file == tmp_path / "shop/obelisk.toml"
    assert spec.lock_file == tmp_path / "shop/obelisk.lock"
