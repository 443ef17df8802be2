"""The list of faults, and the decorator that adds one."""

from collections.abc import Callable

from benchmarks.fault.topology import SETUPS, Plan
from benchmarks.fault.trial import Fault, Trial

REGISTERED: list[Fault] = []
Inject = Callable[[Trial], None]


def fault(
    name: str, group: str, *, setups: tuple[str, ...] = tuple(SETUPS), plan: Plan | None = None
) -> Callable[[Inject], Inject]:
    """Register a function as the fault `name` of a group."""

    def register(inject: Inject) -> Inject:
        REGISTERED.append(Fault(name, group, inject, setups, plan or Plan()))
        return inject

    return register
