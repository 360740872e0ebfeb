"""The installed package carries its statements, migrations and pages, and needs no checkout. Builds offline."""

from __future__ import annotations

import configparser
import json
import os
import shutil
import site
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parent.parent

# One worker builds it, once.
pytestmark = pytest.mark.xdist_group("packaging")


@dataclass(frozen=True)
class Installed:
    """A virtual environment that has the wheel, and the names of the files that the wheel was made of."""

    folder: Path
    elsewhere: Path
    sources: frozenset[str]
    packed: frozenset[str]

    def run(self, command: str, *arguments: str) -> str:
        """What a command of the environment prints, started where no checkout is."""
        found = subprocess.run(
            [self.folder / "bin" / command, *arguments],
            cwd=self.elsewhere,
            env={"PATH": os.defpath, "HOME": str(self.elsewhere)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert found.returncode == 0, found.stderr
        return found.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    work = tmp_path_factory.mktemp("packaging")
    copy, made, venv, elsewhere = (work / name for name in ("copy", "made", "venv", "elsewhere"))
    elsewhere.mkdir()
    sources = checkout_files()
    for name in sources:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, copy / name)

    # The wheel comes out of the sdist, so that what the sdist lacks is missing from it.
    build_sdist = "import sys; from setuptools import build_meta; print(build_meta.build_sdist(sys.argv[1]))"
    sdist = run([sys.executable, "-c", build_sdist, str(made)], cwd=copy).splitlines()[-1]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    offline = ["--no-index", "--no-deps"]
    run([*pip, "wheel", *offline, "--no-build-isolation", "--wheel-dir", str(made), str(made / sdist)], cwd=work)
    (wheel,) = made.glob("*.whl")

    run([sys.executable, "-m", "venv", "--without-pip", str(venv)], cwd=work)
    run([*pip, "--python", str(venv / "bin" / "python"), "install", *offline, str(wheel)], cwd=work)
    # Only then the dependencies, from this environment: pip would have found bridgelog installed there. In a folder that a
    # .pth names, other .pth files are ignored: so is the one that leads to the checkout.
    (packages,) = venv.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()))
    with zipfile.ZipFile(wheel) as archive:
        packed = frozenset(archive.namelist())
    return Installed(folder=venv, elsewhere=elsewhere, sources=frozenset(sources), packed=packed)


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
        assert Path(folder).is_relative_to(installed.folder)


def test_the_command_starts(installed: Installed) -> None:
    assert "serve" in installed.run("bridgelog", "--help")


def checkout_files() -> list[str]:
    """What a commit of everything would hold."""
    listed = run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT)
    return [name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def run(command: list[str], *, cwd: Path) -> str:
    """What the command prints; fails with what it complained of."""
    found = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert found.returncode == 0, f"{command}\n{found.stdout}\n{found.stderr}"
    return found.stdout
