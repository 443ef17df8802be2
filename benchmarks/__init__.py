"""Benchmarks: programs that measure speed and print tables. They assert nothing about speed."""
