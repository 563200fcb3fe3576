"""`python -m segdeploy`."""

from segdeploy.program import main

main()
