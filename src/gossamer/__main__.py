"""`python -m gossamer` is the `gossamer` program."""

from gossamer.cli.main import main

main()
