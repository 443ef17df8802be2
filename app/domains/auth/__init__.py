"""Sign-in and access tokens."""
