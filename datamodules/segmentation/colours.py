"""Tables of colours: which colour stands for which class."""

import re
from collections.abc import Iterable
from pathlib import Path

from errors import UserError

Colour = tuple[int, int, int]

NUMBERS = r"(?P<red>\d+)[\s,;]+(?P<green>\d+)[\s,;]+(?P<blue>\d+)"
LINES = (  # "64 128 64<tab>Animal", "Animal,64,128,64", "background:0,0,0::"
    re.compile(rf"^{NUMBERS}[\s,;:]+(?P<name>\S.*)$"),
    re.compile(rf"^(?P<name>.*?\S)[\s,;:]+{NUMBERS}[\s,;:]*$"),
)


def read_colours(source: str | dict[str, list[int]]) -> list[tuple[str, Colour]]:
    """A table of (name, colour); a name may have several colours.

    Args:
        source: names with their red, green and blue, or a text file with one name and three numbers per line, in either
            order, separated by blanks, tabs, commas or colons. A first line without numbers is taken as a heading,
            lines beginning with # as comments.

    Raises:
        UserError: no such file, a line that cannot be read, a colour out of range or given twice.
    """
    if isinstance(source, dict):
        where = "data.colours"
        table = [(name, tuple(colour)) for name, colour in source.items()]
    else:
        where = source
        table = list(_lines(Path(source)))
    if not table:
        raise UserError(f"{where}: holds no colours; list the classes with theirs")
    seen: dict[Colour, str] = {}
    for name, colour in table:
        if len(colour) != 3 or not all(0 <= part <= 255 for part in colour):
            raise UserError(f"{where}: {name} has the colour {list(colour)}; give red, green and blue from 0 to 255")
        if colour in seen:
            raise UserError(f"{where}: {seen[colour]} and {name} both have the colour {list(colour)}; change one")
        seen[colour] = name
    return table


def _lines(file: Path) -> Iterable[tuple[str, Colour]]:
    if not file.is_file():
        raise UserError(f"{file}: no such table of colours; name a file with --data.colours, or list them in the YAML")
    lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    for number, line in enumerate(lines, 1):
        if not line or line.startswith("#"):
            continue
        match = next((found for pattern in LINES if (found := pattern.match(line))), None)
        if match is not None:
            yield match["name"], (int(match["red"]), int(match["green"]), int(match["blue"]))
        elif number > 1 or re.search(r"\d", line):
            raise UserError(f"{file}: line {number} is {line!r}; write a name and red, green and blue")
