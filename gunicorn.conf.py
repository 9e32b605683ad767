"""Settings of gunicorn, which loads this file by its name if it is started in this folder."""

from halt.server.gunicorn_conf import settings

globals().update(settings())  # gunicorn reads this file again at each SIGHUP
