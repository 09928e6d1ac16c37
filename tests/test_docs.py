"""The documentation says what is so: settings, routes, variables, commands and files are compared with the code."""

import ast
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
import typer
import yaml
from pydantic import BaseModel

from serve_app.api.app import create_app
from serve_app.cli import app as command_line
from serve_app.cli.cluster import DEFAULT_ENVIRONMENT
from serve_app.config import AppConfig, StorageConfig
from serve_app.metrics import CATALOGUE
from serve_app.parts import Parts
from tests.databases import opened

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
DOCUMENTS = ["README.md", "cluster/README.md"]
METHODS = {"get", "post", "put", "patch", "delete"}


def section(title: str) -> str:
    """The text under a heading, up to the next of its level or above."""
    match = re.search(rf"^(#+) {re.escape(title)}$", README, re.MULTILINE)
    assert match, f"README.md has no section {title!r}"
    rest = README[match.end() :]
    end = re.search(rf"^#{{1,{len(match[1])}}} ", rest, re.MULTILINE)
    return rest[: end.start()] if end else rest


def rows(title: str) -> list[list[str]]:
    """The cells of the tables in a section, without their heads."""
    table = [line for line in section(title).splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table]
    heads = {index for index, line in enumerate(table) if line.startswith("|---")}
    return [row for index, row in enumerate(cells) if index not in heads and index + 1 not in heads]


def blocks(document: str, *languages: str) -> list[str]:
    found = re.findall(r"^```(\w+)\n(.*?)^```$", (ROOT / document).read_text(), re.MULTILINE | re.DOTALL)
    return [text for language, text in found if language in languages]


def words_in_backticks(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def settings(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Each dotted name with its default, as one would write it in YAML."""
    for name, field in model.model_fields.items():
        default = field.get_default(call_default_factory=True)
        if isinstance(default, BaseModel):
            yield from settings(type(default), f"{prefix}{name}.")
        else:
            yield prefix + name, str(default) if isinstance(default, str | Path) else json.dumps(default)


def source_files() -> list[Path]:
    return [*(ROOT / "serve_app").rglob("*.py"), *(ROOT / "deployments").rglob("*.py")]


def test_every_setting_is_described_with_its_default() -> None:
    described = {words_in_backticks(name)[0]: words_in_backticks(default)[0] for name, default, _ in rows("`args:`")}

    assert described == dict(settings(AppConfig))


def test_every_route_is_described(tmp_path: Path) -> None:
    config = AppConfig(storage=StorageConfig(folder=tmp_path))

    async def check_parts() -> dict[str, str]:
        return {}

    with opened(config.storage.resolved_database_url) as database:
        # Nothing is called: only the routes are looked at.
        document = create_app(config, cast(Parts, None), database, check_parts).openapi()
    routes = {
        f"{method.upper()} {path}" for path, item in document["paths"].items() for method in item if method in METHODS
    }

    assert {words_in_backticks(route)[0] for route, _ in rows("Routes")} == routes


def test_every_environment_variable_of_ours_is_described() -> None:
    read = {name for file in source_files() for name in re.findall(r"RAYCONTEUR_[A-Z_]+[A-Z]", file.read_text())}
    described = {name for row in rows("Environment variables") for name in words_in_backticks(row[0])}

    assert read <= described
    assert {name for name in described if name.startswith("RAYCONTEUR_")} == read


def test_what_serve_sets_for_ray_is_described_with_its_value() -> None:
    described = {words_in_backticks(row[0])[0]: row[1].strip("`") for row in rows("Environment variables")}

    assert DEFAULT_ENVIRONMENT.items() <= described.items()


def test_every_deployment_is_described() -> None:
    configured = yaml.safe_load((ROOT / "serve_config.yaml").read_text())["applications"][0]["deployments"]

    assert [words_in_backticks(row[0])[0] for row in rows("What runs")] == [each["name"] for each in configured]


def test_every_key_that_the_yaml_turns_is_described() -> None:
    configured = yaml.safe_load((ROOT / "serve_config.yaml").read_text())["applications"][0]["deployments"]
    described = set(words_in_backticks(section("`deployments:`")))

    assert {key for each in configured for key in each} - {"name"} <= described


def test_every_command_is_described() -> None:
    commands = {words_in_backticks(row[0])[0] for row in rows("The command line")}
    described = {re.match(r"rayconteur((?: [a-z]+)+)", command)[1].strip() for command in commands}  # type: ignore[index]

    assert described == set(parsers())


def test_every_make_target_is_described() -> None:
    targets = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))

    assert {words_in_backticks(row[0])[0].removeprefix("make ") for row in rows("Development")} == targets


def test_the_map_of_files_is_the_territory() -> None:
    described = {words_in_backticks(row[0])[0] for row in rows("The map of files")}
    for path in described:
        assert (ROOT / path).is_dir() if path.endswith("/") else (ROOT / path).is_file(), f"there is no {path}"

    parts = {
        f"{folder}/{path.name}{'/' if path.is_dir() else ''}"
        for folder in ("serve_app", "deployments")
        for path in (ROOT / folder).iterdir()
        if not path.name.startswith("_")
    }
    assert parts <= described


def test_the_reading_order_names_every_part_of_the_package() -> None:
    order = ast.get_docstring(ast.parse((ROOT / "serve_app/__init__.py").read_text())) or ""
    named = re.findall(r"^([a-z_]+(?:\.py|/)) ", order, re.MULTILINE)
    there = {
        path.name + ("/" if path.is_dir() else "")
        for path in (ROOT / "serve_app").iterdir()
        if not path.name.startswith("_")
    }

    assert set(named) == there


def test_links_within_the_readme_lead_somewhere() -> None:
    headings = re.findall(r"^#+ (.*)$", README, re.MULTILINE)
    anchors = {re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings}

    assert set(re.findall(r"\]\(#([^)]+)\)", README)) <= anchors


def test_every_metric_of_ours_is_described() -> None:
    described = {
        words_in_backticks(name)[0]: (kind, tuple(words_in_backticks(labels)))
        for name, kind, labels, _ in rows("Metrics")
    }

    assert described == {each.name: (each.kind, each.labels) for each in CATALOGUE}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_code_blocks_parse(document: str) -> None:
    for text in blocks(document, "python"):
        compile(text, document, "exec")
    for text in blocks(document, "json"):
        json.loads(text)
    for text in blocks(document, "yaml"):
        yaml.safe_load(text)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_in_code_blocks_exist_with_their_options(document: str) -> None:
    commands = [words for text in blocks(document, "sh", "console") for words in rayconteur_commands(text)]
    assert commands
    for words in commands:
        name = next((name for name in parsers() if words[: len(name.split())] == name.split()), None)
        assert name, f"rayconteur has no command {' '.join(words)!r}"
        # Raises a UsageError for an option that is not there, and for arguments that are missing or too many.
        parsers()[name].make_context(name, words[len(name.split()) :])


@pytest.mark.parametrize("document", DOCUMENTS)
def test_make_targets_in_code_blocks_exist(document: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for text in blocks(document, "sh", "console"):
        assert set(re.findall(r"^(?:\w*\$ +)?make ([a-z-]+)", text, re.MULTILINE)) <= targets


def rayconteur_commands(text: str) -> Iterator[list[str]]:
    for line in text.replace("\\\n", " ").splitlines():
        if "bin/rayconteur " in line:
            yield shlex.split(line.split("bin/rayconteur ")[1])


def parsers() -> dict[str, typer.core.TyperCommand]:
    """Every command that does something, by its words."""
    found: dict[str, typer.core.TyperCommand] = {}

    def collect(group: typer.core.TyperGroup, before: tuple[str, ...]) -> None:
        for name, command in group.commands.items():
            if isinstance(command, typer.core.TyperGroup):
                collect(command, (*before, name))
            else:
                found[" ".join((*before, name))] = cast(typer.core.TyperCommand, command)

    collect(cast(typer.core.TyperGroup, typer.main.get_command(command_line)), ())
    return found
