"""The `lsa` command: its sub-commands, and the one place where an error becomes a sentence and an exit code."""

import os
import signal
import sys
import threading
from contextlib import suppress
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from lsa_cli import __version__
from lsa_cli.errors import EXIT_BROKEN, EXIT_INTERRUPTED, LsaError, printable

# The base of typer's own usage errors, which print themselves; typer exports no name for it.
_TyperError: type[Exception] = typer.BadParameter.__mro__[2]


class ErrorBoundary(TyperGroup):
    """Exit codes as documented: without it, a crash would exit 1, which reads "gate breached"."""

    def invoke(self, ctx: Any) -> Any:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, _interrupt)  # a stopped CI job keeps what was measured
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except (_TyperError, typer.Exit):
            raise
        except LsaError as error:
            _say(f"error: {error}")
            raise typer.Exit(error.exit_code) from error
        except (KeyboardInterrupt, typer.Abort) as error:
            _say("interrupted")
            raise typer.Exit(EXIT_INTERRUPTED) from error
        except OSError as error:
            # stdout is full, or its reader has gone; Python would complain again when it flushes at exit.
            with suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            if not isinstance(error, BrokenPipeError):
                _say(f"error: {error.filename or 'stdout'}: {error.strerror or error}")
            raise typer.Exit(EXIT_BROKEN) from error
        except SystemExit as error:
            # rich leaves with 1 when the reader of stdout has gone, and so may a plugin: neither is a breached gate.
            raise typer.Exit(EXIT_BROKEN) from error
        except Exception as error:
            if os.environ.get("LSA_TRACEBACK"):
                raise
            _say(
                f"error: this is a bug in lsa: {type(error).__name__}: {error}; "
                "please report it with the traceback that LSA_TRACEBACK=1 shows"
            )
            raise typer.Exit(EXIT_BROKEN) from error


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def _say(message: str) -> None:
    sys.stderr.write(f"lsa: {printable(' '.join(message.split()))}\n")


app = typer.Typer(
    name="lsa",
    cls=ErrorBoundary,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Audit the adversarial robustness of a saved PyTorch image classifier, layer by layer and class by class; "
    "and harden it.\n\n"
    "Exit codes: 0 done and every gate held; 1 a gate was breached or not decided; 2 something you can mend "
    "(options, configuration, a checkpoint or data set that cannot be used); 3 the run broke; 130 interrupted.",
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"lsa {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def _register() -> None:
    from lsa_cli.cli import audit, doctor, harden, init, inspect, inspecting, plot, report

    app.command("audit")(audit.audit)
    app.command("init")(init.init)
    app.command("harden")(harden.harden)
    app.command("inspect")(inspect.inspect)
    app.command("layers")(inspecting.layers)
    app.command("list")(inspecting.list_names)
    app.command("report")(report.report)
    app.command("compare")(report.compare)
    app.command("gate")(report.gate)
    app.command("check")(report.check)
    app.command("schema")(report.schema)
    app.command("doctor")(doctor.doctor)
    app.command("plot")(plot.plot)


_register()
