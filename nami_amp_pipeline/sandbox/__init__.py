"""A local Amplitude to develop and test against: as strict as its documentation, and able to fail."""

from .answers import Answer, Transport
from .core import Sandbox
from .faults import KINDS, Fault, FaultError, FaultKind
from .server import SandboxServer, serve
from .settings import Options, Project

__all__ = [
    "KINDS",
    "Answer",
    "Fault",
    "FaultError",
    "FaultKind",
    "Options",
    "Project",
    "Sandbox",
    "SandboxServer",
    "Transport",
    "serve",
]
