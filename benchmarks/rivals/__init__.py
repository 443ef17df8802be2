"""The applications that Headroom is measured against: the same endpoints on the same tables, in other styles."""
