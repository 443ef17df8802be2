"""`make deploy to=swarm`: compose.prod.yml as a stack on several machines (docs/swarm.md).

Only the standard library is imported, and every step is a command of Docker: the program runs on a manager, or
elsewhere with a Docker context. `__main__.py` parses the command line; `deploy.py` has the order of the steps.
"""
