"""`python -m gemedge` is `gemedge`."""

from gemedge.cli import main

main()
