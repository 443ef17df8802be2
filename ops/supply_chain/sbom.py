"""Write what the project's images contain to sbom/, one CycloneDX document each: `make sbom`.

Argument: the tag of the images. The packages are those that are installed in an image: Debian's, and in the image of
the API those of Python. The other images come with documents of their publishers.
"""

import json
import subprocess
import sys
from pathlib import Path

from cyclonedx.model import Property
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

IMAGES = ("headroom", "headroom-pgbouncer", "headroom-postgres")
FOLDER = Path("sbom")
DEBIAN = ["dpkg-query", "--show", "--showformat", "${Package}\t${Version}\t${Architecture}\n"]
PYTHON = (
    "import importlib.metadata as m, json;"
    "print(json.dumps(sorted({(d.metadata['Name'].lower().replace('_', '-'), d.version) for d in m.distributions()})))"
)


def docker(*arguments: str) -> str:
    """Return the output of a command of Docker. Raise CalledProcessError if it fails."""
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, check=True).stdout  # noqa: S607


def run_in(image: str, *command: str) -> str:
    """Return the output of a command in a new container without a network."""
    return docker("run", "--rm", "--network=none", f"--entrypoint={command[0]}", image, *command[1:])


def library(kind: str, name: str, version: str, **qualifiers: str) -> Component:
    """Return a package. `kind` is a type of package URL."""
    namespace = "debian" if kind == "deb" else None
    purl = PackageURL(kind, namespace, name, version, qualifiers)
    return Component(name=name, version=version, type=ComponentType.LIBRARY, purl=purl, bom_ref=str(purl))


def packages(image: str) -> list[Component]:
    """Return the packages that are installed in an image."""
    release = run_in(image, "sh", "-c", '. /etc/os-release && echo "$ID-$VERSION_ID"').strip()
    rows = [line.split("\t") for line in run_in(image, *DEBIAN).splitlines()]
    found = [library("deb", name, version, arch=arch, distro=release) for name, version, arch in rows]
    if image.startswith("headroom:"):
        found += [library("pypi", name, version) for name, version in json.loads(run_in(image, "python", "-c", PYTHON))]
    return found


def document(image: str) -> str:
    """Return the CycloneDX document of an image."""
    [inspected] = json.loads(docker("image", "inspect", image))
    labels = inspected["Config"]["Labels"] or {}
    version = labels.get("org.opencontainers.image.version") or image.partition(":")[2]
    container = Component(name=image.partition(":")[0], version=version, type=ComponentType.CONTAINER)
    container.properties.add(Property(name="image", value=inspected["Id"]))
    if revision := labels.get("org.opencontainers.image.revision"):
        container.properties.add(Property(name="revision", value=revision))
    bom = Bom(components=packages(image))
    bom.metadata.component = container
    bom.register_dependency(container, bom.components)
    return JsonV1Dot6(bom).output_as_string(indent=2)


def main() -> int:
    """Write a document for each image. Return the exit status."""
    tag = sys.argv[1]
    FOLDER.mkdir(exist_ok=True)
    for image in IMAGES:
        name = f"{image}:{tag}"
        if not docker("image", "ls", "--quiet", name):
            print(f"{name} does not exist: build it, or name another tag: make sbom tag=TAG", file=sys.stderr)
            return 1
        text = document(name)
        file = FOLDER / f"{image}.cdx.json"
        file.write_text(text + "\n")
        print(f"{file}: {len(json.loads(text)['components'])} packages")
    return 0


if __name__ == "__main__":
    sys.exit(main())
