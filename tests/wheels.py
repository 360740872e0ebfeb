"""A tree of this project, built and installed into a virtual environment of its own. Works offline."""

from __future__ import annotations

import os
import shutil
import site
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Environment:
    """A virtual environment that has the wheel, and a folder where no checkout is."""

    folder: Path
    elsewhere: Path
    wheel: Path

    def run(self, command: str, *arguments: str, **environment: str) -> str:
        """What a command of the environment prints."""
        return run([self.folder / "bin" / command, *arguments], cwd=self.elsewhere, **self.environ(**environment))

    def environ(self, **more: str) -> dict[str, str]:
        """The variables that its commands see."""
        return {"PATH": os.defpath, "HOME": str(self.elsewhere)} | more


def install(tree: Path, work: Path) -> Environment:
    """Build the tree's wheel, and install it; the dependencies are those of this environment."""
    made, venv, elsewhere = (work / name for name in ("made", "venv", "elsewhere"))
    elsewhere.mkdir()
    # The wheel comes out of the sdist, so that what the sdist lacks is missing from it.
    build_sdist = "import sys; from setuptools import build_meta; print(build_meta.build_sdist(sys.argv[1]))"
    sdist = run([sys.executable, "-c", build_sdist, str(made)], cwd=tree).splitlines()[-1]
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
    return Environment(folder=venv, elsewhere=elsewhere, wheel=wheel)


def copy_checkout(folder: Path) -> list[str]:
    """What a commit of everything would hold, copied; the names."""
    listed = run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT)
    names = [name for name in listed.split("\0") if name and (ROOT / name).is_file()]
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    return names


def run(command: list[str | Path], *, cwd: Path, **environment: str) -> str:
    """What the command prints; fails with what it complained of."""
    found = subprocess.run(
        command, cwd=cwd, env=environment or None, capture_output=True, text=True, check=False, timeout=240
    )
    assert found.returncode == 0, f"{command}\n{found.stdout}\n{found.stderr}"
    return found.stdout
