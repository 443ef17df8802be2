"""Metrics and logs of a process. Importing this package must not import prometheus_client: see `multiprocess.py`."""
