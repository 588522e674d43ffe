"""A build.py in small: it takes the arguments of Triton's, and goes about it in the same order."""

import argparse
import os
import shutil
import subprocess
from pathlib import Path

parser = argparse.ArgumentParser()
for name in ("no-container-build", "no-force-clone", "enable-logging", "enable-stats"):
    parser.add_argument(f"--{name}", action="store_true")
for name in ("enable-metrics", "enable-tracing", "enable-gpu"):
    parser.add_argument(f"--{name}", action="store_true")
for name in ("build-dir", "install-dir", "build-parallel", "github-organization"):
    parser.add_argument(f"--{name}")
for name in ("endpoint", "repo-tag", "backend", "repoagent", "extra-backend-cmake-arg"):
    parser.add_argument(f"--{name}", action="append", default=[])
options = parser.parse_args()
ORGANIZATION = "https://github.com/triton-inference-server"
build, install = Path(options.build_dir), Path(options.install_dir)
tags = dict(tag.split(":") for tag in options.repo_tag)


def run(*command, folder):
    """Run a command, and end with it where it fails."""
    folder.mkdir(parents=True, exist_ok=True)
    if subprocess.run(command, cwd=folder, check=False).returncode:
        raise SystemExit("error: build failed")


def make(source, folder, prefix, *more):
    """Configure, build and install a project."""
    toolchain = os.environ.get("CMAKE_TOOLCHAIN_FILE", "")
    settings = [f"-DCMAKE_INSTALL_PREFIX={prefix}", f"-DCMAKE_TOOLCHAIN_FILE={toolchain}"]
    settings += [f"-DTRITON_{n.upper()}_TAG={tag}" for n, tag in tags.items()]
    run("cmake", *settings, *more, str(source), folder=folder)
    run("cmake", "--build", ".", f"-j{options.build_parallel}", "-t", "install", folder=folder)


core = build / "tritonserver"
make(Path(__file__).parent, core / "build", core / "install")
shutil.copytree(core / "install", install)
for repoagent in options.repoagent:
    name, tag = repoagent.split(":")
    clone = build / name
    if not options.no_force_clone:
        shutil.rmtree(clone, ignore_errors=True)
    if not clone.exists():
        url = f"{ORGANIZATION}/{name}_repository_agent.git"
        run("git", "clone", "--recursive", "--depth=1", "-b", tag, url, str(clone), folder=build)
    make(clone, clone / "build", clone / "install")
    agents = clone / "install" / "repoagents"
    shutil.copytree(agents, install / "repoagents", dirs_exist_ok=True)
