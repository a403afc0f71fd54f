"""What every format is read into: one row an object."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from shapely.geometry.base import BaseGeometry

__all__ = ["UNCLASSIFIED", "AnnotationError", "Row", "hex_of_bgr", "parsed_xml"]

#: Class of an object that its program left without one.
UNCLASSIFIED = "unclassified"


class AnnotationError(ValueError):
    """An annotation file that cannot be read or written; the message names the file and the object."""


@dataclass(frozen=True)
class Row:
    """One annotated object in the file's own frame."""

    geometry: BaseGeometry
    class_name: str = UNCLASSIFIED
    name: str | None = None
    color: str | None = None

    def with_geometry(self, geometry: BaseGeometry) -> Row:
        """The same object with another outline."""
        return replace(self, geometry=geometry)


def hex_of_bgr(value: str | None) -> str | None:
    """ "#rrggbb" of the integer that Windows programs store, blue in the high byte."""
    if not value:
        return None
    number = int(value)
    return f"#{number & 255:02x}{number >> 8 & 255:02x}{number >> 16 & 255:02x}"


def parsed_xml(name: str, content: bytes) -> Any:
    """The root of an XML file; entities, which can exhaust memory or read files, are refused.

    Raises
    ------
    AnnotationError
        If it is not well formed, or declares entities.
    """
    from xml.etree.ElementTree import ParseError

    from defusedxml import DefusedXmlException
    from defusedxml.ElementTree import fromstring

    try:
        return fromstring(content, forbid_dtd=False)
    except ParseError as error:
        raise AnnotationError(
            f"{name}: not well-formed XML ({error}). It may be truncated: export it again."
        ) from error
    except DefusedXmlException as error:
        raise AnnotationError(
            f"{name}: declares XML entities, which no annotation needs; refused as unsafe."
        ) from error
