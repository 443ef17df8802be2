"""The budget of a Compose file: the replicas that it starts, and the limits in the files that it mounts.

The file is compose.prod.yml, another one with a service `api`, or the output of `docker compose config` for several.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from dotenv import dotenv_values

from app import lanes
from app.budget.model import ApiPools, Budget, Pooler, Server
from app.budget.sources import READ_URLS, BudgetReport
from app.errors import ConfigurationError
from app.settings import Settings

Service = Mapping[str, Any]

# The service whose variables are the terms of the budget, and those whose files have the limits.
_API, _SERVER, _POOLER = "api", "postgres", "pgbouncer"
# $$, the beginning of ${...}, and $NAME. Any other $ stands for itself.
_DOLLAR = re.compile(r"\$(?:(?P<escaped>\$)|(?P<braced>\{)|(?P<name>[_a-zA-Z][_a-zA-Z0-9]*))")
# Between the braces: a name, maybe with one of the operators of a default, an error or an alternative.
_BRACED = re.compile(r"([_a-zA-Z][_a-zA-Z0-9]*)(?:(:?[-?+])(.*))?", re.DOTALL)
_PARAMETER = re.compile(r"^[ \t]*(\w+)(?:[ \t]*=[ \t]*|[ \t]+)'?(\d+)", re.MULTILINE)  # PostgreSQL needs no "="


def is_compose_file(text: str) -> bool:
    """Return True if the text is a Compose file, and not Kubernetes manifests."""
    return re.search(r"^services:", text, re.MULTILINE) is not None


def from_compose_file(text: str, folder: Path, variables: Mapping[str, str]) -> BudgetReport:
    """Return the budget of the service `api`. `folder` is the project's, `variables` are those of its environment.

    Limits come from the mounted configuration of the services `postgres` and `pgbouncer`, and from POSTGRES_* and
    PGBOUNCER_*. Raise ConfigurationError if the text is no Compose file with such a service, or a number is none.
    """
    variables = _env_file(folder / ".env") | dict(variables)
    try:
        return _report(_interpolated(yaml.safe_load(text)["services"], variables), folder, variables)
    except yaml.YAMLError as error:
        raise ConfigurationError(
            f"the Compose file cannot be read ({error}): several files, and those with !override or !reset, need"
            " `docker compose config | headroom budget --file -`"
        ) from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigurationError(
            f"the Compose file is not valid ({error!r}): run docker compose config on it"
        ) from error


def _report(services: Mapping[str, Service], folder: Path, variables: Mapping[str, str]) -> BudgetReport:
    if _API not in services:
        raise ConfigurationError(f"the Compose file must have a service named {_API}, got {', '.join(services)}")
    environment = _environment(services[_API], folder, variables)
    replicas = _replicas(services[_API])
    api = ApiPools(
        replicas=replicas,
        surge=_number(environment, "API_SURGE"),
        workers=_number(environment, "WEB_CONCURRENCY"),
        pool_size=_number(environment, "DB_POOL_SIZE"),
        max_overflow=_number(environment, "DB_MAX_OVERFLOW"),
        expensive_share=float(share) if (share := environment.get("DB_EXPENSIVE_SHARE")) else None,
        own_lanes=lanes.OWN_LANES,
        read_pool_size=_number(environment, "DB_READ_POOL_SIZE") if any(map(environment.get, READ_URLS)) else 0,
    )
    remarks = []
    if (declared := _number(environment, "API_REPLICAS")) != replicas:
        remarks.append(
            f"API_REPLICAS of the service {_API} is {declared}, but Compose starts {replicas} replicas: the check at"
            " their start counts others"
        )
    server, source = _server(services, environment, folder)
    sources = {"server": source}
    pooler = None
    if environment.get("DB_POOLER") == "pgbouncer":
        pooler, sources["pooler"] = _pooler(services, environment, folder)
    return BudgetReport(Budget(api, server, pooler), sources, remarks=tuple(remarks))


def _interpolated(value: Any, variables: Mapping[str, str]) -> Any:
    """Return a value of the file with its variables replaced, as Compose does."""
    if isinstance(value, dict):
        return {key: _interpolated(part, variables) for key, part in value.items()}
    if isinstance(value, list):
        return [_interpolated(part, variables) for part in value]
    return _replaced(value, variables) if isinstance(value, str) else value


def _replaced(text: str, variables: Mapping[str, str]) -> str:
    """Return a text with its variables replaced. Values are not replaced again."""
    parts, position = [], 0
    while found := _DOLLAR.search(text, position):
        parts.append(text[position : found.start()])
        position = found.end()
        if found["escaped"]:
            parts.append("$")
        elif found["name"]:
            parts.append(variables.get(found["name"], ""))
        else:
            end = _closing_brace(text, position)
            parts.append(_expanded(text[position:end], variables))
            position = end + 1
    return "".join([*parts, text[position:]])


def _closing_brace(text: str, start: int) -> int:
    """Return where the braces end that were opened before `start`. Raise ConfigurationError if they do not."""
    depth = 1
    for found in re.finditer(r"\$\{|\}", text[start:]):
        depth += 1 if found[0] == "${" else -1
        if depth == 0:
            return start + found.start()
    raise ConfigurationError(f"the Compose file has a variable without its closing brace: {text[start - 2 :]}")


def _expanded(braced: str, variables: Mapping[str, str]) -> str:
    """Return the value of what is between braces.

    A default, a message or an alternative is replaced only if it is used. Compose 2.26 replaces all of them, so it also
    refuses files in which an unused one needs a variable.
    """
    found = _BRACED.fullmatch(braced)
    if found is None:
        raise ConfigurationError(
            f"the Compose file has a variable that Compose does not know: ${{{braced}}}: write ${{NAME}}, or NAME with"
            " one of - :- ? :? + :+"
        )
    name, operator, word = found[1], found[2] or "", found[3] or ""
    value = variables.get(name)
    is_set = bool(value) if operator.startswith(":") else value is not None
    match operator[-1:]:
        case "+":
            return _replaced(word, variables) if is_set else ""
        case "?" if not is_set:
            message = _replaced(word, variables)
            raise ConfigurationError(
                f"{name}: the Compose file needs this variable" + (f": {message}" if message else "")
            )
        case "-" if not is_set:
            return _replaced(word, variables)
    return value or ""


def _env_file(path: Path) -> dict[str, str]:
    return {name: value or "" for name, value in dotenv_values(path).items()} if path.is_file() else {}


def _environment(service: Service, folder: Path, variables: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of a service: those of its `env_file`, and those of its `environment`, which come first.

    A variable of `environment` without a value has that of `variables`.
    """
    found: dict[str, str] = {}
    files = service.get("env_file") or []
    for file in [files] if isinstance(files, str) else files:
        found |= _env_file(folder / (file if isinstance(file, str) else file["path"]))
    own = service.get("environment") or {}
    if isinstance(own, list):
        own = {name: value if equals else None for name, equals, value in (each.partition("=") for each in own)}
    own = {name: variables.get(name) if value is None else value for name, value in own.items()}
    return found | {name: str(value) for name, value in own.items() if value is not None}


def _replicas(service: Service) -> int:
    return int(service.get("deploy", {}).get("replicas", service.get("scale", 1)))


def _number(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    """Return a variable as a number. Without one, it is `default` or that of the setting."""
    text = environment.get(name)
    if not text:
        return int(Settings.model_fields[name.lower()].default) if default is None else default
    if not text.isdecimal():
        raise ConfigurationError(f"{name}: the service {_API} must set it to a whole number, got {text!r}")
    return int(text)


def _server(services: Mapping[str, Service], environment: Mapping[str, str], folder: Path) -> tuple[Server, str]:
    """Return the server's limits, and where they come from. A lower POSTGRES_MAX_CONNECTIONS is our share of it."""
    names = ("max_connections", "superuser_reserved_connections", "reserved_connections")
    found, source = _limits(services.get(_SERVER, {}), "postgresql.conf", folder)
    default = Server(cores=_number(environment, "POSTGRES_CORES", 0) or None)
    if not source:
        given = {name: _number(environment, f"POSTGRES_{name.upper()}", getattr(default, name)) for name in names}
        return replace(default, **given), "the variables POSTGRES_*, or PostgreSQL's defaults"
    server = replace(default, **{name: found[name] for name in names if name in found})
    share = _number(environment, "POSTGRES_MAX_CONNECTIONS", server.max_connections)
    return replace(server, max_connections=min(share, server.max_connections)), source


def _pooler(services: Mapping[str, Service], environment: Mapping[str, str], folder: Path) -> tuple[Pooler, str]:
    """Return PgBouncer's limits, and where they come from."""
    names = ("max_client_conn", "default_pool_size", "reserve_pool_size", "max_db_connections")
    service = services.get(_POOLER, {})
    found, source = _limits(service, "pgbouncer.ini", folder)
    default = Pooler(instances=max(_replicas(service), _number(environment, "PGBOUNCER_INSTANCES")))
    if not source:
        given = {name: _number(environment, f"PGBOUNCER_{name.upper()}", getattr(default, name)) for name in names}
        return replace(default, **given), "the variables PGBOUNCER_*, or PgBouncer's defaults"
    return replace(default, **{name: found[name] for name in names if name in found}), source


def _limits(service: Service, name: str, folder: Path) -> tuple[dict[str, int], str]:
    """Return the whole numbers in a service's configuration file `name` and its options, and where they are.

    The file is mounted, or in the folder from which the image is built. Without numbers, the second part is empty.
    """
    files = []
    for volume in service.get("volumes") or []:
        if isinstance(volume, str):
            source, _, target = volume.partition(":")
            target = target.partition(":")[0]
        else:
            source, target = volume.get("source", ""), volume["target"]
        if Path(target).name == name:
            files.append(folder / source)
    if build := service.get("build"):
        files.append(folder / (build if isinstance(build, str) else build["context"]) / name)
    file = next((file for file in files if file.is_file()), None)
    text = file.read_text(encoding="utf-8") if file else ""
    command = service.get("command") or []
    words = command.split() if isinstance(command, str) else command
    options = "\n".join(_parameters(words))
    found = {parameter: int(value) for parameter, value in _PARAMETER.findall(f"{text}\n{options}")}
    return found, (str(file) if file else "the service's command") if found else ""


def _parameters(words: Sequence[str]) -> Iterator[str]:
    """Yield the parameters among the options of `postgres`, each as a line of its configuration file."""
    for option, value in pairwise([*words, ""]):
        if option == "-c":
            yield value
        elif option == "-N":
            yield f"max_connections={value}"
        elif option.startswith("--"):
            name, _, given = option[2:].partition("=")
            yield f"{name.replace('-', '_')}={given}"
