"""A simulated CML workspace for tests: real processes and networks behind the platform's four calls."""

from .faults import KNOWN as FAULTS
from .kernel import Kernel, KernelDiedError, Run
from .leftovers import remove_leftovers
from .network import NetworkError
from .notebook import Session
from .settings import ON_PREMISES, Limits
from .truth import Call, SessionTruth
from .workspace import Workspace

__all__ = [
    "FAULTS",
    "ON_PREMISES",
    "Call",
    "Kernel",
    "KernelDiedError",
    "Limits",
    "NetworkError",
    "Run",
    "Session",
    "SessionTruth",
    "Workspace",
    "remove_leftovers",
]
