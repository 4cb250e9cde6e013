"""What ships with the spec room holds what it promises: templates, examples, and the reference."""

import json
import re
import tomllib
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from obelisk.errors import InputError
from obelisk.model.spec import Role, Spec
from obelisk.spec import digest_inputs, load, schema, template, tree_entries
from obelisk.spec.reference import reference

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted(path.parent for place in ("examples", "examples/apps") for path in ROOT.glob(f"{place}/*/obelisk.toml"))


def written(directory: Path, name: str, role: Role) -> Spec:
    """A new spec on disk, as `obelisk new` writes it."""
    for path, (text, mode) in template(name, role).items():
        file = directory / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(mode)
        for above in Path(path).parents:
            (directory / above).chmod(0o755)
    return load(directory)


@pytest.mark.parametrize("role", Role)
def test_a_new_spec_loads_and_says_its_name_role_and_how_it_is_tested(tmp_path: Path, role: Role) -> None:
    spec = written(tmp_path, "my-shop", role)
    assert (spec.name, spec.role) == ("my-shop", role)
    assert bool(spec.health) == (role is not Role.APP)
    assert spec.tests
    assert tree_entries(spec)
    assert len(digest_inputs(spec)) == 64
    assert "@name@" not in "".join(text for text, _mode in template("my-shop", role).values())


@pytest.mark.parametrize("role", Role)
def test_a_new_spec_is_short_and_every_file_beside_it_is_used(tmp_path: Path, role: Role) -> None:
    spec = written(tmp_path, "shop", role)
    text = (tmp_path / "obelisk.toml").read_text()
    assert len(text.splitlines()) < 50
    laid = {entry.source.relative_to(tmp_path).as_posix() for entry in tree_entries(spec)}
    referred = laid | {script.source.relative_to(tmp_path).as_posix() for script in spec.scripts} | {"obelisk.toml", ".obelisk.schema.json"}
    assert set(template("shop", role)) <= referred
    assert json.loads((tmp_path / ".obelisk.schema.json").read_text()) == schema()
    assert text.startswith("#:schema .obelisk.schema.json\n")


@pytest.mark.parametrize("name", ["", "My Shop", "shop\n", "a" * 25, "-"])
def test_a_name_that_a_spec_cannot_have_is_refused_before_anything_is_written(name: str) -> None:
    with pytest.raises(InputError, match="cannot be the name of a spec"):
        template(name, Role.SERVER)


def test_the_longest_name_still_makes_a_valid_spec(tmp_path: Path) -> None:
    assert written(tmp_path, "a" * 24, Role.SERVER).name == "a" * 24


def test_the_examples_are_there() -> None:
    assert {"minimal", "postgres", "web"} <= {path.name for path in EXAMPLES}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_every_example_is_valid_by_schema_and_parser_and_finds_the_schema(example: Path) -> None:
    text = (example / "obelisk.toml").read_text()
    assert list(Draft202012Validator(schema()).iter_errors(tomllib.loads(text))) == []
    spec = load(example)
    assert spec.name == example.name
    assert bool(spec.health) == (spec.role is not Role.APP)
    hint = re.match(r"#:schema (.+)\n", text)
    assert hint is not None
    assert json.loads((example / hint[1]).read_text()) == schema()


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_units_that_an_example_enables_itself_are_in_its_tree(example: Path) -> None:
    spec = load(example)
    laid = {entry.path for entry in tree_entries(spec)}
    assert {f"/etc/systemd/system/{unit}" for unit in spec.services.enable} <= laid


def test_the_reference_in_docs_is_current() -> None:
    current = (ROOT / "docs/spec.md").read_text()
    assert current == reference(), "run: python -m obelisk.spec.reference > docs/spec.md"


def test_the_reference_names_every_key_and_every_error_code() -> None:
    text = reference()
    assert all(f"`{key}`" in text or f"`[{key}" in text or f"`[[{key}" in text for key in schema()["properties"])
    source = "".join(path.read_text() for path in (ROOT / "src/obelisk/spec").glob("*.py") if path.name != "reference.py")
    codes = set(re.findall(r'"(spec-[a-z-]+)"', source))
    assert codes == set(re.findall(r"\| `(spec-[a-z-]+)` \|", text))
