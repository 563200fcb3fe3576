"""Headings of `--help`: commands by the steps of the work, options by what they configure.

An option has the same name and the same meaning in every command, so one table serves them all.
"""

from __future__ import annotations

import functools

import click

COMMANDS = {
    "Prepare a network": ("models", "data", "contract", "train", "evaluate"),
    "Convert": ("export", "optimize", "calibrate", "build-engine", "adopt"),
    "Verify": ("bench", "inspect", "self-test", "doctor"),
    "Run": ("predict", "serve-repo"),
    "End to end": ("deploy",),
}
OPTIONS = {
    "Network": (
        *("num_classes", "foreground", "head", "threshold", "min_confidence", "label_ids"),
        *("width", "stride", "extra", "weights", "size", "take"),
    ),
    "Data": ("data", "split", "limit", "check_split", "reference", "golden"),
    "Training": (
        *("epochs", "batch_size", "accumulate", "learning_rate", "schedule", "loss"),
        *("class_weights", "validate_every", "gradient_checkpointing", "amp", "seed", "workers"),
    ),
    "Augmentation": ("crop", "scale", "rotation", "color", "vertical_flip"),
    "Shapes": (
        *("dynamic", "min_size", "max_size", "max_batch", "multiple_of"),
        *("minimum", "optimum", "maximum"),
    ),
    "Pre- and postprocessing in the graph": (
        "preprocess",
        "source_size",
        "output",
        "late_upsampling",
        "upsampling",
        "fp16_io",
    ),
    "Test-time augmentation": ("scales", "flip", "fuse", "tile"),
    "Contract": ("like", "layout"),
    "Preprocessing": (
        *("contract_file", "channels", "source_channels", "dtype", "gray"),
        *("fit", "edge", "longest_edge", "rounding", "side_multiple"),
        *("pad", "pad_normalized", "pad_side", "pad_multiple", "resize"),
        *("rescale", "mean", "std", "mean_255", "std_255", "normalization"),
    ),
    "Graph": ("opset", "no_optimize"),
    "Precision": ("precision", "method", "scheme", "exclude", "sensitivity", "cache"),
    "Engine": (
        *("version", "targets", "repeats", "workspace", "timing_cache", "plan_weights"),
        *("version_compatible", "hardware_compatible"),
    ),
    "Backend": ("backend", "backends", "threads", "cpp_program"),
    "Measurement": ("seconds", "fps", "sweeps", "ece", "layers"),
    "Limits on the result": (
        *("max_miou_drop", "min_agreement", "max_latency_ms", "min_speedup", "fail_on_skip"),
    ),
    "Output": (
        *("out", "labels", "report", "page", "log_dir", "compare", "resume", "dry_run"),
        *("as_json", "verbose", "quiet"),
    ),
    "Limits on the command": ("timeout", "max_memory"),
}
_FEW = 10  # options that need no headings
_HEADING_OF = {name: heading for heading, names in OPTIONS.items() for name in names}


class Command(click.Command):
    """A command whose options stand under headings, if there are many, and that takes no ""."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments; an empty one would stand for the current folder or for no name."""
        for index, one in enumerate(args):
            if not one or (one.startswith("--") and one.endswith("=")):
                before = f" after {args[index - 1]}" if index and not one else f" in {one}"
                raise click.UsageError(
                    f"an argument is empty{before if index or one else ''}; give a value, or check "
                    "the shell variable that it comes from",
                    ctx,
                )
        return super().parse_args(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, in the order of `OPTIONS`."""
        options = [one for one in self.get_params(ctx) if isinstance(one, click.Option)]
        if len(options) <= _FEW:
            super().format_options(ctx, formatter)
            return
        records: dict[str, list[tuple[str, str]]] = {heading: [] for heading in OPTIONS}
        for option in options:
            if record := option.get_help_record(ctx):
                heading = _HEADING_OF.get(option.name or "", "Other options")
                records.setdefault(heading, []).append(record)
        for heading, rows in records.items():
            if rows:
                with formatter.section(heading):
                    formatter.write_dl(rows)


class Group(click.Group):
    """The program, with its commands under headings."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands, in the order of `COMMANDS`."""
        for heading, names in COMMANDS.items():
            rows = [(name, self.commands[name].get_short_help_str(limit=90)) for name in names]
            with formatter.section(heading):
                formatter.write_dl(rows)


command = functools.partial(click.command, cls=Command)
