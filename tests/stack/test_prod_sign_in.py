"""Sign-in with compose.prod.yml: through the proxy, with two replicas, and with the limits of its containers."""

import asyncio

import httpx
import pytest

from tests.support.proxied import create_network, docker, run_client
from tests.support.stacks import ProdStack


def test_token_of_one_replica_is_valid_for_the_other(prod: ProdStack) -> None:
    """The proxy sends the requests of one client to both replicas."""
    cy = {"email": "cy@example.com", "name": "Cy", "password": "correct horse"}
    prod.client.post("/users", json=cy)
    token = prod.client.post("/auth/token", data={"username": cy["email"], "password": cy["password"]}).json()
    authorization = {"authorization": f"Bearer {token['access_token']}"}

    emails = {prod.client.get("/users/me", headers=authorization).json()["email"] for _ in range(8)}

    assert emails == {cy["email"]}


SIGN_INS = """
import collections, http.client, ssl, sys, urllib.parse
number, email, password = int(sys.argv[1]), sys.argv[2], sys.argv[3]
connection = http.client.HTTPSConnection("proxy", 8443, context=ssl._create_unverified_context())
statuses = collections.Counter()
for i in range(number):
    form = {"username": email.replace("#", str(i)), "password": password}
    forged = f"203.0.{i // 250}.{i % 250}"
    headers = {"X-Forwarded-For": forged, "X-Real-IP": forged, "Forwarded": "for=" + forged}
    headers["Content-Type"] = "application/x-www-form-urlencoded"
    connection.request("POST", "/auth/token", urllib.parse.urlencode(form), headers)
    answer = connection.getresponse()
    answer.read()
    statuses[answer.status] += 1
print(*(f"{status}:{times}" for status, times in sorted(statuses.items())))
"""


def test_attacker_with_forged_addresses_is_limited_and_no_other_client(prod: ProdStack) -> None:
    """The proxy's own limit is off here: the API counts failed sign-ins by the address that the proxy names."""
    bob = {"email": "bob@example.com", "name": "Bob", "password": "correct horse"}
    assert prod.client.post("/users", json=bob).status_code == 201
    outside = f"{prod.name}-clients"
    create_network(outside)
    proxy = prod.inspect("proxy")["Id"]
    docker("network", "connect", "--alias", "proxy", outside, proxy)
    try:
        attacked = run_client(outside, 1, SIGN_INS, "300", "guess-#@example.com", "wrong horse")
        assert attacked == "401:100 429:200"
        assert run_client(outside, 1, SIGN_INS, "1", bob["email"], bob["password"]) == "429:1", "the attacker"
        assert run_client(outside, 2, SIGN_INS, "1", bob["email"], bob["password"]) == "200:1", "another client"
    finally:
        docker("network", "disconnect", outside, proxy)
        docker("network", "rm", outside)


@pytest.mark.alone
async def test_many_simultaneous_sign_ins_get_no_500(prod: ProdStack) -> None:
    """A password is hashed in threads, whose number the container limits."""
    limits = httpx.Limits(max_connections=400)
    async with httpx.AsyncClient(base_url=prod.api, verify=prod.tls, limits=limits, timeout=60) as client:

        async def sign_in(number: int) -> int:
            form = {"username": f"{number}@example.com", "password": "correct horse"}
            return (await client.post("/auth/token", data=form)).status_code

        statuses = set(await asyncio.gather(*(sign_in(number) for number in range(400))))

    assert statuses <= {401, 429, 503}
