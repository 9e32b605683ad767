"""`halt-chat`, and the same as `python -m halt`."""

import signal
import sys

if not __package__:  # run as a file, as gunicorn does to replace itself: see `halt.server.serve`
    sys.path[0] = __file__.rpartition("/")[0].rpartition("/")[0]


def main() -> None:
    """Run the command of this process's arguments. Ctrl-C ends it quietly while it is loaded."""
    handler = signal.signal(signal.SIGINT, signal.SIG_DFL)
    from halt.server.command_line import main as run  # noqa: PLC0415

    signal.signal(signal.SIGINT, handler)
    run()


if __name__ == "__main__":
    main()
