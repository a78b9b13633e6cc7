"""The page docs/options.md, made from the commands themselves.

``python -m cyclegan_batch.cli.reference > docs/options.md`` writes it; a test holds it current.
"""

from __future__ import annotations

import inspect

import click

from . import main
from .options import GroupedCommand, GroupedOption

_HEAD = """\
# Options

Every command and option, as `cyclegan-batch COMMAND --help` shows them. This page is made from the
tables of options by `python -m cyclegan_batch.cli.reference > docs/options.md`: change a table, not
the page.

- `TIME` is seconds or `[HH:]MM:SS[.fff]`; `N,H,W` is a batch, a height and a width.
- `cyclegan_batch.translate(INPUT, OUTPUT, model=MODEL, ...)` takes the options of `translate` as
  keywords of the same name, with `_` for `-`: `--pix-fmt` is `pix_fmt`. There `size` is
  `"native"`, a number or `(height, width)`, times are seconds, and `None` stands for `auto` where
  a number is expected, and for every default that only the text describes.
- `cyclegan_batch.open_generator(MODEL, ...)` takes those of the model, the network and the size.
- The options of `train` are also keys of a recipe (TOML) and of `--set`; the spelling with `_` of
  the reference implementation works on the command line, too.
"""


def page() -> str:
    """Return the whole page as Markdown."""
    return "\n".join([_HEAD, *(_command(name, each) for name, each in main.commands.items())])


def _command(name: str, command: click.Command) -> str:
    ctx = click.Context(command, info_name=f"cyclegan-batch {name}")
    usage = command.get_usage(ctx).removeprefix("Usage: ")
    parts = [f"## {name}", f"```\n{usage}\n```", inspect.cleandoc(command.help or "")]
    assert isinstance(command, GroupedCommand)
    for heading, options in command.groups(ctx).items():
        parts.append(f"### {heading}")
        rows = [_row(each, ctx) for each in options if isinstance(each, GroupedOption)]
        parts.append("\n".join(["| option | meaning | default |", "|---|---|---|", *rows]))
    return "\n\n".join(parts) + "\n"


def _row(option: GroupedOption, ctx: click.Context) -> str:
    long = [flag for flag in option.opts if flag.startswith("--")][:1]
    long += [flag for flag in option.secondary_opts if flag.startswith("--")][:1]
    short = [f"`{flag}`" for flag in option.opts if not flag.startswith("--")]
    choices = option.type.choices if isinstance(option.type, click.Choice) else ()
    value = (
        ""
        if option.is_flag
        else f" {option.metavar or '|'.join(choices) or option.make_metavar(ctx)}"
    )
    flags = ", ".join([*short, *(f"`{flag}{value}`" for flag in long)])
    default = f"`{option.shown_default}`" if option.shown_default else ""
    if option.required:
        default = "required"
    cells = flags, (option.help or "").replace("``", "`"), default
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    print(page(), end="")
