"""Triton's repositories and those of third parties in small, as a mirror has them.

Made from ``tests/miniature``; the builder that is tested is the real one, and so are git, CMake and
the compilers.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

from provision.files import sha256

MINIATURE = Path(__file__).parent / "miniature"
RELEASE = "99.01"
TRITON = "triton-inference-server"
GIT = ("git", "-c", "user.name=t", "-c", "user.email=t@t", "-c", "init.defaultBranch=main")
COMPONENTS = ("server", "client", "core", "common", "backend", "third_party")
AGENT = "checksum_repository_agent"
NUMBERS = "github.com/numbers/numbers/archive/v1.0.tar.gz"
GOOGLETEST = "https://github.com/google/googletest.git"

_FACTS = """
[components]
server = ["server"]
client = ["client", "client_http"]
core = ["server"]
common = ["server", "client_http"]
backend = ["server"]
third_party = ["server"]
checksum_repository_agent = ["checksum"]

[without]
server = ["qa"]

[build]
disk_gb = 1
memory_per_job_gb = 1

[drivers]
12 = "525"

[cmake."3.31.10"]
x86_64 = "2f766bb46367e5e0559fa33184653754bce044583a06014dcaebf8e6dff8a1f1"
aarch64 = "a4a5615f31f692c9b9aa8b365704e4b76172348af6fa40e16fea3f118bb01194"

[releases."{release}"]
triton = "9.1.0"
sources = "mini"
apt = "mini"
cmake = ">=3.18"
cmake_pin = "3.31.10"
cuda = ">=12"
capability = "7.5"
tensorrt = ">=8"
python = "<3.14"
boost = ""
gcc = ">=5"
proved = {{ state = "declared" }}

[[sources.mini]]
name = "json"
needed_for = ["server"]
git = "https://github.com/nlohmann/json.git"
ref = "v1.0"

[[sources.mini]]
name = "grpc"
needed_for = ["server"]
git = "https://github.com/grpc/grpc.git"
ref = "v1.1"
submodules = ["third_party/cares"]
whole_for = ["grpc"]

[[sources.mini]]
name = "googletest"
needed_for = ["server"]
git = "{googletest}"
ref = "{googletest_commit}"
override = "FETCHCONTENT_SOURCE_DIR_GOOGLETEST"

[[sources.mini]]
name = "numbers"
needed_for = ["server"]
url = "https://{numbers}"
sha256 = "{numbers_sha256}"
seed = "tritonserver/build/_deps/repo-thirdparty-build/numbers/src"

[apt.mini."none-0"]
server = []
"""


@dataclass(frozen=True)
class Upstream:
    """The repositories and archives.

    Attributes:
        folder: In the form of a mirror.
    """

    folder: Path

    @classmethod
    def create(cls, folder: Path) -> Upstream:
        """Make them, each with one commit, and Triton's own with the release's branch."""
        made = cls(folder)
        archive = folder / NUMBERS
        archive.parent.mkdir(parents=True)
        archive.write_bytes(_tarball({"numbers-1.0/one": b"1"}))
        for name in (*COMPONENTS, AGENT):
            made.add(f"{TRITON}/{name}", MINIATURE / name)
        made.add("google/googletest", {"CMakeLists.txt": "project(googletest NONE)\n"})
        made.add("nlohmann/json", MINIATURE / "json")
        made.add("c-ares/c-ares", MINIATURE / "cares")
        made.add("unread/unread", {"README": "nobody reads this submodule\n"})
        made.add("grpc/grpc", MINIATURE / "grpc")
        made.put(f"{TRITON}/third_party", "numbers.sha256", sha256(archive))
        made.link("grpc/grpc", "third_party/cares", "c-ares/c-ares")
        made.link("grpc/grpc", "third_party/unread", "unread/unread")
        for name in (*COMPONENTS, AGENT):
            made.git(f"{TRITON}/{name}", "branch", f"r{RELEASE}")
        made.git("nlohmann/json", "tag", "v1.0")
        made.git("grpc/grpc", "tag", "v1.1")
        return made

    def copy(self, folder: Path) -> Upstream:
        """A copy to do as one likes with."""
        subprocess.run(["cp", "-r", self.folder, folder], check=True)
        return Upstream(folder)

    def repository(self, name: str) -> Path:
        """Where a repository is; it has a work tree, and so its `.git`."""
        return self.folder / "github.com" / f"{name}.git"

    def git(self, name: str, *arguments: str) -> str:
        """Run git in a repository."""
        command = [*GIT, "-C", str(self.repository(name)), *arguments]
        return subprocess.check_output(command, text=True, stderr=subprocess.STDOUT).strip()

    def commit(self, name: str, ref: str = "HEAD") -> str:
        """The commit of a ref."""
        return self.git(name, "rev-parse", ref)

    def add(self, name: str, content: Path | dict[str, str]) -> None:
        """A new repository with files."""
        path = self.repository(name)
        path.mkdir(parents=True)
        if isinstance(content, Path):
            shutil.copytree(content, path, dirs_exist_ok=True)
        else:
            for file, text in content.items():
                (path / file).write_text(text)
        subprocess.run([*GIT, "init", "--quiet", str(path)], check=True)
        self._commit(name)

    def put(self, name: str, file: str, text: str) -> str:
        """Change a file of a repository; the new commit."""
        (self.repository(name) / file).write_text(text)
        return self._commit(name)

    def release(self, name: str, file: str, text: str) -> str:
        """Change a file of one of Triton's repositories, on the release's branch."""
        commit = self.put(f"{TRITON}/{name}", file, text)
        self.git(f"{TRITON}/{name}", "branch", "--force", f"r{RELEASE}")
        return commit

    def link(self, name: str, path: str, other: str) -> None:
        """Add another repository as a submodule."""
        modules = self.repository(name) / ".gitmodules"
        for key, value in (("path", path), ("url", f"https://github.com/{other}.git")):
            self.git(name, "config", "--file", str(modules), f"submodule.{path}.{key}", value)
        self.git(name, "add", ".gitmodules")
        entry = f"160000,{self.commit(other)},{path}"
        self.git(name, "update-index", "--add", "--cacheinfo", entry)
        self.git(name, "commit", "--quiet", "--message", f"with {path}")

    def facts(self, folder: Path) -> tuple[Path, Path]:
        """The files that stand for ``releases.toml`` and its lock, written into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        facts, lock = folder / "releases.toml", folder / "sources.toml"
        text = _FACTS.format(
            release=RELEASE,
            googletest=GOOGLETEST,
            googletest_commit=self.commit("google/googletest"),
            numbers=NUMBERS,
            numbers_sha256=sha256(self.folder / NUMBERS),
        )
        facts.write_text(text)
        branch = f"r{RELEASE}"
        own = {name: self.commit(f"{TRITON}/{name}", branch) for name in (*COMPONENTS, AGENT)}
        lines = [f'[releases."{RELEASE}"]', *(f'{n} = "{commit}"' for n, commit in own.items())]
        for name, ref in (("nlohmann/json", "v1.0"), ("grpc/grpc", "v1.1")):
            lines.append(f'[repositories."https://github.com/{name}.git"]')
            lines.append(f'"{ref}" = "{self.commit(name, ref)}"')
        lock.write_text("\n".join(lines))
        return facts, lock

    def _commit(self, name: str) -> str:
        self.git(name, "add", "--all")
        self.git(name, "commit", "--quiet", "--message", "a change")
        return self.commit(name)


def _tarball(files: dict[str, bytes]) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return data.getvalue()


def variables(root: Path) -> dict[str, str]:
    """The environment for a build of the miniature: no CUDA, no compiler cache of the user's."""
    kept = {n: v for n, v in os.environ.items() if not n.startswith(("CUDA", "CCACHE_", "CMAKE_"))}
    return {**kept, "SLIPWAY_ROOT": str(root), "CCACHE_DIR": str(root / "ccache")}
