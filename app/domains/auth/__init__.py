"""Signing in, and knowing who asks."""
