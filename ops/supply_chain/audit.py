"""Look for known vulnerabilities of locked packages with pip-audit: `make audit`.

Arguments: files with locked requirements. Exit status: 0 without a vulnerability, or if the advisory service does not
answer (one line says so); 1 otherwise.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

PIP_AUDIT = Path(sys.executable).with_name("pip-audit")


def audit(file: str) -> tuple[int, str]:
    """Return an exit status, and lines for the operator, about one file."""
    command = [
        str(PIP_AUDIT),
        "--disable-pip",
        "--require-hashes",
        "--format=json",
        "--progress-spinner=off",
        "-r",
        file,
    ]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if not finished.stdout.startswith("{"):
        last = (finished.stderr.strip().splitlines() or ["no output"])[-1]
        # Of a connection that fails, pip-audit shows a traceback of `requests`.
        reached = "requests.exceptions" not in finished.stderr and "ConnectionError" not in finished.stderr
        return (1, f"{file}: pip-audit failed: {last}") if reached else (0, f"{file}: skipped: {last}")
    packages: list[dict[str, Any]] = json.loads(finished.stdout)["dependencies"]
    unknown = [package["name"] for package in packages if "skip_reason" in package]
    if unknown and len(unknown) == len(packages):
        return 0, f"{file}: skipped: the advisory service knows none of the {len(packages)} packages"
    found = [
        f"{file}: {package['name']} {package['version']}: {vulnerability['id']}"
        f" (fixed in {', '.join(vulnerability['fix_versions']) or 'no version'})"
        for package in packages
        for vulnerability in package.get("vulns", [])
    ]
    found += [f"{file}: {name}: not audited" for name in unknown]
    return (1, "\n".join(found)) if found else (0, f"{file}: {len(packages)} packages, no known vulnerability")


def main() -> int:
    """Audit each file. Return the exit status."""
    statuses = set()
    for file in sys.argv[1:]:
        status, lines = audit(file)
        print(lines, file=sys.stderr if status else sys.stdout, flush=True)
        statuses.add(status)
    return max(statuses, default=0)


if __name__ == "__main__":
    sys.exit(main())
