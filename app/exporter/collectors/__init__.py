"""One collector a module: a source of metrics, its deadline kept by the scraper."""
