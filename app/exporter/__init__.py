"""The exporter: a process of its own, so that it answers while every worker is stuck."""
