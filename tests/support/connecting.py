"""A program that says which of its arguments, each HOST:PORT, accept a connection."""

# Twice, with a pause: Docker's rules between networks are incomplete for a moment while another network is created.
CONNECT = """
import socket, sys, time
from concurrent.futures import ThreadPoolExecutor

def reaches(target):
    host, port = target.rsplit(":", 1)
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except OSError:
        return False
    return True

targets = sys.argv[1:]
with ThreadPoolExecutor(64) as threads:
    for attempt in range(2):
        time.sleep(attempt)
        targets = [target for target, reached in zip(targets, threads.map(reaches, targets)) if reached]
print(*targets)
"""
