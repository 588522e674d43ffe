"""The TensorRT of this host, ready to be called from Python.

The search yields candidates with their versions, and the best is picked: the one that the server
was built with. Polygraphy and numpy come in an environment of ours, made with the interpreter that
has TensorRT; TensorRT itself stays where it is.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.specifiers import SpecifierSet
from packaging.version import Version
from uv import find_uv_bin

from provision import environments, interpreters, processes, toml
from provision.build_tree import check_out
from provision.console import step
from provision.errors import DownloadError, HostError
from provision.fetch_sources import fetch, mirror_of
from provision.files import put_folder
from provision.gpu import tensorrt_package
from provision.interpreters import Interpreter
from provision.layout import REPOSITORY, Layout
from provision.mirror import Pin
from provision.sources import Wanted

CPU_WAY = "without a GPU, `--engine onnxruntime` serves the model on the CPU"
_FACTS = Path(__file__).with_suffix(".toml")
_PYTHONS = SpecifierSet(">=3.8")
_POLYGRAPHY_NEEDS = Version("8.5")
_UNREAD = ("plugin", "samples", "parsers", "python", "demo", "docker", "quickstart", "include")
_RTX_SWITCH = {"POLYGRAPHY_USE_TENSORRT_RTX": "1"}


@dataclass(frozen=True)
class Candidate:
    """A TensorRT on this host.

    Attributes:
        version: Its version, as its package says.
        folder: The site-packages that it is in.
        interpreter: The interpreter that it is for.
    """

    version: str
    folder: Path
    interpreter: Interpreter


@dataclass(frozen=True)
class TensorRtPython:
    """A TensorRT that can be called.

    Attributes:
        version: Its version, as its package says.
        environment: Where Polygraphy and numpy are.
        folders: What has to be added to Python's path, last.
        rtx: Whether it is TensorRT for RTX.
    """

    version: str
    environment: environments.Environment
    folders: tuple[Path, ...]
    rtx: bool

    @property
    def name(self) -> str:
        """What it is, for people."""
        return f"TensorRT {'for RTX ' if self.rtx else ''}{self.version}"

    def variables(self) -> dict[str, str]:
        """The process environment for programs that run in it."""
        return {**self.environment.variables(), **(_RTX_SWITCH if self.rtx else {})}


def for_rtx(layout: Layout) -> TensorRtPython:
    """TensorRT for RTX, from PyPI: it builds plans on any machine.

    Raises:
        DownloadError: It cannot be had.
    """
    environment = environments.ensure(layout, "tensorrt_rtx")
    return TensorRtPython(_locked("tensorrt-rtx-cu13"), environment, (), rtx=True)


def candidates(layout: Layout) -> Iterator[Candidate]:
    """Every TensorRT that an interpreter of this host has, ours first."""
    wheels = sorted(layout.vendor.glob("tensorrt-wheels-*/bin/python"), reverse=True)
    for python in wheels:
        interpreter, found = interpreters.probe(python), tensorrt_package(python)
        if interpreter and found:
            yield Candidate(found.version, found.path.parent, interpreter)
    for interpreter in interpreters.candidates(_PYTHONS):
        found = tensorrt_package(interpreter.executable)
        if found:
            yield Candidate(found.version, found.path.parent, interpreter)


def find(layout: Layout, wanted: str = "", mirror: str | None = None) -> TensorRtPython:
    """The TensorRT of this host, of the version that is wanted, with what it takes to call it.

    Args:
        layout: Where.
        wanted: The version, in as many parts as are known; empty for any.
        mirror: Where an old Polygraphy comes from, if one is needed.

    Raises:
        HostError: There is none, or none of that version.
        DownloadError: Polygraphy cannot be had.
    """
    found = list(candidates(layout))
    fits = [one for one in found if agree(one.version, wanted)]
    if not fits:
        raise _missing(found, wanted)
    chosen = fits[0]
    old = Version(chosen.version) < _POLYGRAPHY_NEEDS
    name = "tensorrt_8" if old else "tensorrt"
    needed = SpecifierSet(toml.load(_FACTS.with_name("environments.toml"))[name]["python"])
    if Version(chosen.interpreter.version) not in needed:
        raise HostError(
            f"TensorRT {chosen.version} is in {chosen.folder}, for Python "
            f"{chosen.interpreter.version}, and Polygraphy is needed for Python {needed}",
            fix=f"install TensorRT for such a Python; {CPU_WAY}",
        )
    environment = environments.ensure(layout, name, chosen.interpreter)
    folders = [chosen.folder]
    if old:
        folders.append(_old_polygraphy(layout, mirror))
    return TensorRtPython(chosen.version, environment, tuple(folders), rtx=False)


def install_wheels(layout: Layout, version: str, *, cuda: int) -> Path:
    """Install TensorRT's wheels of a version into an environment of their own, under vendor/.

    Their hashes are not known here: NVIDIA's index gives them, and uv checks them against that.

    Args:
        layout: Where.
        version: As far as it is known: 10.13.3 takes the latest build of it.
        cuda: The major version of CUDA that the driver knows.

    Returns:
        The folder of the libraries.

    Raises:
        HostError: There are no wheels of that version for that CUDA, or no interpreter for them.
        DownloadError: They cannot be had; the log has uv's words.
    """
    facts = toml.load(_FACTS)
    exact = f"{version}.*" if version.count(".") < 3 else version  # noqa: PLR2004 - parts
    package = _package(facts["wheels"], version, cuda)
    target = layout.vendor / f"tensorrt-wheels-{version}"
    log = layout.logs / f"tensorrt-wheels-{version}.log"
    log.unlink(missing_ok=True)
    interpreter = interpreters.find(">=3.10,<3.14", libpython=False, vendor=layout.vendor)
    staged = target.with_name(f".{target.name}.new")
    shutil.rmtree(staged, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    uv = find_uv_bin()
    create = [uv, "venv", "--relocatable", "--python", str(interpreter.executable), str(staged)]
    install = [uv, "pip", "install", "--python", str(staged / "bin" / "python")]
    # With uv an extra index comes before the default one, and names found there are taken there.
    install += ["--extra-index-url", facts["index"], f"{package}=={exact}"]
    with step(f"TensorRT {version} ({package}, about 4 GB)") as installing:
        try:
            for command in (create, install):
                code = processes.run_logged(
                    command, log=log, cwd=REPOSITORY, on_line=installing.progress
                )
                if code != 0:
                    raise DownloadError(
                        f"{package} {version} cannot be installed:\n{processes.last_lines(log)}",
                        fix="read the log; NVIDIA's index has to be reached and to have that "
                        "version",
                        log=log,
                    )
            put_folder(staged, target, exchange=False)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
        found = tensorrt_package(target / "bin" / "python")
        if found is None:
            raise HostError(f"{target} has no TensorRT after all", fix="read the log", log=log)
        installing.detail = f"{found.version}, in {target}"
    return found.path.parent / "tensorrt_libs"


def _package(wheels: list[dict[str, Any]], version: str, cuda: int) -> str:
    for row in wheels:
        if version in SpecifierSet(row["tensorrt"]) and cuda >= row["cuda"]:
            return str(row["package"])
    raise HostError(
        f"there are no wheels of TensorRT {version} for CUDA {cuda}",
        fix="install TensorRT from NVIDIA's archive or packages, into a Python on PATH",
    )


def _old_polygraphy(layout: Layout, mirror: str | None) -> Path:
    facts = toml.load(_FACTS)["polygraphy"]
    pin = Pin(facts["repository"], facts["commit"], facts["commit"], without=_UNREAD)
    folder = layout.vendor / f"polygraphy-{facts['version']}"
    fetch(layout, Wanted((pin,), ()), mirror, what=f"Polygraphy {facts['version']}")
    check_out(mirror_of(layout), pin, facts["commit"], folder)
    return folder / str(facts["folder"])


def _missing(found: list[Candidate], wanted: str) -> HostError:
    version = wanted or "VERSION"
    fix = (
        f"install it: `nox -s install_tensorrt -- --wheels {version}`; `convert -- … --engine "
        f"tensorrt_rtx` does without it, for RTX cards; {CPU_WAY}"
    )
    if found:
        others = ", ".join(f"{one.version} in {one.folder}" for one in found)
        return HostError(
            f"TensorRT {wanted} is not installed here, which the server was built with; there is "
            f"{others}",
            fix=fix,
        )
    return HostError("the Python package tensorrt is not installed on this host", fix=fix)


def agree(version: str, wanted: str) -> bool:
    """Whether a version is the one that is wanted, in as many parts as that has."""
    parts = wanted.split(".") if wanted else []
    return version.split(".")[: len(parts)] == parts


def _locked(package: str) -> str:
    lines = environments.lock_file("tensorrt_rtx").read_text().splitlines()
    line = next(line for line in lines if line.startswith(f"{package}=="))
    return line.partition("==")[2].split()[0]
