"""The tests of every operation know all of them."""

import re

from fastapi import FastAPI

from tests.support.operations import HERE, OPERATIONS, PARAMETERS, documented


def test_each_operation_of_the_application_is_in_operations(app: FastAPI) -> None:
    missing = sorted(documented(app).keys() - OPERATIONS.keys())

    assert not missing, f"add to OPERATIONS in {HERE}: {', '.join(missing)}"


def test_each_entry_of_operations_is_in_the_application(app: FastAPI) -> None:
    unknown = sorted(OPERATIONS.keys() - documented(app).keys())

    assert not unknown, f"remove from OPERATIONS in {HERE}: {', '.join(unknown)}"


def test_each_operation_of_a_domain_has_its_costs(app: FastAPI) -> None:
    domains = {name for name, operation in documented(app).items() if operation.get("tags") != ["health"]}
    without = sorted(name for name in domains & OPERATIONS.keys() if not OPERATIONS[name].costs)

    assert not without, f"add costs= to these of OPERATIONS in {HERE}: {', '.join(without)}"


def test_each_path_parameter_is_in_parameters() -> None:
    named = {parameter for name in OPERATIONS for parameter in re.findall(r"{(\w+)}", name)}
    missing, unknown = sorted(named - PARAMETERS.keys()), sorted(PARAMETERS.keys() - named)

    assert not missing, f"add to PARAMETERS in {HERE}: {', '.join(missing)}"
    assert not unknown, f"remove from PARAMETERS in {HERE}: {', '.join(unknown)}"
