"""`halt-chat`, and the same as `python -m halt`."""

import sys

if __package__ == "":  # run as a file, by which gunicorn starts itself anew: see `halt.serve`
    sys.path[0] = __file__.rpartition("/")[0].rpartition("/")[0]

from halt.commands import main

if __name__ == "__main__":
    main()
