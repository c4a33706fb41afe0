"""The `cdc` command: its verbs and their options, and how an error ends a process.

Each verb is a module of `cdc.commands` with `run(...) -> int`, imported only when it is called, so that `cdc --help` stays quick;
the keyword arguments below are its signature. Data goes to stdout, everything else to stderr. The invariant: whatever happens,
a user sees a code with a remedy, or one line that says it is a bug; a traceback only with --debug.

Exit codes: 0 done, 1 failed, 2 configuration or usage, 3 a dependency is away, 4 findings, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from enum import StrEnum
from functools import wraps
from importlib import import_module
from inspect import Parameter, signature
from pathlib import Path
from typing import Annotated, Any

import typer

from cdc.errors import CdcError

EXIT_INTERRUPTED, EXIT_PIPE_CLOSED = 130, 141

app = typer.Typer(
    name="cdc",
    help="Change data capture and database migration, exactly once. Start with: cdc demo",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class LogFormat(StrEnum):
    console = "console"
    json = "json"


def _option(*names: str, help: str, **settings: Any) -> Any:
    return typer.Option(*names, help=help, **settings)


File = Annotated[Path | None, typer.Argument(metavar="[FILE]", help="The pipeline file.", show_default="pipeline.yaml")]
Config = Annotated[
    Path | None, _option("--config", "-c", help="The pipeline file, another way.", metavar="FILE", envvar="CDC_CONFIG")
]
Json = Annotated[bool, _option("--json", help="One JSON object on stdout: {command, ok, result, error}.")]
DryRun = Annotated[bool, _option("--dry-run", help="Say what would be done, and do nothing.")]
Yes = Annotated[bool, _option("--yes", "-y", help="Do not ask.")]
Address = Annotated[
    str | None, _option("--bind", help="Where /healthz, /readyz, /metrics and /registry listen.", metavar="HOST:PORT")
]
Debug = Annotated[bool, _option("--debug", help="More log lines, and tracebacks.")]
Logs = Annotated[
    LogFormat | None, _option("--log-format", help="Log lines. Default: console on a terminal, else json.")
]


class _Common:
    """What the options said that every verb has."""

    debug = False
    log_format: LogFormat | None = None


def verb(function: Callable[..., None]) -> Callable[..., None]:
    """Make a verb of the function, named as it is, with the options that every verb has."""

    @wraps(function)
    def call(debug: bool, log_format: LogFormat | None, **arguments: Any) -> None:
        _Common.debug, _Common.log_format = debug, log_format
        function(**arguments)

    common = [
        Parameter("debug", Parameter.KEYWORD_ONLY, default=False, annotation=Debug),
        Parameter("log_format", Parameter.KEYWORD_ONLY, default=None, annotation=Logs),
    ]
    own = signature(function, eval_str=True)
    call.__signature__ = own.replace(parameters=[*own.parameters.values(), *common])  # type: ignore[attr-defined]
    call.__annotations__ = {name: given.annotation for name, given in signature(call).parameters.items()}
    return app.command(function.__name__.rstrip("_"))(call)


@verb
def demo(
    keep: Annotated[bool, _option("--keep", help="Keep the folder and say how to look around.")] = False,
    seconds: Annotated[int, _option("--seconds", help="How long it runs under load.", min=1)] = 30,
    port: Annotated[
        int | None, _option("--port", help="The first port to try. Default: any free one.", min=1, max=65_535)
    ] = None,
) -> None:
    """Watch it work: an embedded Postgres under load, two targets, kills in the middle, and a proof of equality."""
    _call("demo", keep=keep, seconds=seconds, port=port)


@verb
def init(
    source_url: Annotated[
        str,
        typer.Argument(metavar="SOURCE_URL", help="The database to capture; ${NAME} is taken from the environment."),
    ],
    sink: Annotated[list[str] | None, _option("--sink", help="A target's URL; may be repeated.", metavar="URL")] = None,
    output: Annotated[
        Path | None,
        _option("--output", "-o", help="The file to write; never overwritten.", show_default="pipeline.yaml"),
    ] = None,
) -> None:
    """Write a commented pipeline file from a live database. Reads only."""
    _call("init", source_url=source_url, sinks=sink or [], output=_file(output, None))


@verb
def check(
    file: File = None,
    config: Config = None,
    grants: Annotated[
        bool, _option("--grants", help="Print the statements that give the users exactly what they need.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check configuration, source, log and targets, and say how to mend what is missing. Reads only."""
    _call("check", as_json, file=_file(file, config), grants=grants)


@verb
def copy(
    source_url: Annotated[
        str, typer.Argument(metavar="SRC", help="The database to copy; ${NAME} is taken from the environment.")
    ],
    target_url: Annotated[str, typer.Argument(metavar="DST", help="The database to write.")],
    follow: Annotated[bool, _option("--follow", help="Go on with every change until stopped.")] = False,
    tables: Annotated[
        list[str] | None,
        _option("--tables", "-t", help="A table pattern such as public.*; may be repeated.", metavar="PATTERN"),
    ] = None,
    name: Annotated[
        str | None, _option("--name", help="The pipeline's name. Default: made of the two databases.")
    ] = None,
    folder: Annotated[Path, _option("--folder", help="Where the log is kept.")] = Path("penstock"),
    dry_run: DryRun = False,
) -> None:
    """Migrate a database with no file. Run again, it goes on where it was."""
    _call(
        "copy",
        source_url=source_url, target_url=target_url, follow=follow, tables=tables or [], name=name, folder=folder, dry_run=dry_run,
    )  # fmt: skip


@verb
def run(file: File = None, config: Config = None, bind: Address = None) -> None:
    """Capture and all sinks on this machine, one supervised process each."""
    _call("run", file=_file(file, config), bind=bind)


@verb
def capture(file: File = None, config: Config = None, bind: Address = None) -> None:
    """The capture alone, as a service."""
    _call("capture", file=_file(file, config), bind=bind)


@verb
def sink(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The sink's key in the pipeline file.")],
    file: File = None,
    config: Config = None,
    bind: Address = None,
) -> None:
    """One sink alone, as a service."""
    _call("sink", name=name, file=_file(file, config), bind=bind)


@verb
def registry(
    file: File = None,
    config: Config = None,
    bind: Annotated[
        str | None,
        _option("--bind", help="Where it listens. Default: port 8081 of server.bind's host.", metavar="HOST:PORT"),
    ] = None,
) -> None:
    """The schemas in the log, as a schema registry's read API. The other services offer it too."""
    _call("registry", file=_file(file, config), bind=bind)


@verb
def status(
    file: File = None,
    config: Config = None,
    watch: Annotated[bool, _option("--watch", "-w", help="Show it live.")] = False,
    as_json: Json = False,
) -> None:
    """Tables with state, rows and lag, from what is durable."""
    _call("status", as_json, file=_file(file, config), watch=watch)


@verb
def tail(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[FILE] [TABLE]...", help="Tables; the first word may be the file.")
    ] = None,
    config: Config = None,
    count: Annotated[int, _option("--count", "-n", help="How many of the last events.", min=0)] = 20,
    follow: Annotated[bool, _option("--follow", "-f", help="Go on with new events.")] = False,
    as_json: Annotated[bool, _option("--json", help="One JSON object per event.")] = False,
) -> None:
    """Decoded change events from the log."""
    file, tables = _file_and_tables(words, config)
    _call("tail", as_json, file=file, tables=tables, count=count, follow=follow)


@verb
def reload_(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[FILE] [TABLE]...", help="Tables; the first word may be the file.")
    ] = None,
    config: Config = None,
    all_tables: Annotated[bool, _option("--all", help="Every captured table.")] = False,
    new_epoch: Annotated[
        bool, _option("--new-epoch", help="The source's history was cut: new start position, all tables anew.")
    ] = False,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> None:
    """Load tables anew from the source while everything keeps running."""
    file, tables = _file_and_tables(words, config)
    if bool(tables) + all_tables + new_epoch != 1:
        raise typer.BadParameter("name tables, or say --all, or --new-epoch")
    _call("reload", file=file, tables=tables, all_tables=all_tables, new_epoch=new_epoch, dry_run=dry_run, yes=yes)


@verb
def replay(
    name: Annotated[str, typer.Argument(metavar="SINK", help="The sink's key in the pipeline file.")],
    file: File = None,
    config: Config = None,
    to: Annotated[
        str | None,
        _option(
            "--to", help="The state as of a past place; needs --into.", metavar="checkpoint:N|time:ISO|position:PLACE"
        ),
    ] = None,
    into: Annotated[
        str | None,
        _option("--into", help="Leave the rebuilt tables in this schema, beside the live ones.", metavar="SCHEMA"),
    ] = None,
    tables: Annotated[
        list[str] | None,
        _option(
            "--tables", "-t", help="Only these: a name or pattern such as public.*; may be repeated.", metavar="PATTERN"
        ),
    ] = None,
    discard: Annotated[bool, _option("--discard", help="Remove what an unfinished replay has left.")] = False,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Rebuild a target from the log, and exchange it with the live tables. Given again, it goes on where it was."""
    _call(
        "replay", as_json,
        name=name, file=_file(file, config), to=to, into=into, tables=tables or [], discard=discard, dry_run=dry_run, yes=yes,
    )  # fmt: skip


@verb
def drop(
    file: File = None,
    config: Config = None,
    source: Annotated[bool, _option("--source", help="Slot, publication and log only.")] = False,
    sinks: Annotated[
        list[str] | None, _option("--sink", help="This sink's bookkeeping only; may be repeated.", metavar="NAME")
    ] = None,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> None:
    """Remove what a pipeline made on source, log and targets. Tables and rows at the targets stay."""
    _call("drop", file=_file(file, config), source=source, sinks=sinks or [], dry_run=dry_run, yes=yes)


@verb
def explain(
    code: Annotated[str, typer.Argument(metavar="CODE", help="Such as CDC-PG-104.")],
    as_json: Json = False,
) -> None:
    """What an error code means and what to do."""
    _call("explain", as_json, code=code)


@verb
def version(as_json: Json = False) -> None:
    """The versions of Penstock and of what it stands on."""
    _call("version", as_json)


def _file(positional: Path | None, option: Path | None) -> Path:
    from cdc.config import DEFAULT_FILE

    return positional or option or DEFAULT_FILE


def _file_and_tables(words: list[str] | None, option: Path | None) -> tuple[Path, list[str]]:
    first, *rest = words or [""]
    if first.endswith((".yaml", ".yml")):
        return Path(first), rest
    return _file(None, option), list(words or [])


def _call(verb: str, as_json: bool | None = None, **arguments: Any) -> None:
    """Run a verb and end with its exit code. `as_json` is passed on to the verbs that have it."""
    raise typer.Exit(_run(verb, arguments if as_json is None else {**arguments, "as_json": as_json}))


def _run(verb: str, arguments: dict[str, Any]) -> int:
    from cdc import journal, presentation

    log_format = _Common.log_format
    journal.configure(log_format.value if log_format else None, debug=_Common.debug)
    if isinstance(file := arguments.get("file"), Path):
        presentation.speak_of(file)
    try:
        code = int(import_module(f"cdc.commands.{verb}").run(**arguments))
        sys.stdout.flush()
        return code
    except CdcError as error:
        return _failed(verb, error, error, arguments)
    except KeyboardInterrupt:
        presentation.say("interrupted")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has enough; Python would complain once more when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_PIPE_CLOSED
    except Exception as error:  # noqa: BLE001  # the last resort of the process
        from cdc.supervise import as_bug

        return _failed(verb, as_bug(error), error, arguments)


def _failed(verb: str, error: CdcError, cause: BaseException, arguments: dict[str, Any]) -> int:
    """Show the error in the form that was asked for; its exit code."""
    from cdc import presentation

    if arguments.get("as_json"):
        typer.echo(presentation.answer(verb, error=error))
    else:
        presentation.say(presentation.error_text(error))
    if _Common.debug:
        import traceback

        presentation.say("".join(traceback.format_exception(cause)).rstrip())
    return error.exit_code


def main() -> None:
    """The script's entry point."""
    app(prog_name="cdc")
