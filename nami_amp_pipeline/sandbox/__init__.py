"""A local Amplitude to develop and test against: as strict as its documentation, and able to fail."""

from .answers import Answer, Transport
from .core import Sandbox
from .fault_kinds import KINDS, FaultError, FaultKind
from .faults import Fault
from .scenes import SCENES, Scene
from .scenes import start as start_scene
from .server import SandboxServer, serve
from .settings import Options, Project, key_digest

__all__ = [
    "KINDS",
    "SCENES",
    "Answer",
    "Fault",
    "FaultError",
    "FaultKind",
    "Options",
    "Project",
    "Sandbox",
    "SandboxServer",
    "Scene",
    "Transport",
    "key_digest",
    "serve",
    "start_scene",
]
