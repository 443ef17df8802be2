"""Types for the caller's identity, which services and repositories receive. Imports no web framework."""

from typing import NamedTuple

from app.errors import Forbidden


class Claim(NamedTuple):
    """The user id in a valid access token, not checked against the database.

    A statement that uses a claim must itself require that the user exists and is active. This saves the round trip
    that a Principal costs.
    """

    user_id: int


class Principal(NamedTuple):
    """The signed-in user: named by a valid access token, and active according to the database."""

    id: int
    is_admin: bool

    def require_admin(self) -> None:
        """Raise Forbidden unless the user is an administrator."""
        if not self.is_admin:
            raise Forbidden("Only an administrator may do this.")

    def require_self_or_admin(self, user_id: int) -> None:
        """Raise Forbidden unless the user is `user_id` or an administrator."""
        if self.id != user_id and not self.is_admin:
            raise Forbidden("Only the user or an administrator may do this.")
