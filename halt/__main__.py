"""`halt-chat`, and the same as `python -m halt`."""

import sys

if not __package__:  # run as a file, as gunicorn does to replace itself: see `halt.serve`
    sys.path[0] = __file__.rpartition("/")[0].rpartition("/")[0]

from halt.commands import main

if __name__ == "__main__":
    main()
