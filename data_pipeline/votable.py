"""Read the rows of a VOTable, the format of astronomical archives, with the unit that each column declares."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

from data_pipeline.errors import InputError


def read_votable(path: str | Path) -> tuple[list[dict[str, str]], dict[str, str]]:
    """Return rows (column -> text, "" where blank) and units (column -> unit, "" where none) of the first table.

    Raises:
        InputError: It cannot be read, or its cells are not written as text (TABLEDATA).
    """
    units: dict[str, str] = {}
    rows: list[dict[str, str]] = []
    try:
        for _, element in ElementTree.iterparse(path):
            tag = element.tag.rsplit("}", 1)[-1]
            if tag == "FIELD":
                units[element.get("name", "")] = element.get("unit", "")
            elif tag == "TR":
                cells = [(cell.text or "").strip() for cell in element]
                rows.append(dict(zip(units, cells, strict=True)))
                element.clear()
            elif tag in ("BINARY", "BINARY2", "FITS"):
                raise InputError(f"{path}: its cells are {tag}; save the VOTable as TABLEDATA, or a CSV")
            elif tag == "TABLE":
                break
    except (OSError, ElementTree.ParseError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: cannot be read as a VOTable ({error}); give one as TABLEDATA, or a CSV") from None
    return rows, units
