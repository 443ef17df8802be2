"""Servers, clients and helpers that several test layers use."""
