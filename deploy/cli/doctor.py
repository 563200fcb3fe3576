"""`segdeploy doctor`."""

from __future__ import annotations

from dataclasses import asdict

from segdeploy.cli.console import print_json, say
from segdeploy.cli.headings import command
from segdeploy.cli.options import json_option


@command()
@json_option
def doctor(as_json: bool) -> int:
    """Check which backends work on this machine, and print how to repair the others.

    Each installed backend runs a small graph. Exits with 1 if a backend is broken.
    """
    import segdeploy
    from segdeploy.commands.doctor import toolchain

    findings = segdeploy.doctor()
    broken = [finding for finding in findings if finding.state == "broken"]
    if as_json:
        print_json({"findings": [asdict(one) for one in findings], "packages": toolchain()})
        return int(bool(broken))
    for one in findings:  # plain lines: the package that draws tables may be broken
        say(f"{one.state:7} {one.what}: {one.detail}" + (f"; {one.remedy}" if one.remedy else ""))
    say(", ".join(f"{name} {version}" for name, version in toolchain().items()))
    for finding in broken:
        say(f"broken: {finding.what}: {finding.detail}; {finding.remedy}", err=True)
    return int(bool(broken))
