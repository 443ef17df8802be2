"""An API server that knows the kinds of some manifests and one Secret: for helm's `lookup`, which needs a cluster."""

import base64
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any


def _answers(manifests: Sequence[Mapping[str, Any]], namespace: str, name: str, secret: Mapping[str, str]) -> Any:
    """Return the answers by path: the discovery of the kinds, and the Secret."""
    kinds: dict[str, set[str]] = defaultdict(set)
    for manifest in manifests:
        kinds[manifest["apiVersion"]].add(manifest["kind"])
    kinds["v1"].add("Secret")
    answers: dict[str, Any] = {"/version": {"major": "1", "minor": "37", "gitVersion": "v1.37.0"}}
    groups = []
    for version, of_version in kinds.items():
        resources = [
            {"name": f"{kind.lower()}s", "singularName": "", "namespaced": True, "kind": kind, "verbs": ["get"]}
            for kind in of_version
        ]
        group, slash, number = version.partition("/")
        listed = {"groupVersion": version, "version": number}
        if slash:
            groups.append({"name": group, "versions": [listed], "preferredVersion": listed})
        answers[f"/apis/{version}" if slash else f"/api/{version}"] = {
            "kind": "APIResourceList",
            "groupVersion": version,
            "resources": resources,
        }
    answers["/api"] = {"kind": "APIVersions", "versions": ["v1"]}
    answers["/apis"] = {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
    answers[f"/api/v1/namespaces/{namespace}/secrets/{name}"] = {
        "kind": "Secret",
        "apiVersion": "v1",
        "metadata": {"name": name, "namespace": namespace},
        "data": {key: base64.b64encode(value.encode()).decode() for key, value in secret.items()},
    }
    return answers


@contextmanager
def cluster_with_secret(manifests: Sequence[Mapping[str, Any]], name: str, secret: Mapping[str, str]) -> Iterator[str]:
    """Serve a cluster with a Secret in the namespace `prod`. Yield its address."""
    answers = _answers(manifests, "prod", name, secret)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = answers.get(self.path.partition("?")[0])
            status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}
            body = json.dumps(answer or status).encode()
            self.send_response(200 if answer else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
