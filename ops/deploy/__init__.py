"""`make deploy`, `make rollback` and `make rotate` for compose.prod.yml: docs/deploying.md.

The host of the Docker Engine needs Python 3.11 and nothing else: only the standard library is imported.
`__main__.py` parses the command line; `operations.py` has the order of the steps.
"""
