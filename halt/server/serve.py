"""The server's process: gunicorn with Halt's settings, wherever it is started."""

from __future__ import annotations

import gc
import os
import signal
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from typing import NoReturn

from halt.assets import GUNICORN_SETTINGS, PACKAGE
from halt.config.environment import load, take, variable
from halt.config.settings import ConfigError

#: gunicorn would read a `gunicorn.conf.py` of the current folder otherwise.
SETTINGS = ["-c", str(GUNICORN_SETTINGS)]


def run_server(options: Sequence[str] = ()) -> NoReturn:
    """Run gunicorn in this process until it is told to leave; all that is loaded, its workers have.

    `options` are gunicorn's own and come before Halt's settings. Leaves with one line where a
    setting is wrong.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until gunicorn has its own: no traceback before
    gc.disable()  # until the server listens: nothing of what is imported is garbage (0.13 s of 1.1)
    try:
        load()  # before gunicorn is loaded, which reads WEB_CONCURRENCY by itself
        if not variable("WEB_CONCURRENCY"):  # an empty one counts as unset
            take("WEB_CONCURRENCY")
        os.getcwd()
    except OSError as fault:
        sys.exit(f"halt: the current folder cannot be used: {fault.strerror}. Go to another one.")
    except ConfigError as fault:
        sys.exit(f"halt: {fault}")
    from gunicorn.app.wsgiapp import WSGIApplication  # noqa: PLC0415
    from gunicorn.config import Chdir  # noqa: PLC0415

    class Server(WSGIApplication):  # type: ignore[misc]
        """gunicorn, but for the path of imports and the name of the application."""

        def init(self, parser: ArgumentParser, opts: Namespace, args: list[str]) -> dict[str, str]:
            """Take no application but Halt's, whose settings a `-c` of the user's may leave out."""
            if args:
                parser.error(f"unrecognized arguments: {' '.join(args)}")
            super().init(parser, opts, args)
            return {"wsgi_app": "halt.wsgi:app"}

        def chdir(self) -> None:
            """Go to the folder that --chdir names. The current one may hold modules of any name."""
            if self.cfg.chdir != Chdir.default:  # else it is the current one, readable or not
                os.chdir(self.cfg.chdir)

    given = list(options)
    if given[:2] != SETTINGS:  # they are there where gunicorn (SIGUSR2) has started this again
        given = [*SETTINGS, *given]
    sys.argv = [str(PACKAGE / "__main__.py"), *given]  # what it starts again to replace itself
    Server("%(prog)s [OPTIONS]", prog="halt-chat").run()
    sys.exit(0)
