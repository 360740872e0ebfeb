"""The installed package carries its statements, migrations and pages, and needs no checkout. Builds offline."""

from __future__ import annotations

import configparser
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pytest
import yaml
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


def test_what_the_bridge_writes_has_a_place_on_a_disk_that_is_read_only() -> None:
    """A volume that outlives the containers: a tmpfs would lose what the database has yet to take."""
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    replica = compose["services"]["bridgelog"]
    assert replica["read_only"]
    [volume, mounted] = replica["volumes"][0].split(":")
    assert volume in compose["volumes"]
    image = (ROOT / "Dockerfile").read_text()
    # What is mounted on a folder of the image takes its owner, who is not root.
    assert f"--home-dir {mounted} " in image
    assert f"chmod 700 {mounted}\n" in image
    for setting in ("SPOOL_DIR", "REQUEST_LOG_DIR"):
        assert PurePosixPath(replica["environment"][f"BRIDGELOG_{setting}"]).parent == PurePosixPath(mounted)
    assert compose["services"]["migrate"]["environment"].items() <= replica["environment"].items()


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
