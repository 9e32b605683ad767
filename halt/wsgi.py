"""The WSGI application: `gunicorn halt.wsgi:app`."""

from __future__ import annotations

import sys

from halt.app import create_app
from halt.config.settings import ConfigError
from halt.web.server_check import EXIT_STATUS

try:
    app = create_app()
except ConfigError as fault:
    print(f"halt: {fault}", file=sys.stderr, flush=True)
    sys.exit(EXIT_STATUS)
