"""gunicorn's settings; it finds this file by its name when it is started from this folder."""

from halt.server.gunicorn_conf import settings

globals().update(settings())  # read again at each SIGHUP
