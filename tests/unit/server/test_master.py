"""What Gunicorn's master does at SIGTERM, and the lock between workers."""

import signal
import subprocess
import sys


def test_sigterm_is_handled_in_two_steps() -> None:
    """In a process of its own, because it sets signal handlers and timers."""
    program = """
import os, queue, signal, time
from app.server import master
from app.replica import replica
from app.server.master import announce_stop_at_sigterm

class Arbiter:
    pid = os.getpid()
    signals = []
    SIG_QUEUE = queue.SimpleQueue()
    def signal(self, number, frame):
        self.signals.append((int(number), replica.is_stopping, round(replica.seconds_to_stop)))

BEFORE
announce_stop_at_sigterm(Arbiter(), SECONDS)
FIRST
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
    sigterm = "os.kill(os.getpid(), signal.SIGTERM)"
    before_the_handlers = "Arbiter.SIG_QUEUE.put(signal.SIGTERM)"
    for seconds, before, first, rest, announced in (
        (0, "", sigterm, "", f"{stopped} True 0"),
        (1, "", sigterm, "", "[] True 1"),
        (1, before_the_handlers, "", "", "[] True 1"),
        # `timeout` sends it to the process and to its group.
        (60, "", f"{sigterm}; {sigterm}", f"master.REPEATED_WITHIN_SECONDS = 0; {sigterm}", "[] True 60"),
    ):
        code = program.replace("SECONDS", str(seconds)).replace("REST", rest)
        code = code.replace("BEFORE", before).replace("FIRST", first)
        output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
        assert output.stdout.splitlines() == [announced, stopped, "0"], output.stdout
