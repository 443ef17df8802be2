"""What the tests share: servers to run against, and ways to look at them."""
