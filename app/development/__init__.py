"""Helpers of the development server and of the tests. No program of production imports them."""
