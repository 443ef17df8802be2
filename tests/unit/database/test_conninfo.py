"""A SQLAlchemy URL leads to the same server through libpq."""

from typing import Any

import pytest
from sqlalchemy import make_url

from app.database.conninfo import parameters


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql+asyncpg://u:p%40@h:5433/d", {"host": "h", "port": 5433, "user": "u", "password": "p@"}),
        ("postgresql+asyncpg://u@h/d?ssl=require&prepared_statement_cache_size=0", {"host": "h", "sslmode": "require"}),
        ("postgresql+psycopg://u@/d?host=/run&port=5433", {"host": "/run", "port": "5433"}),
        ("postgresql+psycopg://u@/d?host=a:5432&host=b:5433", {"host": "a,b", "port": "5432,5433"}),
        (
            "postgresql+psycopg://u@h/d?options=-csearch_path%3Dx&sslcert=/c&target_session_attrs=read-write",
            {"host": "h", "options": "-csearch_path=x", "sslcert": "/c", "target_session_attrs": "read-write"},
        ),
    ],
)
def test_parameters_of_url_keep_every_option_of_libpq(url: str, expected: dict[str, Any]) -> None:
    assert parameters(make_url(url)) == {"user": "u", "dbname": "d"} | expected
