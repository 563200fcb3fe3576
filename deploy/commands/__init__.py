"""The commands, one file each: what `segdeploy.NAME(...)` and `segdeploy NAME` do."""
