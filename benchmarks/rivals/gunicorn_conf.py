"""Gunicorn's configuration for the rivals: Headroom's number of workers, no access log."""

workers = 4
worker_class = "uvicorn_worker.UvicornWorker"
keepalive = 65
worker_tmp_dir = "/dev/shm"
control_socket_disable = True
