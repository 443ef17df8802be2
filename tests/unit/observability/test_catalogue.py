from app.observability.catalogue import metric_specs, metrics_table


def test_metric_names_are_unique_and_follow_prometheus_conventions() -> None:
    specs = list(metric_specs())

    assert len({spec.name for spec in specs}) == len(specs)
    assert all(spec.name.endswith("_total") == (spec.kind == "counter") for spec in specs)
    assert all(spec.help.endswith(".") for spec in specs)


def test_metrics_table_has_one_row_per_metric() -> None:
    header_rows = 2

    assert len(metrics_table().splitlines()) == len(list(metric_specs())) + header_rows
