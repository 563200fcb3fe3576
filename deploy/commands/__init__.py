"""Implementations of the commands `segdeploy.NAME(...)` and `segdeploy NAME`, one file each."""
