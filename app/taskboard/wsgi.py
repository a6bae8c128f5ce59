"""What gunicorn runs: `taskboard.wsgi:app`."""

import os

from taskboard import Settings, create_app

app = create_app(Settings.from_environment(os.environ))
