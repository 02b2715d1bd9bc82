"""What the gateway remembers between requests and starts: durable, bounded, shared by processes."""

from .changes import NO_CHANGE, Change
from .disk import Disk
from .journal import Ticket
from .sessions import SessionInfo, Sessions, open_sessions

__all__ = ["NO_CHANGE", "Change", "Disk", "SessionInfo", "Sessions", "Ticket", "open_sessions"]
