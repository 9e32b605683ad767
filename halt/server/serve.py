"""Runs gunicorn with Halt's settings in this process."""

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

#: Without it gunicorn would read a `gunicorn.conf.py` in the current folder.
SETTINGS = ["-c", str(GUNICORN_SETTINGS)]


def run_server(options: Sequence[str] = ()) -> NoReturn:
    """Run gunicorn in this process until it ends. Its workers inherit all loaded modules.

    `options` are gunicorn's and override Halt's settings. A wrong setting ends the process with a
    one-line error.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until gunicorn sets its handler: no traceback
    gc.disable()  # until the server listens: imports make no garbage (saves 0.13 of 1.1 s)
    try:
        load()  # before the import of gunicorn, which reads WEB_CONCURRENCY itself
        if not variable("WEB_CONCURRENCY"):  # an empty one counts as unset
            take("WEB_CONCURRENCY")
        os.getcwd()
    except OSError as fault:
        sys.exit(
            f"halt: the current folder cannot be used: {fault.strerror}. Change to another folder."
        )
    except ConfigError as fault:
        sys.exit(f"halt: {fault}")
    from gunicorn.app.wsgiapp import WSGIApplication  # noqa: PLC0415
    from gunicorn.config import Chdir  # noqa: PLC0415

    class Server(WSGIApplication):  # type: ignore[misc]
        """gunicorn, except for the import path and the name of the application."""

        def init(self, parser: ArgumentParser, opts: Namespace, args: list[str]) -> dict[str, str]:
            """Serve Halt alone, also if the user's own `-c` file does not name the application."""
            if args:
                parser.error(f"unrecognized arguments: {' '.join(args)}")
            super().init(parser, opts, args)
            return {"wsgi_app": "halt.wsgi:app"}

        def chdir(self) -> None:
            """Change to the folder of --chdir. Do not import from it: it may hold any module."""
            if self.cfg.chdir != Chdir.default:  # else it is the current one, readable or not
                os.chdir(self.cfg.chdir)

    arguments = list(options)
    if arguments[:2] != SETTINGS:  # else gunicorn has executed this again (SIGUSR2)
        arguments = [*SETTINGS, *arguments]
    sys.argv = [str(PACKAGE / "__main__.py"), *arguments]  # gunicorn executes it on SIGUSR2
    Server("%(prog)s [OPTIONS]", prog="halt-chat").run()
    sys.exit(0)
