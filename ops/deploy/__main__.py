"""`python3 -m ops.deploy deploy | rollback | rotate`: parse the command line, take the locks, run the operation."""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from ops.deploy import interrupts, operations, remote
from ops.deploy.errors import DeployFailed
from ops.deploy.lock import locked
from ops.deploy.rotation import Rotation
from ops.deploy.stack import Stack
from ops.deploy.timeline import Timeline, log_file

Operation = Callable[[Stack, Timeline], None]


def main() -> int:
    """Run one operation in the working directory. Return 0 if it succeeded, otherwise print the reason."""
    options = _parser().parse_args()
    interrupts.install()
    try:
        if target := remote.target(options.on):
            return remote.run(target, options.directory, sys.argv[1:])
        with remote.unpacked(options.unpack):
            stack = Stack(Path.cwd())
            timeline = Timeline(options.operation, log_file(Path.cwd()))
            with locked(stack, options.operation), timeline.kept():
                _operation(options)(stack, timeline)
    except (DeployFailed, OSError) as error:
        if details := getattr(error, "details", ""):
            print(details, file=sys.stderr)
        print(f"{options.operation}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{options.operation}: interrupted", file=sys.stderr)
        return 130
    return 0


def _operation(options: argparse.Namespace) -> Operation:
    match options.operation:
        case "deploy":
            return partial(operations.deploy, image=options.image)
        case "rollback":
            return partial(operations.rollback, to=options.to)
    return lambda stack, timeline: Rotation(stack, timeline).rotate(options.secret)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python3 -m ops.deploy", description=__doc__)
    parser.add_argument("--on", default="", metavar="USER@HOST", help="run it on this host, over SSH")
    parser.add_argument("--directory", default="headroom", help="the folder there (default: %(default)s)")
    parser.add_argument("--unpack", default="", metavar="FILE", help=argparse.SUPPRESS)
    commands = parser.add_subparsers(dest="operation", required=True)
    deploy = commands.add_parser("deploy", help="build, migrate, replace the replicas")
    deploy.add_argument("--image", default="", help="deploy this image instead of building one")
    rollback = commands.add_parser("rollback", help="go back to the release before")
    rollback.add_argument("--to", default="", help="the number or the version of another release")
    rotate = commands.add_parser("rotate", help="replace a secret")
    rotate.add_argument("secret", help="its name")
    return parser


if __name__ == "__main__":
    sys.exit(main())
