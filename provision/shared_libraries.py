"""Whether what was built is whole: every library that it needs, and in them every symbol."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

from provision.errors import BuildError


def check_libraries(folder: Path, variables: Mapping[str, str], log: Path) -> None:
    """Make sure that the loader finds every library, and in them every symbol.

    A library that lacks a symbol is built without a word, and fails when a model needs it.

    Args:
        folder: Where they are.
        variables: The environment that they run in.
        log: Where the loader's words go.

    Raises:
        BuildError: It does not find one.
    """
    found = []
    for path in sorted(folder.rglob("*")):
        if not path.is_symlink() and path.is_file() and is_elf(path):
            said = subprocess.run(
                ["ldd", "-r", path],
                env={**os.environ, **variables},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
            ).stdout
            with log.open("a") as file:
                file.write(f"$ ldd -r {path}\n{said}")
            missing = re.findall(r"^\s*(\S+) => not found", said, re.MULTILINE)
            symbols = [] if missing else re.findall(r"^undefined symbol: (\S+)", said, re.MULTILINE)
            lacking = [*missing, *(f"the symbol {name}" for name in symbols[:1])]
            found += [f"{path.relative_to(folder)} lacks {name}" for name in lacking]
    if found:
        raise BuildError(
            f"what was built is not whole: {'; '.join(found)}",
            fix="install what is named, or add its folder to LD_LIBRARY_PATH before building",
            log=log,
        )


def is_elf(path: Path) -> bool:
    """Whether a file is a program or a library."""
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"
