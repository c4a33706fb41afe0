"""Catalogue entries CDC-RPL-nnn; see the package's docstring."""

from cdc.errors import EXIT_CONFIG, EXIT_UNAVAILABLE, Entry

ENTRIES: dict[str, Entry] = {
    "CDC-RPL-101": Entry(
        "another replay of this sink is unfinished",
        "A replay that was interrupted goes on where it was when the same command is given again. This one asks for something else.",
        "Give the command that the message names, or remove what that replay left: `cdc replay NAME --discard`.",
    ),
    "CDC-RPL-102": Entry(
        "the log does not go that far",
        "The checkpoint that was asked for is not in the log yet.",
        "Choose an earlier one, or leave --to out: the replay goes to the log's end then.",
    ),
    "CDC-RPL-103": Entry(
        "a table was loading then",
        "While a table is read from the source, the log holds rows of different moments, so there is no state of it as of a place "
        "inside its load.",
        "Choose a place before the load or after its end, or leave the table out with --tables.",
    ),
    "CDC-RPL-104": Entry(
        "no table is there as of then",
        "The place lies before the first load of every table that was asked for.",
        "Choose a later place; check --tables: it takes names and patterns of the source's tables that this sink takes.",
    ),
    "CDC-RPL-105": Entry(
        "the log lacks a row",
        "An update whose unchanged columns were not sent found no row, and its re-read lies behind the place that was asked for.",
        "Choose a later place, or leave the table out with --tables.",
    ),
    "CDC-RPL-106": Entry(
        "the live table does not take the rebuilt rows as they are",
        "After the exchange it held other rows than the rebuilt table: a trigger or a rule changes what is written. Nothing was "
        "exchanged.",
        "Disable the trigger and give the same command again, or use --into SCHEMA and look at the rebuilt tables there.",
    ),
    "CDC-RPL-107": Entry(
        "the live table refuses the rebuilt rows",
        "A constraint of the target that the source does not have, or a foreign key of a table that is not replayed. Nothing was "
        "exchanged.",
        "Relax the constraint, or replay the other table with it, and give the same command again.",
    ),
    "CDC-RPL-108": Entry(
        "something is where the tables would be rebuilt",
        "A replay makes its tables, and never writes to those that are there.",
        "Choose another schema for --into, or drop or rename what is there.",
    ),
    "CDC-RPL-109": Entry(
        "the sink has no tables to exchange with",
        "It was never started, or was dropped.",
        "Start the sink: it takes everything from the log by itself. A copy beside it: --into SCHEMA.",
    ),
    "CDC-RPL-110": Entry(
        "another replay of this sink goes on",
        "The rebuilt tables moved on while this process was about to exchange them.",
        "Let one of the two finish.",
        EXIT_UNAVAILABLE,
    ),
    "CDC-RPL-111": Entry(
        "not a place in the log",
        "--to is checkpoint:NUMBER, time:ISO or position:PLACE; a time without a zone is UTC, a place of Postgres is an LSN.",
        "Write for instance --to time:2026-01-31T12:00:00Z, --to checkpoint:1200 or --to position:0/16B3748.",
        EXIT_CONFIG,
    ),
    "CDC-RPL-112": Entry(
        "a past state is not exchanged with the live tables",
        "The live sink would bring the tables to the present again at once.",
        "Name a schema for the copy: --into SCHEMA. To mend the live tables, leave --to out.",
        EXIT_CONFIG,
    ),
    "CDC-RPL-113": Entry(
        "nothing was removed",
        "There is no unfinished replay of this sink.",
        "Nothing to do.",
    ),
}
