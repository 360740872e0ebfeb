"""The installed package carries its statements, migrations and pages, and needs no checkout. Builds offline."""

from __future__ import annotations

import configparser
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pytest
from wheels import ROOT, Environment, copy_checkout, install

# One worker builds it, once.
pytestmark = pytest.mark.xdist_group("packaging")


@dataclass(frozen=True)
class Installed:
    """A virtual environment that has the wheel, and the names of the files that the wheel was made of."""

    environment: Environment
    sources: frozenset[str]
    packed: frozenset[str]

    def run(self, command: str, *arguments: str) -> str:
        """What a command of the environment prints, started where no checkout is."""
        return self.environment.run(command, *arguments)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    work = tmp_path_factory.mktemp("packaging")
    sources = copy_checkout(work / "copy")
    environment = install(work / "copy", work)
    with zipfile.ZipFile(environment.wheel) as archive:
        packed = frozenset(archive.namelist())
    return Installed(environment, sources=frozenset(sources), packed=packed)


def test_the_image_has_the_version_of_the_package() -> None:
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    assert f"ARG VERSION={settings['metadata']['version']}\n" in (ROOT / "Dockerfile").read_text()


def test_the_wheel_holds_the_package_and_nothing_else(installed: Installed) -> None:
    moved = {"service": "service", "sql": "service/sql", "migrations": "service/migrations"}
    expected = {
        moved[top] + name.removeprefix(top)
        for name in installed.sources
        if (top := PurePosixPath(name).parts[0]) in moved
    }
    assert {name for name in installed.packed if ".dist-info/" not in name} == expected
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in installed.packed)


def test_what_it_reads_lies_inside_the_package(installed: Installed) -> None:
    program = """
import configparser
import json
from service import migrations, resources, statements
print(json.dumps({
    "statements": sorted(statements.load()),
    "migrations": migrations.names(),
    "folders": [str(resources.directory("sql")), str(resources.directory("migrations"))],
}))
"""
    found = json.loads(installed.run("python", "-c", program))
    sources = sorted(PurePosixPath(name) for name in installed.sources)
    assert found["statements"] == sorted(
        f"{path.parent.name}/{path.stem}" for path in sources if path.parts[0] == "sql"
    )
    assert found["migrations"] == [
        path.stem for path in sources if path.parts[0] == "migrations" and not path.stem.endswith(".rollback")
    ]
    for folder in found["folders"]:
        assert Path(folder).is_relative_to(installed.environment.folder)


def test_the_command_starts(installed: Installed) -> None:
    assert "serve" in installed.run("bridgelog", "--help")
