"""``python -m qnb`` is the command ``qnb``."""

from qnb.cli import main

main(prog_name="qnb")
