"""Starts the server from a checkout: `python app.py`, `gunicorn app:app`, `flask --app app run`."""

import sys

if __name__ == "__main__":
    from halt.server.serve import run_server

    run_server(sys.argv[1:])
else:
    from halt.app import create_app
    from halt.wsgi import app

    __all__ = ["app", "create_app"]
