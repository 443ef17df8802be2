"""Lists that can be filtered, searched, sorted and paged. Knows no web framework, so repositories can import it."""
