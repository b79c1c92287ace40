"""`python -m perceiver_vl` is `perceiver-vl`."""

from perceiver_vl.cli import main

main()
