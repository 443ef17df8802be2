"""What a process tells about itself. Importing this package must not import prometheus_client: see `replica.py`."""
