"""The exporter's collectors: one source of metrics per module.

To add a collector:

1. Describe its metrics in `app/observability/catalogue.py`, and run `make docs`: it writes the table of
   `docs/metrics.md`.
2. Write the class in a module here, as `app.exporter.scraper.Collector` describes.
3. Add it to the list in `create_exporter()` (`app/exporter/app.py`).
4. Test it in `tests/unit/exporter/collectors/test_<module>.py`, or in the same place under `tests/integration` if it
   queries a server.

The scraper keeps the deadline, and exports `headroom_collector_success{collector="<name>"}` and
`headroom_collector_duration_seconds{collector="<name>"}` for each collector.
"""
