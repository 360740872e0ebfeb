"""The documents against the code: what one has and the other lacks is a failure. No database."""

from __future__ import annotations

import ast
import configparser
import json
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import cast
from urllib.parse import unquote

import click
import pytest

from service import errors, routes, statements
from service.__main__ import main
from service.metrics import Metrics
from service.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
SOURCES = sorted(path for path in (ROOT / "service").rglob("*.py") if "__pycache__" not in path.parts)


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def rows(name: str) -> list[list[str]]:
    """The rows of a document's tables, cell by cell; a bar within `code` divides no cells."""
    lines = [line for line in text(name).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"\|(?=(?:[^`]*`[^`]*`)*[^`]*$)", line)[1:-1]] for line in lines]


def refusals(base: type[errors.Refusal] = errors.Refusal) -> Iterator[type[errors.Refusal]]:
    for refusal in base.__subclasses__():
        yield refusal
        yield from refusals(refusal)


def commands(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    if isinstance(command, click.Group):
        for name, below in command.commands.items():
            yield from commands(below, f"{path} {name}")
    else:
        yield path, command


def anchor(heading: str) -> str:
    """The fragment under which a heading is found, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def prose(source: str) -> str:
    """A document without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", source, flags=re.MULTILINE | re.DOTALL)


def test_every_setting_has_its_row_and_no_row_is_without_one() -> None:
    told = [match[1] for row in rows("docs/settings.md") if (match := re.fullmatch(r"`BRIDGELOG_(\w+)`", row[0]))]
    assert sorted(told) == sorted(field.name.upper() for field in fields(Settings))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_setting_is_named_that_does_not_exist(document: Path) -> None:
    known = {field.name.upper() for field in fields(Settings)}
    named = set(re.findall(r"BRIDGELOG_([A-Z]\w*)", document.read_text(encoding="utf-8")))
    assert {name if name in known else name.removesuffix("_FILE") for name in named} <= known


def test_every_refusal_has_its_row_and_no_row_is_without_one() -> None:
    told = {(row[0].strip("`"), row[1], row[2]) for row in rows("docs/errors.md") if row[0].startswith("`")}
    assert told == {(refusal.__name__, str(refusal.status), refusal().message) for refusal in refusals()}


def test_every_message_that_http_can_give_is_in_the_reference() -> None:
    # Of users that are added, which only a command does.
    told = [refusal for refusal in refusals() if refusal not in {errors.UsernameTaken, errors.UserExists}]
    reference = text("docs/api.md")
    assert [refusal().message for refusal in told if f"`{refusal().message}`" not in reference] == []


def test_every_metric_has_its_row_and_no_row_is_without_one() -> None:
    ours = ("`bridgelog_", "`process_")
    told = {(row[0].strip("`"), row[1]) for row in rows("docs/metrics.md") if row[0].startswith(ours)}
    families = Metrics(pool_size=1).registry.collect()
    ends = {"counter": "_total"}
    assert told == {(family.name + ends.get(family.type, ""), family.type) for family in families}


def test_every_log_event_has_its_row_and_no_row_is_without_one() -> None:
    table = text("docs/metrics.md").partition("## Log")[2]
    told = set(re.findall(r"^\| `([^`]+)` \| (\w+) \|", table, flags=re.MULTILINE))
    levels = {"debug": "debug", "info": "info", "warning": "warning", "error": "error", "exception": "error"}
    logged = {
        (cast("ast.Constant", call.args[0]).value, levels[call.func.attr])
        for source in SOURCES
        for call in ast.walk(ast.parse(source.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and isinstance(call.func.value, ast.Name)
        and call.func.value.id in {"log", "access"}
        and call.func.attr in levels  # and not a method of some other log
    }
    assert told == logged


@pytest.mark.parametrize(("path", "command"), [*commands(main, "bridgelog")], ids=str)
def test_every_command_and_option_is_told(path: str, command: click.Command) -> None:
    sections = re.split(r"^## ", text("docs/commands.md"), flags=re.MULTILINE)
    arguments = [
        argument.make_metavar(click.Context(command))
        for argument in command.params
        if argument.param_type_name == "argument"
    ]
    [section] = [section for section in sections if section.partition("\n")[0] == " ".join([path, *arguments])]
    told = re.findall(r"^\| `(--[a-z-]+)", section, flags=re.MULTILINE)
    assert told == [option.opts[0] for option in command.params if isinstance(option, click.Option)]


def test_no_command_is_told_that_does_not_exist() -> None:
    known = {path for path, _ in commands(main, "bridgelog")}
    told = {
        re.sub(r" [A-Z]+$", "", heading) for heading in re.findall(r"^## (.*)", text("docs/commands.md"), re.MULTILINE)
    }
    assert told == known


@pytest.mark.parametrize("route", [*routes.API, *routes.OPERATIONS], ids=lambda route: f"{route.method} {route.path}")
def test_every_route_is_in_the_reference(route: routes.Route) -> None:
    path = re.sub(r"\{(\w+):[^/]*\}", r"{\1}", route.path.replace("{8}", "").replace("{4}", "").replace("{12}", ""))
    shown = path if route in routes.OPERATIONS else f"…{path}"
    [row] = [
        row
        for row in rows("docs/api.md")
        if re.search(rf"`(?:{route.method} )?{re.escape(shown)}`", row[0]) and f"`{route.method} " in row[0]
    ][:1]
    assert row


def test_every_prefix_is_in_the_reference() -> None:
    assert [row[0].strip("`") for row in rows("docs/api.md") if row[0].startswith("`/api/")] == list(routes.PREFIXES)


def test_every_file_has_its_line_in_the_map_and_no_line_is_without_one() -> None:
    told = [
        match[1] for row in rows("ARCHITECTURE.md") if (match := re.fullmatch(r"\[.*\]\((service/.*\.py)\)", row[0]))
    ]
    assert sorted(told) == [str(source.relative_to(ROOT)) for source in SOURCES]


def test_the_layers_of_the_map_are_those_that_the_linter_checks() -> None:
    setup = configparser.ConfigParser(interpolation=None)
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    layers = setup["importlinter:contract:layers"]["layers"].replace("(", "").replace(")", "").strip()
    [told] = re.findall(r"^## Layers$.*?^```$(.*?)^```$", text("ARCHITECTURE.md"), flags=re.MULTILINE | re.DOTALL)
    assert told.strip() == layers


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(document: Path) -> None:
    source = prose(document.read_text(encoding="utf-8"))
    broken = []
    for target in re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", source):
        path, _, fragment = target.partition("#")
        if re.match(r"https?:", target):
            continue
        there = (document.parent / unquote(path)).resolve() if path else document
        if not there.exists():
            broken.append(target)
        elif fragment:
            headings = re.findall(r"^#+ (.*)", prose(there.read_text(encoding="utf-8")), re.MULTILINE)
            if unquote(fragment) not in {anchor(heading) for heading in headings}:
                broken.append(target)
    assert broken == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_test_that_is_named_exists(document: Path) -> None:
    named = re.findall(r"`tests/(\w+\.py)::(\w+)`", document.read_text(encoding="utf-8"))
    assert [(file, test) for file, test in named if not re.search(rf"def {test}\(", text(f"tests/{file}"))] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_make_target_that_is_named_exists(document: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):.*##", text("Makefile"), flags=re.MULTILINE))
    named = re.findall(r"(?:`|^|\$ )make ([a-z][a-z-]*)", document.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert set(named) <= targets


def test_the_examples_of_json_are_json() -> None:
    for document in DOCUMENTS:
        for example in re.findall(
            r"^```json$(.*?)^```$", document.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
        ):
            json.loads(example)


def test_the_example_of_a_statement_is_one() -> None:
    [example] = re.findall(r"^```sql\n(.*?)^```$", text("docs/development.md"), flags=re.MULTILINE | re.DOTALL)
    assert statements.parse("prompts/list_long_prompts", example).params.keys() == {"least", "since", "page_size"}


def test_the_changelog_has_the_version() -> None:
    setup = configparser.ConfigParser(interpolation=None)
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    newest = re.findall(r"^## \[(\d[^\]]*)\]", text("CHANGELOG.md"), flags=re.MULTILINE)[0]
    assert newest == setup["metadata"]["version"]


def test_the_page_on_citus_speaks_of_every_statement_and_counts_them_right() -> None:
    told = {
        row[0].strip("`"): row[1].rstrip(" †") for row in rows("docs/citus.md") if re.fullmatch(r"`\w+/\w+`", row[0])
    }
    assert sorted(told) == sorted(statements.load())
    classes = ["none", "single-shard", "multi-shard", "impossible"]
    assert set(told.values()) == set(classes)
    [numbers] = re.findall(
        r"^Of (\d+) statements, (\d+) touch no .*, (\d+) are single-shard, (\d+) multi-shard, and (\d+) impossible",
        text("docs/citus.md"),
        flags=re.MULTILINE,
    )
    assert [int(number) for number in numbers] == [len(told), *(list(told.values()).count(kind) for kind in classes)]
