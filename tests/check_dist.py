"""Build the sdist, a wheel from the sdist, install that wheel where no compiler is, and try it outside the repository.

Run by `make check-dist`; not a pytest module, because it compiles everything once more.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COMPILERS = ("cc", "gcc", "g++", "c++", "clang", "clang++", "cmake", "ninja", "make", "nvcc")
EXPECTED_IN_SDIST = [
    "csrc/cross_entropy.cpp",
    "kernels/__init__.py",
    "kernels/cuda/CMakeLists.txt",
    "kernels/cuda/cross_entropy.cu",
    "kernels/cuda/forward.cuh",
    "CMakeLists.txt",
    "LICENSE",
    "README.md",
    "constraints.txt",
    "lower-bounds.txt",
    "tests/smoke.py",
]
EXPECTED_IN_WHEEL = ["pymtg/py.typed", "pymtg/_core.pyi", "pymtg/kernels/__init__.py", "pymtg/report/templates/"]


def run(*command: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None) -> None:
    subprocess.run([str(part) for part in command], check=True, cwd=cwd, env=env)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        # `build` makes the sdist first and then the wheel from the unpacked sdist, not from the working tree.
        # Without CUDA, as wheels are; whatever toolkit is here.
        options = ["-C", "cmake.define.PYMTG_CUDA=OFF"]
        run(sys.executable, "-m", "build", *options, "--outdir", work / "dist", ROOT)
        (sdist,) = (work / "dist").glob("*.tar.gz")
        (wheel,) = (work / "dist").glob("*.whl")
        with tarfile.open(sdist) as archive:
            names = [member.partition("/")[2] for member in archive.getnames()]
        check_contents(sdist.name, names, EXPECTED_IN_SDIST)
        with zipfile.ZipFile(wheel) as archive:
            check_contents(wheel.name, archive.namelist(), EXPECTED_IN_WHEEL)
        python, env = clean_environment(work / "env")
        shutil.copy(ROOT / "tests" / "smoke.py", work)
        # --python: the new environment has no pip of its own
        pip = [sys.executable, "-m", "pip", "--python", python, "install", "-q"]
        run(*pip, "--no-deps", "--no-index", "--only-binary", ":all:", wheel, cwd=work, env=env)
        inherit_packages(work / "env")  # not before: pip would find the pymtg of this environment installed
        run(python, work / "smoke.py", work / "env", cwd=work, env=env)
        command = ["stg", "--data", "digits", "--epochs", "1", "--groups", "2", "--out", work / "run", "--quiet"]
        run(python.with_name("pymtg"), *command, cwd=work, env=env)
    print(f"{sdist.name} and {wheel.name}: built, installed, tried")


def clean_environment(directory: Path) -> tuple[Path, dict[str, str]]:
    """Return the Python of a new, empty virtual environment, and variables with which no compiler is found."""
    venv.create(directory, with_pip=False)
    kept = {name: value for name, value in os.environ.items() if name not in ("CC", "CXX", "PYTHONPATH")}
    env = {**kept, "PATH": str(directory / "bin"), "VIRTUAL_ENV": str(directory)}
    found = [name for name in COMPILERS if shutil.which(name, path=env["PATH"])]
    assert not found, f"the clean environment has {found}"
    return directory / "bin" / "python", env


def inherit_packages(directory: Path) -> None:
    """Put the packages of the environment at work on the path, for the dependencies.

    Its `.pth` files are not followed: its own, editable pymtg is not among them.
    """
    (site,) = (directory / "lib").glob("python*/site-packages")
    inherited = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (site / "inherited.pth").write_text("\n".join(inherited) + "\n", encoding="utf-8")


def check_contents(archive: str, names: list[str], expected: list[str]) -> None:
    absent = [part for part in expected if not any(name.startswith(part) for name in names)]
    if absent:
        raise SystemExit(f"{archive} lacks {', '.join(absent)}")


if __name__ == "__main__":
    main()
