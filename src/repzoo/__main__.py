"""`python -m repzoo`."""

from repzoo.cli import main

main()
