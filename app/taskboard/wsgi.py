"""What gunicorn runs: `taskboard.wsgi:app`."""

import os

from taskboard.application import create_app
from taskboard.settings import Settings

app = create_app(Settings.from_environment(os.environ))
