"""The exporter: metrics and the live page. A process of its own, so that it answers while API workers are blocked."""
