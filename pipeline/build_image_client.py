"""`build_image_client`: the C++ client, with the library of `build_client` (recipe step 6)."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from provision import processes
from provision.console import say, step
from provision.errors import BuildError, HostError
from provision.host import find_tool
from provision.layout import Layout

SOURCE = Path(__file__).with_name("image_client.cpp")
_LIBRARY = "libhttpclient.so"
_FLAGS = ("-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror")
_TRY_SECONDS = 20
_MISSING_HEADER = re.compile(r"fatal error: (\S+): No such file or directory")


def program(layout: Layout) -> Path:
    """Where the client is, once it is built."""
    return layout.bin / "image_client"


def client_library(layout: Layout) -> Path | None:
    """The library that it needs, if it is built."""
    folders = (layout.triton / "client" / name for name in ("lib", "lib64"))
    return next((path for folder in folders if (path := folder / _LIBRARY).is_file()), None)


def command(layout: Layout, compiler: Path, library: Path, output: Path) -> Sequence[str]:
    """The compiler's command line.

    Args:
        layout: Where.
        compiler: What compiles.
        library: The library.
        output: The program to write.
    """
    # From the program's own folder, so that a root may be moved.
    rpath = f"-Wl,-rpath,$ORIGIN/{os.path.relpath(library.parent, layout.bin)}"
    return [
        *(str(compiler), *_FLAGS),
        *("-isystem", str(layout.triton / "client" / "include")),
        *("-o", str(output), str(SOURCE)),
        *(f"-L{library.parent}", "-lhttpclient", rpath),
    ]


def build_image_client(layout: Layout) -> Path:
    """Compile the client, try it, and put it in the place of an older one.

    Returns:
        The program, which finds its library by itself.

    Raises:
        HostError: There is no client library, no compiler, or a header is missing.
        BuildError: It does not compile, or does not run.
    """
    library = client_library(layout)
    if library is None:
        raise HostError(
            f"there is no {_LIBRARY} in {layout.triton / 'client'}",
            fix="build it first: `nox -s build_client -- --http-only`, which takes a minute",
        )
    compiler = find_tool("g++")
    if compiler is None:
        raise HostError("there is no C++ compiler", fix="install one: apt-get install g++")
    log = layout.logs / "build-image-client.log"
    log.unlink(missing_ok=True)
    target = program(layout)
    staged = target.with_name(f".{target.name}.new")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with step(f"Compile the C++ client with {compiler.path.name} {compiler.version}") as making:
            line = command(layout, compiler.path, library, staged)
            if processes.run_logged(line, log=log) != 0:
                raise _not_compiled(log)
            _try(staged, log)
            staged.replace(target)
            making.detail = str(target)
    finally:
        staged.unlink(missing_ok=True)
    say(f"for example: nox -s preprocess -- photo.jpg photo.dat; {target} resnet50 photo.dat")
    return target


def _try(path: Path, log: Path) -> None:
    """Run it once, without a hint where its library is."""
    variables = {n: value for n, value in os.environ.items() if n != "LD_LIBRARY_PATH"}
    tried = subprocess.run(
        [path, "--help"],
        env=variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_TRY_SECONDS,
        check=False,
    )
    if tried.returncode != 0:
        with log.open("a") as file:
            file.write(f"$ {path} --help\n{tried.stdout}{tried.stderr}")
        raise BuildError(
            f"the C++ client was compiled and does not run (exit {tried.returncode})",
            cause=(tried.stderr.strip().splitlines() or ["it said nothing"])[-1],
            fix="build the client library anew: `nox -s build_client -- --http-only --clean`",
            log=log,
        )


def _not_compiled(log: Path) -> HostError | BuildError:
    missing = _MISSING_HEADER.search(log.read_text(errors="replace"))
    if missing and missing[1].startswith("rapidjson/"):
        return HostError(
            "the headers of RapidJSON are missing",
            fix="install them: apt-get install rapidjson-dev",
            log=log,
        )
    return BuildError(
        f"the C++ client does not compile:\n{processes.last_lines(log)}",
        fix="read the log; if you changed pipeline/image_client.cpp, correct what it names",
        log=log,
    )
