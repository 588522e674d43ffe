"""`build_client`: Triton's client libraries from source, into ``triton/client`` (recipe step 3).

The recipe's form has HTTP and gRPC, examples and tests, and builds gRPC itself for them. The quick
form, ``--http-only``, configures the client's C++ and Python folders by themselves and takes curl
from the host; it is done in a minute or two.
"""

from __future__ import annotations

import argparse
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uv import find_uv_bin

from provision import environments
from provision.build_checks import check_root, examine, only_build
from provision.build_job import Build, prepare
from provision.build_manifest import BuildManifest
from provision.console import step
from provision.errors import BuildError
from provision.layout import Layout
from provision.options import How, add_compiling, add_mirror, add_release, how
from provision.releases import Release
from provision.shared_libraries import check_libraries
from provision.update_releases import BASE

_TRY = "import tritonclient, tritonclient.http; print(tritonclient.__file__)"
# From where a wheel of 22.01 copies the performance analyzer, whether or not it was built.
_NOT_BUILT = """\
#!/bin/sh
echo "perf_analyzer was not built: this client was built with --http-only" >&2
exit 1
"""


def build_client(layout: Layout, release: str, *, gpu: bool, grpc: bool, how: How) -> BuildManifest:
    """Build, try and install the client libraries, unless the very same are installed.

    Args:
        layout: Where.
        release: Its name, or "auto".
        gpu: Whether with CUDA's shared memory.
        grpc: Whether in the recipe's form; otherwise the quick one, with HTTP alone.
        how: How.

    Raises:
        HostError: The host lacks something.
        DownloadError: A source cannot be had.
        BusyError: Another build is at work under this root.
        BuildError: The build failed, or what it built is not right; what was installed stays.
    """
    check_root(layout)
    with only_build(layout, "the client"):
        needs = ("client", "examples") if grpc else ("client",)
        found = examine(layout, release, gpu=gpu, needs=needs)
        form = {"client", "grpc"} if grpc else {"client_http"}
        features = frozenset({*form, "gpu"} if gpu else form)
        return prepare(_ClientBuild, layout, found, features, how).run(clean=how.clean)


def settings(release: Release, features: frozenset[str], target: Path) -> dict[str, str]:
    """CMake's settings: the recipe's (step 3), or those of the quick form.

    Args:
        release: What is built.
        features: What is built in.
        target: Where it installs to.
    """
    full = "client" in features
    tags = ("COMMON", "THIRD_PARTY", "CORE", "BACKEND") if full else ("COMMON", "CORE")
    found = {
        "CMAKE_INSTALL_PREFIX": str(target),
        "CMAKE_BUILD_TYPE": "Release",
        "TRITON_ENABLE_CC_HTTP": "ON",
        "TRITON_ENABLE_CC_GRPC": "ON" if full else "OFF",
        "TRITON_ENABLE_PYTHON_HTTP": "ON",
        "TRITON_ENABLE_PYTHON_GRPC": "ON" if full else "OFF",
        "TRITON_ENABLE_GPU": "ON" if "gpu" in features else "OFF",
        "TRITON_ENABLE_EXAMPLES": "ON" if full else "OFF",
        "TRITON_ENABLE_TESTS": "ON" if full else "OFF",
        "TRITON_REPO_ORGANIZATION": BASE,
        **{f"TRITON_{tag}_REPO_TAG": release.branch for tag in tags},
    }
    if full:
        found["TRITON_ENABLE_JAVA_HTTP"] = "OFF"
        if "client_perf_analyzer" in release.traits:
            found["TRITON_ENABLE_PERF_ANALYZER"] = "ON"
    return found


@dataclass(frozen=True)
class _Part:
    """Something to configure and build.

    Attributes:
        source: Its folder in the client's repository.
        targets: What to build there. Without them 22.01 would build every cloud's SDK, too.
    """

    source: str
    targets: tuple[str, ...]


class _ClientBuild(Build):
    what = "client"

    def arguments(self) -> Sequence[str]:
        given = settings(self.plan.release, self.plan.features, self.tree.staging)
        return [f"-D{name}={value}" for name, value in given.items()]

    def libraries(self) -> Sequence[Path]:
        cuda = self.host.gpu.cuda
        return [cuda.root / "lib64"] if cuda and "gpu" in self.plan.features else []

    def compile(self) -> None:
        program = self.tools.cmake / "bin" / "cmake"
        if "client" not in self.plan.features and (
            "client_perf_analyzer" in self.plan.release.traits
        ):
            stand_in = self.tree.staging / "bin" / "perf_analyzer"
            stand_in.parent.mkdir(parents=True)
            stand_in.write_text(_NOT_BUILT)
            stand_in.chmod(0o755)
        for part in self._parts():
            name = part.source or "client"
            folder = self.tree.scratch / name
            source = self.tree.folder / part.source
            configure = ["-S", str(source), "-B", str(folder), *self.arguments()]
            build = ["--build", str(folder), f"-j{self.jobs}", "--target", *part.targets]
            self.execute([program, *configure], f"Configure {name}")
            self.execute([program, *build], f"Build {name}")

    def prove(self, manifest: BuildManifest) -> Mapping[str, Any]:
        staging = self.tree.staging
        log = self.layout.logs / f"try-client-{self.plan.release.name}.log"
        log.unlink(missing_ok=True)
        with step("Try the client") as trying:
            libraries = sorted(path.name for path in staging.glob("lib*/lib*client*.so"))
            wheels = sorted(path.name for path in staging.glob("python/*.whl"))
            if not libraries or not wheels:
                raise BuildError(
                    "the client's build installed no library, or no wheel",
                    fix="read the log; make it anew with --clean",
                    log=self.log,
                )
            folders = [staging / "lib", staging / "lib64", *map(Path, manifest.libraries)]
            path = [*map(str, folders), os.environ.get("LD_LIBRARY_PATH", "")]
            check_libraries(staging, {"LD_LIBRARY_PATH": ":".join(filter(None, path))}, log)
            version = self._try_wheel(staging / "python" / self._best(wheels))
            trying.detail = f"{', '.join(libraries)}; {version} imports tritonclient.http"
        return {"libraries": libraries, "wheels": wheels, "imported": version}

    def _parts(self) -> Iterator[_Part]:
        if "client" in self.plan.features:
            yield _Part("", ("cc-clients", "python-clients"))
        else:
            yield _Part("src/c++", ("install",))
            yield _Part("src/python", ("install",))

    @staticmethod
    def _best(wheels: Sequence[str]) -> str:
        """The recipe's wheel, which is that for Linux, where there is one."""
        return next((name for name in wheels if "manylinux" in name), wheels[0])

    def _try_wheel(self, wheel: Path) -> str:
        """Install the wheel into an environment of its own, and import it (recipe step 3)."""
        environment = environments.ensure(self.layout, "client", self.plan.python)
        install = [find_uv_bin(), "pip", "install", "--quiet", "--no-deps", "--reinstall"]
        install += ["--python", str(environment.python), str(wheel)]
        for command in (install, [str(environment.python), "-c", _TRY]):
            done = subprocess.run(
                command,
                env=environment.variables(),
                cwd=self.tree.folder,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode != 0:
                raise BuildError(
                    f"the wheel {wheel.name} is not right: `{' '.join(command[-2:])}` failed",
                    cause=(done.stderr.strip().splitlines() or ["it said nothing"])[-1],
                    fix="read the log of the build; make it anew with --clean",
                    log=self.log,
                )
        return wheel.name


def main(arguments: list[str]) -> int:
    """`python -m provision build_client`."""
    options = _parser().parse_args(arguments)
    layout = Layout.from_environment()
    build_client(layout, options.release, gpu=options.gpu, grpc=options.grpc, how=how(options))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m provision build_client",
        description="Build Triton's client libraries and the Python wheel from source, and install "
        "them into triton/client; the wheel is tried in an environment of its own.",
    )
    add_release(parser)
    add_mirror(parser)
    parser.add_argument(
        "--http-only",
        dest="grpc",
        action="store_false",
        help="the quick form: without gRPC, examples and tests, with the host's curl",
    )
    parser.add_argument(
        "--no-gpu", dest="gpu", action="store_false", help="without CUDA's shared memory"
    )
    add_compiling(parser)
    return parser
