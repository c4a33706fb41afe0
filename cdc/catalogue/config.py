"""Catalogue entries CDC-CFG-nnn; see the package's docstring."""

from cdc.errors import EXIT_CONFIG, Entry

ENTRIES: dict[str, Entry] = {
    "CDC-CFG-101": Entry(
        "the pipeline file cannot be read",
        "The file that describes the pipeline is missing, or may not be read by this user, or is not UTF-8 text.",
        "name the file (default: pipeline.yaml in this folder), or write one with: cdc init SOURCE_URL",
        EXIT_CONFIG,
    ),
    "CDC-CFG-102": Entry(
        "the pipeline file is not YAML",
        "The file's structure cannot be read: most often an indentation, a bracket, or a value that begins with *, &, ! or @ "
        "and has to stand in quotes.",
        "mend the line that is named",
        EXIT_CONFIG,
    ),
    "CDC-CFG-103": Entry(
        "the configuration has errors",
        "Every mistake is listed with its place. Nothing was started.",
        "mend the places that are named; docs/reference/config.md describes every key",
        EXIT_CONFIG,
    ),
    "CDC-CFG-104": Entry(
        "a secret can be read by everybody",
        "A file named by ${file:…} is readable for every user of this machine.",
        "chmod o-rwx FILE",
        EXIT_CONFIG,
    ),
    "CDC-CFG-105": Entry(
        "a password stands in a file that everybody can read",
        "The pipeline file holds a password itself, and is readable for every user of this machine.",
        "write ${NAME} or ${file:path} in place of the password, or take the file's permissions away from others",
        EXIT_CONFIG,
    ),
    "CDC-CFG-106": Entry(
        "a rename rule makes something that is not a table name",
        "The replacement of a rename rule has to give schema.table; a part that is not a plain lower-case name stands in double "
        "quotes, as in the text that the rule matches.",
        "correct the rule under `rename`",
        EXIT_CONFIG,
    ),
    "CDC-CFG-107": Entry(
        "two tables would be written to one",
        "After renaming, two captured tables have the same name at the target.",
        "correct the rules under `rename`, or exclude one of the tables",
        EXIT_CONFIG,
    ),
    "CDC-CFG-108": Entry(
        "there is no such sink",
        "A sink is named by its key under `sinks` in the pipeline file.",
        "use a name that stands under `sinks`",
        EXIT_CONFIG,
    ),
    "CDC-CFG-109": Entry(
        "there is no such error code",
        "Codes look like CDC-PG-104: an area and a number.",
        "docs/reference/errors.md lists all codes",
        EXIT_CONFIG,
    ),
    "CDC-CFG-110": Entry(
        "the file exists already",
        "cdc init writes a new pipeline file and never changes one that is there.",
        "name another file with --output, or move the old one away",
        EXIT_CONFIG,
    ),
    "CDC-CFG-111": Entry(
        "the pipeline file cannot be written",
        "The system refused to make the file that cdc init was to write.",
        "name a file in a folder that this user may write, with --output",
        EXIT_CONFIG,
    ),
}
