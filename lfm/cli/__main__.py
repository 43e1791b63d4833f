"""`python -m lfm.cli`."""

from lfm.cli.main import main

main()
