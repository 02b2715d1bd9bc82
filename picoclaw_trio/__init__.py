"""An OpenAI-compatible gateway to your own PicoClaw agent and models, in Python on Trio.

``app`` is the ASGI application: ``hypercorn picoclaw_trio:app --worker-class trio``.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, Scope

    from .web import GatewayApp

__all__ = ["__version__", "app"]


class _LazyApp:
    """The application, built when it is first used, so that the command line does not wait for a server's imports."""

    def __init__(self) -> None:
        self._built: GatewayApp | None = None

    def _get(self) -> GatewayApp:
        if self._built is None:
            from .opening import create_app

            self._built = create_app()
        return self._built

    async def __call__(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        if "trio" in sys.modules and sys.modules["trio"].lowlevel.in_trio_run():
            await self._get()(scope, receive, send)
        else:
            from .opening import refuse_loop

            await refuse_loop(scope, receive, send)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._get(), name)


app = _LazyApp()

if "hypercorn.trio.run" in sys.modules:
    # A worker of Hypercorn's is importing us, its event loop is yet to start: what it gets wrong must be mended now.
    from . import host

    host.mend()
