"""The command line: `halt-chat` or `python -m halt`."""

import signal
import sys

if not __package__:  # run as a file, as gunicorn does to re-execute itself: see `halt.server.serve`
    sys.path[0] = __file__.rpartition("/")[0].rpartition("/")[0]


def main() -> None:
    """Run the command in `sys.argv`. While modules load, Ctrl-C ends it without a traceback."""
    handler = signal.signal(signal.SIGINT, signal.SIG_DFL)
    from halt.server.command_line import main as run  # noqa: PLC0415

    signal.signal(signal.SIGINT, handler)
    run()


if __name__ == "__main__":
    main()
