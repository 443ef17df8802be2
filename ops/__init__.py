"""The files of each service, and the programs that operators run."""
