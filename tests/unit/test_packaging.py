"""What is installed from a wheel is whole: every package, every schema, the licence and the command."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "-w",
        str(folder),
        str(ROOT),
    ]
    subprocess.run(command, check=True, timeout=120)
    (built,) = folder.glob("penstock-*.whl")
    return zipfile.ZipFile(built)


def test_wheel_holds_every_module_and_schema_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    files = (path for package in ("cdc", "sinks", "schemas") for path in (ROOT / package).rglob("*"))
    wanted = {str(path.relative_to(ROOT)) for path in files if path.is_file() and "__pycache__" not in path.parts}
    assert packed == wanted
    assert {"schemas/transaction.avsc", "schemas/source_postgresql.avsc", "cdc/demo/launch.py"} <= packed


def test_wheel_has_the_command_the_extras_and_the_licence(wheel: zipfile.ZipFile) -> None:
    (folder,) = {name.split("/")[0] for name in wheel.namelist() if ".dist-info/" in name}
    assert "cdc = cdc.cli:main" in wheel.read(f"{folder}/entry_points.txt").decode()
    metadata = wheel.read(f"{folder}/METADATA").decode()
    assert "Provides-Extra: demo" in metadata
    assert "Provides-Extra: registry" in metadata
    assert f"{folder}/licenses/LICENSE" in wheel.namelist()
