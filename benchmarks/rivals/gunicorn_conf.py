"""For the rivals: as many workers as Headroom has, and no log of requests."""

workers = 4
worker_class = "uvicorn_worker.UvicornWorker"
keepalive = 65
worker_tmp_dir = "/dev/shm"
control_socket_disable = True
