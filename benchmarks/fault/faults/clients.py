"""Clients that disconnect early, and clients that are slow."""

import asyncio
import random
from collections.abc import Coroutine
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import Any

import uvloop

from benchmarks.fault.faults.registry import fault as register
from benchmarks.fault.traffic import Client, Traffic
from benchmarks.fault.trial import Trial
from tests.support.load import get

fault = partial(register, group="Clients")

HANG_UPS = 300
SLOW_CLIENTS = 1000
REQUESTS = 200_000
CLIENTS = 64
# The seconds after which the rest of the 200,000 requests is left out, in lengths of other faults: 400 s by default.
REQUESTS_WITHIN = 100


@fault("300 disconnect")
def hang_up(trial: Trial) -> None:
    """Clients send a write and close the connection before the answer, again and again."""
    uvloop.run(_hang_up(trial.traffic, trial.seconds))


async def _hang_up(traffic: Traffic, seconds: float) -> None:
    until = monotonic() + seconds

    async def run_client() -> None:
        client = Client(traffic)
        while monotonic() < until:
            await traffic.write(client, hang_up_after=random.random() * 0.02)
            client.close()
            await asyncio.sleep(random.random())

    await asyncio.gather(*(run_client() for _ in range(HANG_UPS)))


@fault("1,000 slow ones")
def be_slow(trial: Trial) -> None:
    """Half of them send a request byte by byte; half of them request lists and do not read the answers."""
    uvloop.run(_be_slow(trial.traffic, trial.seconds * 2))


async def _be_slow(traffic: Traffic, seconds: float) -> None:
    until = monotonic() + seconds
    request = get("/posts?cursor=&limit=100")

    async def send_slowly() -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", traffic.port)
        for byte in request[:-4]:
            if monotonic() > until:
                break
            writer.write(bytes([byte]))
            await asyncio.sleep(0.5)
        writer.close()

    async def read_nothing() -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", traffic.port, limit=1024)
        for _ in range(20):
            writer.write(request)
        await asyncio.sleep(until - monotonic())
        writer.close()

    async def run(client: Coroutine[Any, Any, None], delay: float) -> None:
        await asyncio.sleep(delay)
        with suppress(OSError):
            await client

    slow = [send_slowly() if number % 2 else read_nothing() for number in range(SLOW_CLIENTS)]
    # They arrive within a second: more at once would overflow the listener's queue.
    await asyncio.gather(*(run(client, number / SLOW_CLIENTS) for number, client in enumerate(slow)))


@fault("200,000 requests, one in ten aborted")
def hang_up_at_random(trial: Trial) -> None:
    uvloop.run(_hang_up_at_random(trial.traffic, trial.seconds * REQUESTS_WITHIN))


async def _hang_up_at_random(traffic: Traffic, seconds: float) -> None:
    until = monotonic() + seconds
    left = REQUESTS

    async def run_client() -> None:
        nonlocal left
        client = Client(traffic)
        actions = (traffic.write, traffic.read_back, traffic.read_back, traffic.read_list, traffic.read_author)
        while left > 0 and monotonic() < until:
            left -= 1
            after = random.expovariate(200) if random.random() < 0.1 else None
            await random.choice(actions)(client, hang_up_after=after)
        client.close()

    await asyncio.gather(*(run_client() for _ in range(CLIENTS)))
