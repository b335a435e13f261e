"""A notebook on a platform with faults, and what must hold after every one of them."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workspace import Kernel, Limits, Session, SessionTruth, Workspace

from support.notebook import Notebook
from support.state_folder import private

STATE = "DASK_CML_DASK_MAGICS__STATE_DIRECTORY"
SECRETS = ("ca.pem", "cert.pem", "key.pem", "scheduler.json")
USUAL = {
    "start_delay_s": 0.5,
    "start_jitter": 0.2,
    "quota": Limits(),
    "capacity": Limits(),
    "bare_list": False,
}
# Seconds of waiting made short in a kernel: the code is the same, and there is no setting for them.
HURRY = """
from dataclasses import replace
from cml_dask_magics import CMLCluster
from cml_dask_magics.model.times import Times
CMLCluster.times = Times(
    stop_s=4.0, suspects_s=2.0, beat_s=1.0, lease_s=5.0, stop_again_s=0.5, poll_quiet_s=0.5, steer_s=0.5
)
"""
# Where what is waited for does come, however slow the machine is.
PATIENT = "CMLCluster.times = replace(CMLCluster.times, stop_s=60.0, suspects_s=60.0)"
SLEEPER = """
import time
def slowly(i):
    time.sleep(0.3)
    return i
work = client.map(slowly, range({n}), pure=False)
"""


@dataclass
class Faulty(Notebook):
    """A notebook whose platform has faults, with a state folder of its own, and whom it must not harm."""

    state: Path
    other: Session
    others: list[str] = field(default_factory=list)
    set_aside: int = 0
    # What was before this test, if another one had this notebook before.
    former: frozenset[str] = frozenset()
    since: float = 0.0

    @classmethod
    def open(cls, workspace: Workspace) -> Faulty:
        """A notebook with the extension loaded, and beside it sessions of the same person and of another one."""
        session, other = workspace.open_session(), workspace.open_session()
        bystanders = [workspace.launch_foreign(session), workspace.launch_foreign(other)]
        # Two levels, as by default: the folder must be made.
        state = workspace.home / f"of-{session.id}" / "state"
        kernel = session.kernel(env={STATE: str(state)})
        notebook = cls(workspace, session, kernel, bystanders[0], state, other, bystanders)
        notebook.run("%load_ext cml_dask_magics")
        notebook.run(HURRY)
        return notebook

    def forget(self) -> None:
        """Let the next test find nothing of those before it."""
        self.former |= {session.id for session in self.launched()}
        self.since = time.time()

    def check(self) -> None:
        """The three checks."""
        left, alive = self.workspace.alive(), self.workspace.alive(foreign=True)
        assert not left, "sessions of ours are alive"

        ours = {session.id for session in self.launched()}
        stopped = {session for call in self.calls("stop") for session in call.ids}
        assert not [session for session in self.others if session not in alive], "another session was ended"
        assert self.session.truth.alive and not self.calls("stop_without_ids") and stopped <= ours

        state = private(self.state)
        records = [path.relative_to(state) for path in state.glob("clusters/*")]
        secrets = [path.relative_to(state) for path in state.rglob("*") if path.name in SECRETS]
        aside = [path.name for path in state.glob("broken/*")]
        assert not records and not secrets and len(aside) == self.set_aside, (records, secrets, aside)
        assert self.other.truth.alive

    def launched(self, role: str = "") -> list[SessionTruth]:
        """Every session that was launched from here for a cluster, or those with a scheduler, or a worker."""
        return [
            one
            for one in self.workspace.sessions()
            if one.launched_by == self.session.id
            and not one.foreign
            and one.id not in self.former
            and f'session.py" {role}' in one.code
        ]

    def living(self, role: str = "") -> list[str]:
        """Ids of those that are alive."""
        return [one.id for one in self.launched(role) if one.alive]

    def running(self, role: str = "") -> list[str]:
        """Ids of those that the platform has started."""
        return [one.id for one in self.launched(role) if one.alive and one.status == "running"]

    def calls(self, call: str) -> list[Any]:
        """The requests of this notebook's session."""
        return [one for one in self.workspace.calls(call) if one.caller == self.session.id and one.at >= self.since]

    def tells(self, *words: str) -> bool:
        """Whether an event of the cluster holds all these words."""
        messages = [event["message"] for event in self.status()["events"]]
        return any(all(word in message for word in words) for message in messages)

    def await_told(self, *words: str) -> None:
        """Wait until the cluster tells of something."""
        self.workspace.wait_until(lambda: self.tells(*words), timeout=60, interval=0.3)

    def compute(self) -> None:
        """The cluster must be of use."""
        assert self.run("print(client.submit(sum, range(10), pure=False).result(timeout=60))").strip() == "45"

    def await_healthy(self, n: int, without: Collection[str] = ()) -> None:
        """Wait until the cluster runs with `n` workers, none of them in one of these sessions."""

        def healthy() -> bool:
            shown = self.status()
            sessions = [worker["session"] for worker in shown["workers"] if worker["state"] == "running"]
            return shown["state"] == "running" and len(sessions) == n and not set(sessions) & set(without)

        self.workspace.wait_until(healthy, timeout=90, interval=0.3)
        assert len(self.living()) == n + 1

    def start_computing(self, n: int = 12) -> None:
        """Let the workers have `n` tasks of 0.3 s."""
        self.run(SLEEPER.format(n=n))

    @contextlib.contextmanager
    def patient(self) -> Iterator[None]:
        """What is started in here waits as long as on the platform, and longer, for sessions to print something."""
        self.run(PATIENT)
        yield
        self.run(HURRY)

    def finish_computing(self, n: int = 12) -> None:
        """The computation must come to its right end."""
        total = self.run("from distributed import wait\n_ = wait(work, timeout=100)\nprint(sum(client.gather(work)))")
        assert int(total) == sum(range(n))

    def kernel_beside(self) -> Kernel:
        """One more kernel in the same session, with the extension loaded."""
        kernel = self.session.kernel(env={STATE: str(self.state)})
        run = kernel.run(f"%load_ext cml_dask_magics\n{HURRY}")
        assert run.error is None, run.error
        return kernel

    def new_kernel(self, folder: Path | None = None, **environment: str) -> str:
        """Another kernel in the same session, in a folder of the shared home; what loading the extension said."""
        said = super().new_kernel(folder, **{STATE: str(self.state), **environment})
        self.run(HURRY)
        return said

    def clean(self) -> None:
        """Have the platform as it should be."""
        self.workspace.clear_faults()
        self.workspace.configure(**USUAL)

    def close(self) -> None:
        """End the sessions, and what was launched from them."""
        self.session.close()
        self.other.close()


def shell(session: Session, *argv: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a person's session; it must succeed."""
    done = session.exec(list(argv))
    assert done.returncode == 0, done.stderr
    return done
