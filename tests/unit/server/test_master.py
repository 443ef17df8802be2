"""What Gunicorn's master does at SIGTERM, and the lock between workers."""

import signal
import subprocess
import sys


def test_sigterm_is_handled_in_two_steps() -> None:
    """In a process of its own, because it sets signal handlers and timers."""
    program = """
import os, signal, time
from app.replica import replica
from app.server.master import announce_stop_at_sigterm

class Arbiter:
    pid = os.getpid()
    signals = []
    def signal(self, number, frame):
        self.signals.append((int(number), replica.is_stopping, round(replica.seconds_to_stop)))

announce_stop_at_sigterm(Arbiter(), SECONDS)
os.kill(os.getpid(), signal.SIGTERM)
print(Arbiter.signals, replica.is_stopping, round(replica.seconds_to_stop))
REST
while not Arbiter.signals:
    time.sleep(0.01)
print(Arbiter.signals)
# In a hook, where Python ignores exceptions.
os.register_at_fork(after_in_child=lambda: os.kill(os.getpid(), signal.SIGTERM))
if os.fork() == 0:
    print("a worker handled the master's signal", flush=True)
    os._exit(1)
print(os.wait()[1])
"""
    term = int(signal.SIGTERM)
    stopped = f"[({term}, True, 0)]"
    for seconds, rest, announced in (
        (0, "", f"{stopped} True 0"),
        (1, "", "[] True 1"),
        (60, "os.kill(os.getpid(), signal.SIGTERM)", "[] True 60"),
    ):
        code = program.replace("SECONDS", str(seconds)).replace("REST", rest)
        output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
        assert output.stdout.splitlines() == [announced, stopped, "0"], output.stdout
