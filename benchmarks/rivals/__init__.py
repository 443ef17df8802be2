"""What Headroom is measured against: the same endpoints on the same tables, as others would write them."""
