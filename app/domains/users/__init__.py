"""People who sign up and write posts."""
