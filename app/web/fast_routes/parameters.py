"""Reading parameters: FastAPI's `request_params_to_args`, with what it decides for each request decided once."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast
from urllib.parse import parse_qsl

from fastapi import params
from starlette.requests import Request

from app.web.fast_routes._fastapi import (
    ModelField,
    Undefined,
    field_annotation_is_sequence,
    get_cached_model_fields,
    is_json_field,
    param_aliases,
    param_model,
    request_params_to_args,
    validate_value,
    validator,
)

Received = Callable[[Request], Any]
Values = dict[str, Any]
Errors = list[Any]


class Reader(Protocol):
    """Reads parameters of one kind (path, query, header or cookie)."""

    def __call__(self, request: Request, values: Values, errors: Errors) -> None:
        """Add the parameters to `values` by argument name, and validation errors to `errors`."""


def reader(fields: Sequence[ModelField], received: Received) -> Reader | None:
    """Return the fastest reader that reads these fields as FastAPI does; None if there are no fields.

    `received` returns all that a request has of their kind.
    """
    if not fields:
        return None
    if all(_is_simple(field) for field in fields):
        return _Scalars(fields, received)
    if _Model.fits(fields):
        return _Model(fields[0], received)
    return _General(fields, received)


def _is_simple(field: ModelField) -> bool:
    """Return True if the field is one scalar with one name. Headers are not: their names are converted."""
    return (
        not isinstance(field.field_info, (params.Header, params.Cookie))
        and param_model(field) is None
        and not is_json_field(field)
        and not field_annotation_is_sequence(field.field_info.annotation)
        and len(param_aliases(field)) == 1
    )


class _Scalars:
    def __init__(self, fields: Sequence[ModelField], received: Received) -> None:
        self._received = received
        self._fields = []
        for field in fields:
            [(_, alias)] = param_aliases(field)
            location = cast("params.Param", field.field_info).in_.value
            loc = (location, alias)
            self._fields.append((field, validator(field, loc), field.name, alias, loc))

    def __call__(self, request: Request, values: Values, errors: Errors) -> None:
        received = self._received(request)
        own: Values = {}
        for field, validate, name, alias, loc in self._fields:
            value = received.get(alias)
            found_errors: Sequence[Any]
            if value is None:
                found, found_errors = validate_value(field=field, value=Undefined, values=own, loc=loc)
            else:
                found, found_errors = validate(value)
            if found_errors:
                errors.extend(found_errors)
            else:
                own[name] = found
        values.update(own)


class _Model:
    """One model that takes every query parameter, each of them a scalar under its own name."""

    def __init__(self, field: ModelField, received: Received) -> None:
        self._name = field.name
        self._validate = validator(field, ("query",))
        self._general = _General([field], received)
        model = cast("Any", param_model(field))
        self._names = [each.name for each in get_cached_model_fields(model)]
        self._sees_order = bool(field.field_info.metadata) or _sees_order(model)

    @staticmethod
    def fits(fields: Sequence[ModelField]) -> bool:
        if len(fields) != 1 or not isinstance(fields[0].field_info, params.Query):
            return False
        model = param_model(fields[0])
        if model is None or fields[0].field_info.annotation is not model:
            return False
        return all(
            not is_json_field(field)
            and not field_annotation_is_sequence(field.field_info.annotation)
            and param_aliases(field) == [(field.name, field.name)]
            for field in get_cached_model_fields(cast("Any", model))
        )

    def __call__(self, request: Request, values: Values, errors: Errors) -> None:
        # As Starlette's QueryParams reads it, without the object: that takes longer than the rest.
        pairs = parse_qsl(request.scope["query_string"].decode("latin-1"), keep_blank_values=True)
        given = dict(pairs)
        if len(given) != len(pairs):  # a repeated parameter
            self._general(request, values, errors)
            return
        if self._sees_order:
            given = self._ordered(given)
        found, found_errors = self._validate(given)
        if found_errors:
            if not self._sees_order:  # an error shows what was given
                _, found_errors = self._validate(self._ordered(given))
            errors.extend(found_errors)
        else:
            values[self._name] = found

    def _ordered(self, given: dict[str, str]) -> dict[str, str]:
        """Return the parameters in FastAPI's order: those of the model first, in the order of its fields."""
        return {**{name: given[name] for name in self._names if name in given}, **given}


def _sees_order(model: Any) -> bool:
    """Return True if the model's own code, or the model that it makes, may depend on the order of the parameters."""
    schema = repr(model.__pydantic_core_schema__)
    return (
        not schema.startswith("{")  # not built yet
        or model.model_config.get("extra") == "allow"
        or any(sign in schema for sign in ("'function-", "'default_factory'", "'custom_init': True"))
    )


class _General:
    """Any other fields, by FastAPI's own function."""

    def __init__(self, fields: Sequence[ModelField], received: Received) -> None:
        self._fields = fields
        self._received = received

    def __call__(self, request: Request, values: Values, errors: Errors) -> None:
        found, found_errors = request_params_to_args(self._fields, self._received(request))
        values.update(found)
        errors.extend(found_errors)
