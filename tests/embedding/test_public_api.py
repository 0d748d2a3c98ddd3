"""The names that `tusd_py` exports: complete, documented, and typed for those who install the wheel."""

from __future__ import annotations

import inspect
import pydoc
import re
import subprocess
import sys
import sysconfig
import typing
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest

import tusd_py
from tests.support.harness import ROOT
from tests.support.timing import scaled
from tusd_py import SettingsOverrides, TusServer, UploadReader, Uploads
from tusd_py.core import errors
from tusd_py.events import types
from tusd_py.settings import FIELDS

NAMES = [name for name in tusd_py.__all__ if name != "__version__"]
POINTS_TO_EXAMPLE = re.compile(r"\bExample|\bdocs/\w+\.md|which has an example")


def own_members(cls: type) -> list[tuple[str, Any]]:
    """Return the public methods and properties that a class defines itself."""
    return [(name, member) for name, member in vars(cls).items() if not name.startswith("_")]


def test_public_names_are_sorted_and_exist() -> None:
    assert tusd_py.__all__ == sorted(tusd_py.__all__)
    assert all(hasattr(tusd_py, name) for name in tusd_py.__all__)


def test_every_error_and_every_event_is_public() -> None:
    classes = [value for value in vars(errors).values() if inspect.isclass(value)]
    classes += typing.get_args(types.Event)
    assert {cls.__name__ for cls in classes} <= set(tusd_py.__all__)


@pytest.mark.parametrize("name", NAMES)
def test_public_name_has_a_docstring_that_leads_to_an_example(name: str) -> None:
    value = getattr(tusd_py, name)
    documentation = value.__doc__
    assert documentation
    assert not documentation.startswith(f"{name}(")  # made by `dataclass`
    bases = value.__mro__ if inspect.isclass(value) else (value,)
    assert any(POINTS_TO_EXAMPLE.search(base.__doc__ or "") for base in bases), documentation


@pytest.mark.parametrize("cls", [TusServer, Uploads, UploadReader])
def test_public_methods_are_documented(cls: type) -> None:
    for name, member in own_members(cls):
        assert inspect.getdoc(member), name


def test_help_of_the_server_reads_well() -> None:
    text = pydoc.plain(pydoc.render_doc(TusServer))
    head = text[: text.index("Methods defined here")]
    assert "tus.route" in head
    assert "lifespan=tus.lifespan" in head
    for name in ("on(", "open(", "path(", "route(", "lifespan(", "startup(", "shutdown("):
        assert re.search(rf"^ \|  (async )?{re.escape(name)}self", text, re.MULTILINE), name
    assert "overrides: 'Unpack[SettingsOverrides]'" in text
    assert not re.search(r"\| +(What|Who|Whose|How|It) ", text)


# Types.

PROGRAM = """\
from pathlib import Path
from typing import Unpack

from starlette.applications import Starlette

from tusd_py import (
    Durability,
    RequestContext,
    Settings,
    SettingsOverrides,
    Status,
    TusServer,
    Upload,
    UploadError,
    UploadFilter,
    UploadFinished,
    UploadNotFound,
    UploadProgressed,
    create_app,
)
from tusd_py.contracts.locks import Locker
from tusd_py.contracts.state import StateStore
from tusd_py.contracts.storage import Storage


def server(storage: Storage, state: StateStore, locker: Locker, **overrides: Unpack[SettingsOverrides]) -> TusServer:
    return TusServer(storage=storage, state=state, locker=locker, **overrides)


tus = TusServer(upload_dir=Path("uploads"), max_size="5GiB", expires_after=3600, cors_origins=["https://a.example"])
other: Starlette = create_app(Settings(durability=Durability.ALWAYS))


@tus.on(UploadFinished)
async def finished(event: UploadFinished) -> None:
    name: str | None = event.upload.decoded_metadata.get("filename")
    path: Path | None = tus.path(event.upload)
    request: RequestContext | None = event.request
    async with await tus.open(event.upload) as reader:
        data: bytes = await reader.read(10)
        async for piece in reader:
            data += piece
    print(name, path, request.client if request else "", len(data))


@tus.on(UploadProgressed)
def progressed(event: UploadProgressed) -> None:
    print(event.upload.offset, event.received)


async def active(upload_id: str) -> list[Upload]:
    try:
        await tus.uploads.terminate(upload_id)
    except UploadNotFound as error:
        print(error.code)
    except UploadError as error:
        print(error.message)
    return list((await tus.uploads.list(condition=UploadFilter(status=Status.ACTIVE))).uploads)


app = Starlette(routes=[tus.route("/files")], lifespan=tus.lifespan)
"""
MISTAKES = """\
from tusd_py import TusServer, UploadFinished

tus = TusServer(uplod_dir="uploads")  # error
TusServer(max_size=None, durability="sometimes")  # error
TusServer(storage="s3")  # error
tus.on(int)  # error


@tus.on(UploadFinished)
async def finished(event: UploadFinished) -> None:
    print(event.upload.file_name)  # error
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with the wheel, which finds everything else in that of the tests."""
    folder = tmp_path_factory.mktemp("installed")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=scaled(60))
    venv.create(folder / "venv", with_pip=False, symlinks=True)
    site = next((folder / "venv" / "lib").glob("python*/site-packages"))
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(site)
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "venv" / "bin" / "python"


def mypy(installed: Path, folder: Path, code: str) -> str:
    (folder / "program.py").write_text(code)
    command = [sys.executable, "-m", "mypy", "--strict", "--python-executable", str(installed), "program.py"]
    checked = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=scaled(120))
    return checked.stdout + checked.stderr


@pytest.mark.long
def test_program_of_an_embedder_passes_strict_type_checks_against_the_wheel(installed: Path, tmp_path: Path) -> None:
    where = subprocess.run(
        [installed, "-c", "import tusd_py; print(tusd_py.__file__)"], cwd=tmp_path, capture_output=True, text=True
    )
    assert str(installed.parents[1]) in where.stdout
    assert mypy(installed, tmp_path, PROGRAM).startswith("Success")
    told = mypy(installed, tmp_path, MISTAKES)
    wrong = [number for number, line in enumerate(MISTAKES.splitlines(), 1) if line.endswith("# error")]
    found = {int(number) for number in re.findall(r"^program\.py:(\d+): error", told, re.MULTILINE)}
    assert sorted(found) == wrong, told


def test_wheel_has_every_file_of_the_pages(installed: Path) -> None:
    site = next(installed.parents[1].glob("lib/python*/site-packages"))
    folders = [root / "tusd_py" / "pages" for root in (site, ROOT)]
    shipped, here = ({path.relative_to(folder) for path in folder.rglob("*.*")} for folder in folders)
    assert {path for path in here if path.suffix != ".pyc"} <= shipped
    assert Path("vendor", "uppy.min.js.br") in shipped


def test_typed_settings_are_the_settings() -> None:
    assert list(SettingsOverrides.__annotations__) == list(FIELDS)
