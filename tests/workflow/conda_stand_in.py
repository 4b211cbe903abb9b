"""What Snakemake asks of the command `conda`, answered with py-rattler, and a channel to ask it about.

Solving and installing are real (py-rattler is what pixi and rattler-build stand on); the channel's packages are empty but
for a `python` and its pip, which pass everything on to the Python that runs the tests.
"""

import asyncio
import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import yaml

# Given to the stand-in by its environment.
CHANNEL, CACHE, HOME = "SABR_TEST_CHANNEL", "SABR_TEST_CACHE", "SABR_TEST_CONDA"
# A call of our own: a folder, and the versions of its packages by name as JSON.
MAKE_CHANNEL = "make-channel"

ACTIVATE = 'export CONDA_PREFIX="$1" PATH="$1/bin:$PATH"\n'
# Installs nothing: notes what it was asked for, and makes the command `sabr`, which notes what it was called for.
PYTHON = r"""#!/bin/bash
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
if [[ "${1-}" == -m && "${2-}" == pip ]]; then
  echo "${@:3}" >> "$here/pip.log"
  if [[ " $* " == *" --editable "* ]]; then
    [[ -f "${!#}/pyproject.toml" ]] || { echo "${!#} does not hold a Python project"; exit 1; }
    printf '#!/bin/bash\necho "$1" >> "%s/sabr.log"\nexec "%s" -c "from sabr.cli import main; main()" "$@"\n' \
      "$here" "$SABR_TEST_PYTHON" > "$here/bin/sabr"
    chmod +x "$here/bin/sabr"
  fi
else
  exec "$SABR_TEST_PYTHON" "$@"
fi
"""


async def make_channel(folder: Path, packages: dict[str, str]) -> None:
    """A channel with one package without architecture for each name and version."""
    from rattler.index import index_fs

    (folder / "noarch").mkdir(parents=True)
    (folder / "linux-64").mkdir()
    for name, version in packages.items():
        content = {"bin/python": PYTHON} if name == "python" else {f"share/{name}.txt": version}
        about = {"name": name, "version": version, "build": "0", "build_number": 0, "depends": []}
        paths = [{"_path": path, "path_type": "hardlink"} for path in content]
        metadata = {
            "info/index.json": json.dumps({**about, "subdir": "noarch", "noarch": "generic", "timestamp": 1}),
            "info/paths.json": json.dumps({"paths": paths, "paths_version": 1}),
            "info/files": "\n".join(content),
        }
        with tarfile.open(folder / "noarch" / f"{name}-{version}-0.tar.bz2", "w:bz2") as package:
            for path, text in (metadata | content).items():
                member = tarfile.TarInfo(path)
                member.size, member.mode = len(text.encode()), 0o755
                package.addfile(member, io.BytesIO(text.encode()))
    await index_fs(folder)


async def create(file: Path, prefix: Path) -> None:
    """Make an environment of the channel's packages, then let its pip install the rest, as conda does."""
    from rattler import install, solve

    asked = yaml.safe_load(file.read_text())
    if asked["channels"] != ["conda-forge"]:
        raise SystemExit(f"{file}: only conda-forge is known here")
    packages = [one for one in asked["dependencies"] if isinstance(one, str)]
    records = await solve([Path(os.environ[CHANNEL]).as_uri()], packages, platforms=["linux-64", "noarch"])
    await install(records, prefix, cache_dir=os.environ[CACHE], show_progress=False)
    for one in asked["dependencies"]:
        if isinstance(one, dict):
            subprocess.run([prefix / "bin" / "python", "-m", "pip", "install", *one["pip"]], check=True)


def main(arguments: list[str]) -> None:
    """Answer the calls that Snakemake 9 makes, and one of our own."""
    match arguments:
        case [call, folder, packages] if call == MAKE_CHANNEL:
            asyncio.run(make_channel(Path(folder), json.loads(packages)))
        case ["info", "--json"]:
            print(json.dumps({"conda_prefix": os.environ[HOME], "platform": "linux-64"}))
        case ["--version"]:
            print("conda 25.1.0")
        case ["config", "--get", "channel_priority", "--json"]:
            print(json.dumps({"get": {"channel_priority": "strict"}}))
        case ["clean", "-y", "--tarballs"]:
            pass
        case ["env", "create", "--quiet", "--no-default-packages", "--file", file, "--prefix", prefix]:
            asyncio.run(create(Path(file), Path(prefix)))
        case _:
            raise SystemExit(f"the stand-in for conda does not know: {' '.join(arguments)}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
        code = 0
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # py-rattler 0.28 aborts when an interpreter that has used it ends
