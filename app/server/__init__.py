"""The API's process model under Gunicorn: the worker, its listener, and the checks before the first fork."""
