"""Build the sdist, a wheel from the sdist, install that wheel alone and try it from outside the repository.

Run by `make check-dist`; not a pytest module, because it compiles everything once more.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# The dependencies come from this environment; its own (editable) pymtg must not be what is imported.
SMOKE = """
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "ScikitBuild" not in type(finder).__name__]
sys.path.insert(0, sys.argv[1])
import pymtg, pymtg._core, torch
assert pymtg.__file__.startswith(sys.argv[1]), pymtg.__file__
assert pymtg._core.__file__.startswith(sys.argv[1]), pymtg._core.__file__
layout = pymtg.TaskLayout(["a", "b"], [1, 3])
data_map = pymtg.DataMap(4, layout)
logits = torch.zeros(4, 4, requires_grad=True)
loss = pymtg.MultiTaskLoss(layout, data_map)(logits, torch.zeros(4, 2, dtype=torch.long), torch.arange(4))
loss.backward()
assert abs(loss.item() - 1.791759) < 1e-5 and logits.grad.abs().sum() > 0
assert data_map.mean.allclose(torch.tensor([0.5, 1 / 3]).expand(4, 2))
labels = pymtg.FuzzyKMeans(2, random_state=0).fit([[0.0], [0.1], [5.0], [5.1]]).labels_.tolist()
assert labels in ([0, 0, 1, 1], [1, 1, 0, 0]), labels
from pymtg.cli import main
"""

EXPECTED_IN_SDIST = ["csrc/cross_entropy.cpp", "kernels/__init__.py", "CMakeLists.txt", "tests/check_dist.py"]
EXPECTED_IN_WHEEL = ["pymtg/py.typed", "pymtg/_core.pyi", "pymtg/kernels/__init__.py", "pymtg/report/templates/"]


def run(*command: str | Path, cwd: Path | None = None) -> None:
    subprocess.run([str(part) for part in command], check=True, cwd=cwd)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        # `build` makes the sdist first and then the wheel from the unpacked sdist, not from the working tree.
        run(sys.executable, "-m", "build", "--outdir", work / "dist", ROOT)
        (sdist,) = (work / "dist").glob("*.tar.gz")
        (wheel,) = (work / "dist").glob("*.whl")
        with tarfile.open(sdist) as archive:
            names = [member.partition("/")[2] for member in archive.getnames()]
        check_contents(sdist.name, names, EXPECTED_IN_SDIST)
        with zipfile.ZipFile(wheel) as archive:
            check_contents(wheel.name, archive.namelist(), EXPECTED_IN_WHEEL)
        site = work / "site"
        run(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", site, wheel)
        run(sys.executable, "-c", SMOKE, site, cwd=work)
    print(f"{sdist.name} and {wheel.name}: built, installed, tried")


def check_contents(archive: str, names: list[str], expected: list[str]) -> None:
    absent = [part for part in expected if not any(name.startswith(part) for name in names)]
    if absent:
        raise SystemExit(f"{archive} lacks {', '.join(absent)}")


if __name__ == "__main__":
    main()
