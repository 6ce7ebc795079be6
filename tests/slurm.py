"""A SLURM cluster of one machine: `munged`, `slurmctld` and `slurmd` as processes of a test, in a folder of its own."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tests.together import free_port

CPUS = 4  # that the node pretends to have
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
PLACES = f"{os.environ['PATH']}:/usr/sbin:/sbin"  # Debian has the daemons there

# No control groups and no accounting, which need rights that a container may not have. The last lines are as strict as
# those of some clusters: one task that fails ends the others.
CONFIGURATION = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmdPort={node_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
SchedulerParameters=sched_interval=2
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} Gres=gpu:{cpus} State=UNKNOWN
PartitionName=tests Nodes=ALL Default=YES MaxTime=INFINITE State=UP
JobRequeue=1
KillOnBadExit=1
"""


def missing() -> list[str]:
    """The programs of SLURM that this machine lacks."""
    return [name for name in PROGRAMS if shutil.which(name, path=PLACES) is None]


class Cluster:
    """Starts the daemons. Jobs get only the environment that `submit` names, so that they do not see that of pytest."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._daemons: list[subprocess.Popen[bytes]] = []
        for name in ("state", "spool"):
            (folder / name).mkdir()
        values = {"folder": folder, "host": socket.gethostname().split(".")[0], "user": getpass.getuser()}
        values |= {"port": free_port(), "node_port": free_port(), "cpus": CPUS}
        (folder / "slurm.conf").write_text(CONFIGURATION.format(**values))
        (folder / "cgroup.conf").write_text("CgroupPlugin=disabled\n")
        (folder / "gres.conf").write_text(f"Name=gpu File=/dev/tty[1-{CPUS}]\n")  # of which nothing is used
        (folder / "munge.key").write_bytes(os.urandom(128))
        (folder / "munge.key").chmod(0o600)
        names = {"key-file": "munge.key", "socket": "munge.socket", "pid-file": "munged.pid", "log-file": "munged.log"}
        names |= {"seed-file": "munge.seed"}
        files = [f"--{option}={folder / name}" for option, name in names.items()]
        try:
            self._start("munged", "--foreground", "--force", *files)
            wait_for(lambda: (folder / "munge.socket").exists(), "munged has no socket", self.logs)
            self._start("slurmctld", "-D", "-f", folder / "slurm.conf")
            self._start("slurmd", "-D", "-f", folder / "slurm.conf")
            wait_for(lambda: "idle" in self.ask("sinfo", "--noheader", "--format=%t"), "no idle node", self.logs)
        except BaseException:
            self.stop()
            raise

    def run(
        self, *command: object, cwd: Path, seconds: float = 60, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """A program on the node where jobs are submitted."""
        words, variables = [*map(str, command)], {**self._environment(), **environment}
        return subprocess.run(words, cwd=cwd, env=variables, capture_output=True, text=True, timeout=seconds)

    def submit(self, script: Path, *options: object, cwd: Path, **environment: str) -> str:
        """Submit a job, and return its id."""
        done = self.run("sbatch", "--parsable", *options, script, cwd=cwd, **environment)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def ask(self, *command: object) -> str:
        """The output of a client, which may fail."""
        return self.run(*command, cwd=self.folder).stdout.strip()

    def job(self, job: str) -> dict[str, str]:
        """What `scontrol show job` says; empty if the job is not known."""
        words = self.ask("scontrol", "--oneliner", "show", "job", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def logs(self) -> str:
        logs = (self.folder / name for name in ("munged.log", "slurmctld.log", "slurmd.log"))
        return "\n".join(path.read_text(errors="replace")[-3000:] for path in logs if path.is_file())

    def stop(self) -> None:
        self.ask("scancel", "--signal=KILL", f"--user={getpass.getuser()}")
        for daemon in reversed(self._daemons):
            daemon.terminate()
            try:
                daemon.wait(timeout=20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def _start(self, program: str, *arguments: object) -> None:
        found = shutil.which(program, path=PLACES)
        with (self.folder / f"{program}.out").open("wb") as output:
            self._daemons.append(
                subprocess.Popen(
                    [found, *map(str, arguments)],
                    env=self._environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )

    def _environment(self) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("HOME", "LANG", "LC_ALL") if name in os.environ}
        return {**kept, "PATH": PLACES, "SLURM_CONF": str(self.folder / "slurm.conf")}


def wait_for(
    condition: Callable[[], bool], what: str, logs: Callable[[], str] = lambda: "", seconds: float = 120.0
) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"{what}\n{logs()}"
        time.sleep(0.2)
