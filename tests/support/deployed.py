"""compose.prod.yml, deployed with the programs of production."""

import os
import subprocess
import sys
from pathlib import Path

from app.paths import PROJECT_ROOT
from tests.support.proxied import docker
from tests.support.stacks import IMAGE, ProdStack

REPLICAS = 2


class DeployedStack(ProdStack):
    """compose.prod.yml with a first release, and the programs of `make deploy`, `make rollback` and `make rotate`."""

    def __init__(self, directory: Path, image: str, *, workers: int = 2, settle: float = 0, **environment: str) -> None:
        self._tag = f"deploy-{os.getpid()}"
        self._first = image
        self.log = directory / "log.jsonl"
        super().__init__(
            f"headroom-deploy-{os.getpid()}",
            directory / "secrets",
            build=False,
            API_REPLICAS=str(REPLICAS),
            WEB_CONCURRENCY=str(workers),
            DEPLOY_SETTLE_SECONDS=str(settle),
            DEPLOY_LOG=str(self.log),
            IMAGE_TAG=self._tag,  # a deploy changes what the tag of the API's image names
            **environment,
        )
        for name in ("headroom-postgres", "headroom-pgbouncer"):
            docker("tag", f"{name}:{IMAGE.rpartition(':')[2]}", f"{name}:{self._tag}")

    def up(self) -> None:
        self.run("deploy", "--image", self._first)

    def down(self) -> None:
        super().down()
        command = ["docker", "image", "ls", "--format", "{{.Repository}}:{{.Tag}}"]
        images = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        ours = [each for each in images if each.startswith(f"{self.name}-release:") or each.endswith(f":{self._tag}")]
        docker("rmi", "--force", *ours)

    def run(
        self, *arguments: str, check: bool = True, environment: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run `python -m ops.deploy` for this stack. Return its status and output."""
        return operate(self, *arguments, check=check, environment=environment)


def operate(
    stack: ProdStack, *arguments: str, check: bool = True, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `python -m ops.deploy` for a stack. Return its status and output."""
    own = {"COMPOSE_PROJECT_NAME": stack.name, "COMPOSE_ENV_FILES": os.devnull}
    finished = subprocess.run(
        [sys.executable, "-m", "ops.deploy", *arguments],
        cwd=PROJECT_ROOT,
        env=os.environ | stack.environment | own | (environment or {}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert not check or finished.returncode == 0, finished.stdout + finished.stderr
    return finished
